"""The doors of the service room: the data plane (requests) and the control plane (models come and go)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from conch.config.server import LogOptions
from conch.observe.trace import TraceSetting
from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import IndexEntry
from conch.types.request import InferRequest, RequestForm, RequestHead


class DataPlane(Protocol):
    """Requests and questions about models. Any thread; nothing blocks. Errors are `InferError`."""

    @property
    def generation(self) -> int:
        """Grows whenever a model version comes or goes; forms made under an older number must be prepared again."""

    def prepare(self, head: RequestHead) -> RequestForm:
        """Make every check that needs no tensor bytes. Raises InferError."""

    def infer(self, request: InferRequest) -> None:
        """Check the tensor bytes and hand the request to its model's scheduler.

        Raises InferError only before it takes the request over; afterwards every outcome goes to `request.sink`.
        """

    def live(self) -> bool: ...

    def ready(self) -> bool:
        """Raises InferError (UNAVAILABLE `Server exiting`) while the server stops."""

    def model_ready(self, name: str, version: str) -> bool: ...

    def server_metadata(self) -> pb.ServerMetadataResponse: ...

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse: ...

    def config(self, name: str, version: str) -> ModelConfig: ...

    def labels(self, name: str, version: str, output: str) -> Sequence[bytes]:
        """What an output's values stand for, by index; empty where the model has no labels."""

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Of one model, or of all when `name` is empty."""


class SettingsPlane(Protocol):
    """The log and the traces of the running server. Changes are all or nothing; errors are `InferError`."""

    def log(self) -> LogOptions: ...

    def change_log(self, changes: Mapping[str, Any]) -> LogOptions:
        """`changes`: fields of `LogOptions`."""

    def check_traced(self, model: str) -> None:
        """Raises InferError for a model that is not ready; `model` empty means all."""

    def trace(self, model: str) -> TraceSetting: ...

    def change_trace(self, model: str, changes: Mapping[str, Any]) -> TraceSetting:
        """`changes`: fields of `TraceSetting`, None to fall back."""


class TrafficPlane(Protocol):
    """The traffic routes of the running server, as JSON for people. Changes are all or nothing; errors are
    `InferError`."""

    def routes(self) -> list[dict[str, Any]]: ...

    def route(self, name: str) -> dict[str, Any]: ...

    def put(self, name: str, text: bytes) -> dict[str, Any]: ...

    def delete(self, name: str) -> None: ...


class ControlPlane(Protocol):
    """Loads and unloads. Calls return at once; the future ends when the work has, with None or an InferError."""

    def index(self, ready_only: bool) -> list[IndexEntry]: ...

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        """`parameters`: `config` (JSON text), `file:<path>` (raw bytes), `skip_gate` (`true`). All or
        nothing: the old version serves until the new one is ready."""

    def load_group(self, models: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]:
        """Name -> parameters. All of them or none: their new versions take over in one step."""

    def unload(self, name: str, unload_dependents: bool) -> Future[None]: ...
