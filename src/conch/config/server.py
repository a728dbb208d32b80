"""What the operator wants of the server: frozen values, one group per room, made once from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The HTTP/1.1 listener. Sizes are bytes, times seconds."""

    enabled: bool = True
    address: str = "0.0.0.0"  # noqa: S104  Triton's default
    port: int = 8000
    reuse_port: bool = False
    max_input_size: int = 67_108_864
    #: A request head must be complete within this time, and bytes of a body must keep coming.
    slow_sender_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """The gRPC (HTTP/2) listener. Sizes are bytes, times seconds."""

    enabled: bool = True
    address: str = "0.0.0.0"  # noqa: S104  Triton's default
    port: int = 8001
    reuse_port: bool = False
    max_message_size: int = 2_147_483_647
    max_concurrent_streams: int = 4096
    slow_sender_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """The Prometheus page. `address` empty means the HTTP address."""

    enabled: bool = True
    address: str = ""
    port: int = 8002
    cpu: bool = True
    gpu: bool = True
    interval_ms: int = 2000


@dataclass(frozen=True, slots=True)
class LogOptions:
    verbose: int = 0
    info: bool = True
    warning: bool = True
    error: bool = True
    format: str = "default"
    file: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """Where models come from and which of them are loaded at the start."""

    paths: tuple[Path, ...] = ()
    control_mode: str = "none"
    #: Models of `--load-model`; `("*",)` is all of them.
    load_models: tuple[str, ...] = ()
    exit_on_error: bool = True
    strict_readiness: bool = True
    auto_complete: bool = True
    load_threads: int = 4
    load_retries: int = 0
    config_name: str = ""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Everything the command line said."""

    id: str = "triton"
    exit_timeout: float = 30.0
    http: HttpOptions = field(default_factory=HttpOptions)
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    log: LogOptions = field(default_factory=LogOptions)
    repository: RepositoryOptions = field(default_factory=RepositoryOptions)
    #: `--backend-config`: backend name (empty for the global form) -> key -> value.
    backend: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Flags that were given, are Triton's, and have no effect yet: each is warned of by name at start-up.
    ignored: tuple[str, ...] = ()
