"""What the operator wants of the server: frozen values, one group per room, made once from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conch.config.cloud import DEFAULT_CACHE_BYTES
from conch.config.repository_url import RepositoryUrl


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Paths of PEM files. `flag` is what the flags that name them begin with, for messages."""

    cert: str
    key: str
    #: Whose clients are let in; empty unless `mutual`.
    root: str
    mutual: bool
    flag: str


@dataclass(frozen=True, slots=True)
class Restriction:
    """Categories of the protocol that are answered only with this key and value."""

    categories: tuple[str, ...]
    key: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Tracing at start-up; clients may change all but the mode, the file and what is of OpenTelemetry alone."""

    #: Of TIMESTAMPS and TENSORS; empty is OFF.
    level: tuple[str, ...] = ()
    #: One request in this many is traced.
    rate: int = 1000
    #: Traces to make; -1 for no end.
    count: int = -1
    #: Traces to a file; 0 for one file with all.
    log_frequency: int = 0
    file: str = ""
    #: "triton" or "opentelemetry".
    mode: str = "triton"
    url: str = "http://localhost:4318/v1/traces"
    resource: Mapping[str, str] = field(default_factory=dict)
    bsp_max_queue_size: int = 2048
    bsp_schedule_delay: int = 5000
    bsp_max_export_batch_size: int = 512


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The HTTP/1.1 listener. Sizes are bytes, times seconds."""

    enabled: bool = True
    address: str = "0.0.0.0"  # noqa: S104  Triton's default
    port: int = 8000
    reuse_port: bool = False
    max_input_size: int = 67_108_864
    #: Regular expression of headers that become request parameters; empty for none.
    header_forward_pattern: str = ""
    #: A request head must be complete within this time, and bytes of a body must keep coming.
    slow_sender_timeout: float = 60.0
    use_ssl: bool = False
    use_ssl_mutual: bool = False
    server_cert: str = ""
    server_key: str = ""
    root_cert: str = ""
    restricted: tuple[Restriction, ...] = ()

    @property
    def tls(self) -> TlsOptions | None:
        """How TLS is done; None for plain text."""
        return _tls(self, "http")


def _tls(options: HttpOptions | GrpcOptions, protocol: str) -> TlsOptions | None:
    if not (options.use_ssl or options.use_ssl_mutual):
        return None
    root = options.root_cert if options.use_ssl_mutual else ""
    return TlsOptions(options.server_cert, options.server_key, root, options.use_ssl_mutual, protocol)


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
    #: Searched in the names of metadata; those that match become parameters of requests. Empty: none.
    header_forward_pattern: str = ""
    #: Of inference responses: none, low, medium or high.
    compression_level: str = "none"
    #: Responses of one stream that may wait for their reader; with more, no further request of it is begun.
    max_response_pool: int = 2_147_483_647
    keepalive_time_ms: int = 7_200_000
    keepalive_timeout_ms: int = 20_000
    keepalive_permit_without_calls: bool = False
    max_pings_without_data: int = 2
    min_recv_ping_interval_ms: int = 300_000
    max_ping_strikes: int = 2
    #: 0 for no limit.
    max_connection_age_ms: int = 0
    max_connection_age_grace_ms: int = 0
    use_ssl: bool = False
    use_ssl_mutual: bool = False
    server_cert: str = ""
    server_key: str = ""
    root_cert: str = ""
    restricted: tuple[Restriction, ...] = ()

    @property
    def tls(self) -> TlsOptions | None:
        """How TLS is done; None for plain text."""
        return _tls(self, "grpc")


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """The Prometheus page. `address` empty means the HTTP address."""

    enabled: bool = True
    address: str = ""
    port: int = 8002
    cpu: bool = True
    gpu: bool = True
    interval_ms: int = 2000
    #: Settings of latencies and their values, in the order in which they were given.
    config: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    #: Whether clients may register shared memory: whoever reaches the server may then read and write segments of it.
    client_shm: bool = False
    #: Bytes by device, `ram` or `gpu:<n>`, that models may take together with the server; empty for no limit.
    budget: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GpuOptions:
    #: Whether GPUs are used at all: not with TRITON_SERVER_CPU_ONLY in the environment.
    enabled: bool = True
    #: GPUs below this compute capability are left alone.
    min_compute_capability: float = 6.0
    #: GPU -> the share of its memory, from 0 to 1, that must not be in use already when an instance is made there.
    load_limits: Mapping[int, float] = field(default_factory=dict)
    #: Bytes of pinned memory, made with the first model on a GPU.
    pinned_bytes: int = 1 << 28


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """The response cache: `name` is its kind, empty for none; `settings` are what the operator gave it."""

    name: str = ""
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    directory: str = "/opt/tritonserver/caches"


@dataclass(frozen=True, slots=True)
class RateOptions:
    """The rate limiter."""

    #: "off" or "execution_count".
    mode: str = "off"
    #: Name, count and device (None: each) of resources; without any there is of each what the most demanding needs.
    resources: tuple[tuple[str, int, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Where instances run on the host: on these CPUs, or on those of a NUMA node, or on the CPUs that are both."""

    cpu_cores: frozenset[int] = frozenset()
    numa_node: int | None = None


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

    #: Folders, and URLs of storages.
    paths: tuple[Path | RepositoryUrl, ...] = ()
    #: Where local copies of storages' files lie; empty for the usual place.
    cache_directory: str = ""
    cache_bytes: int = DEFAULT_CACHE_BYTES
    control_mode: str = "none"
    #: Models of `--load-model`; `("*",)` is all of them.
    load_models: tuple[str, ...] = ()
    exit_on_error: bool = True
    strict_readiness: bool = True
    auto_complete: bool = True
    load_threads: int = 4
    load_retries: int = 0
    config_name: str = ""
    #: Whether models of the same name may be served from different repositories.
    namespacing: bool = False
    #: Whether models are loaded again as soon as their files are saved.
    watch: bool = False
    #: Seconds between two polls in mode `poll`; 0 for none.
    poll_seconds: int = 15
    #: Where repository agents lie, a folder each.
    agent_directory: str = "/opt/tritonserver/repoagents"
    #: Where Python-based backends lie, as `<name>/model.py`.
    backend_directory: str = "/opt/tritonserver/backends"


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """Who shares the requests for a name: a file of routes (see `config.traffic`), empty for none."""

    file: str = ""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Everything the command line said."""

    id: str = "triton"
    exit_timeout: float = 30.0
    http: HttpOptions = field(default_factory=HttpOptions)
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    log: LogOptions = field(default_factory=LogOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    gpu: GpuOptions = field(default_factory=GpuOptions)
    trace: TraceOptions = field(default_factory=TraceOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    repository: RepositoryOptions = field(default_factory=RepositoryOptions)
    rate: RateOptions = field(default_factory=RateOptions)
    traffic: TrafficOptions = field(default_factory=TrafficOptions)
    #: `--host-policy`: policy name -> what it says.
    host_policies: Mapping[str, HostPolicy] = field(default_factory=dict)
    #: `--backend-config`: backend name (empty for the global form) -> key -> value.
    backend: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Flags that were given, are Triton's, and have no effect yet: each is warned of by name at start-up.
    ignored: tuple[str, ...] = ()
