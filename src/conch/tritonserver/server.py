"""Triton's in-process `Server`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from conch import library
from conch.tritonserver.enums import MetricFormat
from conch.tritonserver.errors import TritonError, UnsupportedError, triton_errors
from conch.tritonserver.model import Model
from conch.tritonserver.options import Options
from conch.types.error import InferError


class Server:
    """`options`, or the same as keywords. No ports: `conch.tritonfrontend` has those."""

    def __init__(self, options: Options | None = None, **kwargs: Any) -> None:
        self.options = options or Options(**kwargs)
        with triton_errors():
            self._server = library.Server(self.options.model_repository, **self.options.keywords())

    @property
    def inner(self) -> library.Server:
        """The `conch.Server` that it is."""
        return self._server

    def start(
        self, wait_until_ready: bool = False, polling_interval: float = 0.1, timeout: float | None = None
    ) -> None:
        """Models are loaded when it returns. With `wait_until_ready` all of them are ready, or it is a TimeoutError."""
        with triton_errors():
            self._server.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        while wait_until_ready and not self.ready():
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"the server was not ready within {timeout:g} seconds")
            time.sleep(polling_interval)

    def stop(self) -> None:
        with triton_errors():
            self._server.stop()

    def live(self) -> bool:
        return self._server.live()

    def ready(self) -> bool:
        try:
            return self._server.ready()
        except InferError:
            return False

    def metadata(self) -> dict[str, Any]:
        with triton_errors():
            return MessageToDict(self._server.metadata(), preserving_proto_field_name=True)

    def model(self, model_name: str, model_version: int = -1) -> Model:
        return Model(self._server, model_name, model_version)

    def models(self, exclude_not_ready: bool = False) -> dict[tuple[str, int], Model]:
        """By name and version; of models never loaded the version is -1."""
        with triton_errors():
            return {
                (each.name, version): Model(self._server, each.name, version, each.state, each.reason)
                for each in self._server.index(ready_only=exclude_not_ready)
                for version in [int(each.version or -1)]
            }

    def load(self, model_name: str, parameters: Mapping[str, str | int | bool | bytes] | None = None) -> Model:
        """`parameters`: `config` (JSON text) and `file:<path>` (bytes)."""
        files, config = {}, None
        for name, value in (parameters or {}).items():
            if name == "config":
                config = str(value)
            elif name.startswith("file:") and isinstance(value, bytes):
                files[name.removeprefix("file:")] = value
            else:
                raise UnsupportedError(f"load parameter '{name}' is not supported, 'config' and 'file:<path>' are")
        with triton_errors():
            self._server.load(model_name, config=config, files=files or None)
        return self.model(model_name)

    def unload(
        self,
        model: str | Model,
        unload_dependents: bool = False,
        wait_until_unloaded: bool = False,
        polling_interval: float = 0.1,
        timeout: float | None = None,
    ) -> None:
        """What is in flight is answered; with `wait_until_unloaded` that is over when it returns."""
        name = model.name if isinstance(model, Model) else model
        with triton_errors():
            self._server.unload(name, unload_dependents=unload_dependents)
        deadline = None if timeout is None else time.monotonic() + timeout
        while wait_until_unloaded and any(
            each.name == name and each.state in ("READY", "UNLOADING") for each in self._server.index()
        ):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"model '{name}' was not unloaded within {timeout:g} seconds")
            time.sleep(polling_interval)

    def metrics(self, metric_format: MetricFormat = MetricFormat.PROMETHEUS) -> str:
        with triton_errors():
            return self._server.metrics()

    def poll_model_repository(self) -> None:
        raise UnsupportedError("poll_model_repository is not supported: use ModelControlMode.POLL, or load and unload")

    def register_model_repository(self, repository_path: str, name_mapping: Mapping[str, str] | None = None) -> None:
        raise UnsupportedError("register_model_repository is not supported: give all repositories in the options")

    def unregister_model_repository(self, repository_path: str) -> None:
        raise UnsupportedError("unregister_model_repository is not supported: unload its models")

    def __enter__(self) -> Server:
        self.start(wait_until_ready=True)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(TritonError):
            self.stop()
