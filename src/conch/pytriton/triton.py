"""PyTriton's `Triton`: bind functions as models, and serve them."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from conch.library import Server
from conch.library.bound import Bound
from conch.library.ending import serve_until
from conch.pytriton.context import BoundModel
from conch.pytriton.exceptions import PyTritonInvalidOperationError, PyTritonValidationError
from conch.pytriton.model_config import ModelConfig, Tensor
from conch.pytriton.model_config.config import message, named
from conch.pytriton.program import CallableProgram

_NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")
_ENVIRONMENT: Final = "PYTRITON_TRITON_CONFIG_"


@dataclass(kw_only=True)
class TritonConfig:
    """Flags of the server; None is the server's default, which for the addresses is 0.0.0.0 here."""

    model_repository: str | Path | None = None
    id: str | None = None
    log_verbose: int | None = None
    log_file: str | Path | None = None
    exit_timeout_secs: int | None = None
    exit_on_error: bool | None = None
    strict_readiness: bool | None = None
    allow_http: bool | None = None
    http_address: str | None = None
    http_port: int | None = None
    http_header_forward_pattern: str | None = None
    http_thread_count: int | None = None
    allow_grpc: bool | None = None
    grpc_address: str | None = None
    grpc_port: int | None = None
    grpc_header_forward_pattern: str | None = None
    grpc_infer_allocation_pool_size: int | None = None
    grpc_use_ssl: bool | None = None
    grpc_use_ssl_mutual: bool | None = None
    grpc_server_cert: str | Path | None = None
    grpc_server_key: str | Path | None = None
    grpc_root_cert: str | Path | None = None
    grpc_infer_response_compression_level: str | None = None
    grpc_keepalive_time: int | None = None
    grpc_keepalive_timeout: int | None = None
    grpc_keepalive_permit_without_calls: bool | None = None
    grpc_http2_max_pings_without_data: int | None = None
    grpc_http2_min_recv_ping_interval_without_data: int | None = None
    grpc_http2_max_ping_strikes: int | None = None
    grpc_restricted_protocol: Sequence[str] | None = None
    allow_metrics: bool | None = None
    allow_gpu_metrics: bool | None = None
    allow_cpu_metrics: bool | None = None
    metrics_interval_ms: int | None = None
    metrics_port: int | None = None
    metrics_address: str | None = None
    metrics_config: Sequence[str] | None = None
    trace_config: Sequence[str] | None = None
    cache_config: Sequence[str] | None = None
    cache_directory: str | None = None
    buffer_manager_thread_count: int | None = None

    def __post_init__(self) -> None:
        if self.allow_http is False and self.allow_grpc is False:
            raise PyTritonValidationError("one of HTTP and gRPC has to be allowed")

    def to_dict(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_env(cls) -> TritonConfig:
        """From variables such as PYTRITON_TRITON_CONFIG_HTTP_PORT."""
        known = {each.name for each in fields(cls)}
        given: dict[str, Any] = {
            name: value
            for key, value in os.environ.items()
            if key.startswith(_ENVIRONMENT) and (name := key.removeprefix(_ENVIRONMENT).lower()) in known
        }
        return cls(**given)


class Triton:
    """Models run in this process, each instance in a thread of its own."""

    def __init__(self, *, config: TritonConfig | None = None, workspace: str | Path | None = None) -> None:
        """`workspace` is not needed: nothing of it is kept in files."""
        given = {**_said(TritonConfig.from_env()), **_said(config or TritonConfig())}
        self._config = TritonConfig(**given)
        self._bound: list[Bound] = []
        self._server: Server | None = None
        self._ended = threading.Event()
        #: The server's ports once it runs.
        self.http_port = self.grpc_port = self.metrics_port = 0

    def bind(
        self,
        model_name: str,
        infer_func: Callable[..., Any] | Sequence[Callable[..., Any]],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        model_version: int = 1,
        config: ModelConfig | None = None,
        strict: bool = False,
        trace_config: Sequence[str] | None = None,
    ) -> None:
        """Make a function a model (several: an instance each), before the server runs or while it does.

        Outputs are always checked against their data types and shapes, as with `strict`. Raises
        PyTritonValidationError.
        """
        if not _NAME.fullmatch(model_name or ""):
            raise PyTritonValidationError(
                f"the model's name is '{model_name}', expected letters, digits, dots, underscores and dashes"
            )
        if model_version != 1:
            raise PyTritonValidationError(f"model_version is {model_version}: functions have the version 1 alone")
        if trace_config:
            raise PyTritonValidationError("trace_config of a single model is not supported: give it to TritonConfig")
        config = config or ModelConfig()
        functions = list(infer_func) if isinstance(infer_func, Sequence) else [infer_func]
        takes, gives = named(inputs, "INPUT"), named(outputs, "OUTPUT")
        model = BoundModel(
            model_name, takes, gives, config.batching, config.max_batch_size if config.batching else 0,
            config.batcher, config.decoupled,
        )  # fmt: skip
        program = CallableProgram(functions, model, self._ended.set)
        bound = Bound(message(model_name, takes, gives, config, len(functions)), program)
        if any(each.config.name == model_name for each in self._bound):
            raise PyTritonInvalidOperationError(f"model '{model_name}' is bound already")
        if self._server is not None:
            self._server.add(bound)
        self._bound.append(bound)

    def run(self) -> None:
        """Start to serve and go on; nothing happens when it does already."""
        if self._server is not None:
            return
        given = {name: value for name, value in self._config.to_dict().items() if value is not None}
        repository = given.pop("model_repository", ())
        for each, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
            if given.setdefault(f"allow_{each}", True) not in (False, "false"):
                given.setdefault(f"{each}_port", port)
        given.setdefault("http_address", "0.0.0.0")  # noqa: S104  PyTriton's default
        given.setdefault("grpc_address", "0.0.0.0")  # noqa: S104
        # Before it starts: a model may say at once that it cannot go on.
        self._ended.clear()
        server = Server(repository, functions=self._bound, **given).start()
        self._server = server
        self.http_port, self.grpc_port, self.metrics_port = server.http_port, server.grpc_port, server.metrics_port

    def serve(self, monitoring_period_s: float = 10) -> None:
        """Serve until SIGINT or SIGTERM, until `stop` in another thread, or until a model cannot go on.

        `monitoring_period_s` is not needed: models and server are this process.
        """
        self.run()
        serve_until(self._ended, self.stop)

    def stop(self) -> bool:
        """False when it did not run."""
        server, self._server = self._server, None
        self._ended.set()
        if server is None:
            return False
        server.stop()
        return True

    def is_alive(self) -> bool:
        return self._server is not None and self._server.ready()

    is_connected = is_alive

    def connect(self) -> None:
        """Start to serve: there is no other server to connect to."""
        self.run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _said(config: TritonConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}
