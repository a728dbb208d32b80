"""The server's models as models see them: the data plane and the control plane behind one door."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future

from conch.pb.model_config_pb2 import ModelConfig
from conch.service.api import ControlPlane, DataPlane
from conch.types.request import InferRequest, RequestForm, RequestHead


class Models:
    """Implements `backend.api.Models`. It is made before the planes, which need the models: `join` completes it."""

    _data: DataPlane
    _control: ControlPlane
    _lend: Callable[[Future[None]], None]

    def join(self, data: DataPlane, control: ControlPlane, lend: Callable[[Future[None]], None]) -> None:
        """Before the first model is loaded. `lend` is told of what a model waits for, see `Registry.lend`."""
        self._data = data
        self._control = control
        self._lend = lend

    @property
    def generation(self) -> int:
        return self._data.generation

    def prepare(self, head: RequestHead, /) -> RequestForm:
        return self._data.prepare(head)

    def infer(self, request: InferRequest, /) -> None:
        self._data.infer(request)

    def ready(self, name: str, version: str, /) -> bool:
        return self._data.model_ready(name, version)

    def config(self, name: str, version: str, /) -> ModelConfig:
        return self._data.config(name, version)

    def load(self, name: str, parameters: Mapping[str, str | bytes], /) -> Future[None]:
        return self._lent(self._control.load(name, parameters))

    def unload(self, name: str, unload_dependents: bool, /) -> Future[None]:
        return self._lent(self._control.unload(name, unload_dependents))

    def _lent(self, future: Future[None]) -> Future[None]:
        self._lend(future)
        return future
