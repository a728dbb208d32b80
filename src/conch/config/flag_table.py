"""Triton's command line as one table: every flag, its group, how its value is read and what it sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from conch.config import flag_values as values
from conch.config.flag_values import INT64_MAX, Reader
from conch.config.memory import memory_budget


@dataclass(frozen=True, slots=True)
class Flag:
    """One row. `sets` is the option it fills, as `<group>.<field>` of `ServerOptions`; empty for flags without effect.

    `read` is None for flags without a value. `metavar` is how the usage text writes the value.
    """

    group: str
    name: str
    metavar: str
    read: Reader | None
    help: str
    sets: str = ""
    #: Collect all values instead of keeping the last.
    repeated: bool = False


_GROUP_TITLES: Final = {
    "server": "Server",
    "log": "Logging",
    "repository": "Model Repository",
    "http": "HTTP",
    "grpc": "GRPC",
    "sagemaker": "Sagemaker",
    "vertex": "Vertex",
    "metrics": "Metrics",
    "trace": "Tracing",
    "backend": "Backend",
    "agent": "Repository Agent",
    "cache": "Response Cache",
    "rate": "Rate Limiter",
    "memory": "Memory/Device Management",
    "shm": "Shared Memory",
    "deprecated": "DEPRECATED",
}

_B, _I, _S, _F = "<boolean>", "<integer>", "<string>", "<float>"
_COUNT = values.integer()
_THREADS = values.integer(1, 1024)
_PORT = values.integer(0, 65535)
_BYTES = values.integer(0, INT64_MAX)
_GPU_BYTES = values.pair(":", _COUNT, _BYTES)
_BOOL, _TEXT, _FILLED, _ADDRESS = values.boolean, values.text, values.filled, values.address


def _mode(flag: str, *options: str) -> Reader:
    return values.choice(*options, refusal=f"invalid argument for --{flag}")


_ROWS: Final = (
    # group, name, metavar, reader, help, what it sets
    ("server", "id", _S, _TEXT, "The server's name in its metadata. Default is triton.", "id"),
    ("server", "exit-timeout-secs", _I, _COUNT, "Seconds to wait for requests in flight at exit. Default is 30.",
     "exit_timeout"),
    ("log", "log-verbose", _I, values.verbosity, "Level of verbose logging. Default is 0, which is off.",
     "log.verbose"),
    ("log", "log-info", _B, _BOOL, "Log messages of level info. Default is true.", "log.info"),
    ("log", "log-warning", _B, _BOOL, "Log warnings. Default is true.", "log.warning"),
    ("log", "log-error", _B, _BOOL, "Log errors. Default is true.", "log.error"),
    ("log", "log-format", _S, _mode("log-format", "default", "ISO8601"),
     "How a log line begins: default or ISO8601.", "log.format"),
    ("log", "log-file", _S, _TEXT, "Write the log to this file instead of stderr.", "log.file"),
    ("repository", "model-store", _S, _FILLED, "The same as --model-repository.", "repository.paths"),
    ("repository", "model-repository", _S, _FILLED,
     "Path of a model repository, or an URL such as s3://bucket/path. May be given several times.",
     "repository.paths"),
    ("repository", "exit-on-error", _B, _BOOL, "Exit when a model fails to load at start-up. Default is true.",
     "repository.exit_on_error"),
    ("repository", "disable-auto-complete-config", "", None,
     "Models must have a complete config.pbtxt; nothing is filled in from their files.", "repository.auto_complete"),
    ("repository", "strict-readiness", _B, _BOOL,
     "The server is ready only when all its models are. Default is true.", "repository.strict_readiness"),
    ("repository", "model-control-mode", _S, _mode("model-control-mode", "none", "poll", "explicit"),
     "none: all models, once; poll: follow the repository; explicit: by request alone. Default is none.",
     "repository.control_mode"),
    ("repository", "repository-poll-secs", _I, _COUNT,
     "Seconds between two polls of the repository, 0 for none at all; for poll mode. Default is 15.",
     "repository.poll_seconds"),
    ("repository", "load-model", _S, _FILLED,
     "A model to load at start-up, in mode explicit. May be given several times; * alone means all.",
     "repository.load_models"),
    ("repository", "model-config-name", _S, values.config_name,
     "Use configs/<name>.pbtxt instead of config.pbtxt in models that have it.", "repository.config_name"),
    ("repository", "model-load-thread-count", _I, _THREADS, "Models loaded at the same time. Default is 4.",
     "repository.load_threads"),
    ("repository", "model-load-retry-count", _I, _COUNT, "How often a failed load is tried again. Default is 0.",
     "repository.load_retries"),
    ("repository", "model-namespacing", _B, _BOOL,
     "Models of the same name may be served from different repositories. Default is false.",
     "repository.namespacing"),
    ("repository", "traffic-config", _S, _FILLED,
     ("JSON file of traffic routes by name: how versions and models share requests, stick to users, shadow each other. "
     "Conch's own."), "traffic.file"),
    ("repository", "watch", "", None,
     "For developers: load models again when their files are saved. --exit-on-error is false then, unless given.",
     "repository.watch"),
    ("repository", "repository-cache", _S, _FILLED,
     "Where copies of remote repositories' files lie. Default is ~/.cache/conch/repository. Conch's own.",
     "repository.cache_directory"),
    ("repository", "repository-cache-size", _I, _BYTES,
     "Bytes that may lie there; what no model uses goes first. Default is 53687091200. Conch's own.",
     "repository.cache_bytes"),
    ("repository", "enable-peer-access", _B, _BOOL, "Let GPUs access each other's memory. Default is true."),
    ("http", "allow-http", _B, _BOOL, "Serve HTTP. Default is true.", "http.enabled"),
    ("http", "http-address", _S, _ADDRESS, "Address to serve HTTP at. Default is {address}.", "http.address"),
    ("http", "http-port", _I, _PORT, "Port to serve HTTP at; 0 is any free one. Default is 8000.", "http.port"),
    ("http", "reuse-http-port", _B, _BOOL, "Let several servers listen at the same HTTP port. Default is false.",
     "http.reuse_port"),
    ("http", "http-thread-count", _I, _THREADS, "Threads that handle HTTP requests. Default is 8."),
    ("http", "http-max-input-size", _I,
     values.integer(1, INT64_MAX, "Error: --http-max-input-size must be greater than 0."),
     "Largest request body in bytes. Default is 67108864.", "http.max_input_size"),
    ("http", "http-header-forward-pattern", _S, values.pattern,
     "Regular expression of headers that become request parameters.", "http.header_forward_pattern"),
    ("http", "http-restricted-api", "<<apis>:<key>=<value>>", values.restriction("http-restricted-api", "api"),
     "Answer these APIs only with this header. May be given several times.", "http.restricted"),
    ("http", "http-use-ssl", _B, _BOOL, "Use TLS. Default is false. Not in Triton.", "http.use_ssl"),
    ("http", "http-use-ssl-mutual", _B, _BOOL,
     "Use TLS and ask clients for a certificate. Default is false. Not in Triton.", "http.use_ssl_mutual"),
    ("http", "http-server-cert", _S, _TEXT, "File of the server's certificate, PEM. Not in Triton.",
     "http.server_cert"),
    ("http", "http-server-key", _S, _TEXT, "File of the server's key, PEM. Not in Triton.", "http.server_key"),
    ("http", "http-root-cert", _S, _TEXT, "File of the root certificate of clients, PEM. Not in Triton.",
     "http.root_cert"),
    ("grpc", "allow-grpc", _B, _BOOL, "Serve gRPC. Default is true.", "grpc.enabled"),
    ("grpc", "grpc-address", _S, _ADDRESS, "Address to serve gRPC at. Default is {address}.", "grpc.address"),
    ("grpc", "grpc-port", _I, _PORT, "Port to serve gRPC at; 0 is any free one. Default is 8001.", "grpc.port"),
    ("grpc", "reuse-grpc-port", _B, _BOOL, "Let several servers listen at the same gRPC port. Default is false.",
     "grpc.reuse_port"),
    ("grpc", "grpc-header-forward-pattern", _S, values.pattern,
     "Regular expression of metadata that become request parameters.", "grpc.header_forward_pattern"),
    ("grpc", "grpc-restricted-protocol", "<<protocols>:<key>=<value>>",
     values.restriction("grpc-restricted-protocol", "protocol"),
     "Answer these protocols only with this metadata. May be given several times.", "grpc.restricted"),
    ("grpc", "grpc-infer-thread-count", _I,
     values.integer(2, 128, "invalid argument for --grpc_infer_thread_count. Must be in the range 2 to 128."),
     "Threads that handle inference requests, 2 to 128. Default is 2."),
    ("grpc", "grpc-infer-allocation-pool-size", _I, _COUNT, "Request objects kept for reuse. Default is 8."),
    ("grpc", "grpc-max-response-pool-size", _I, values.integer(1), "Responses that a stream may hold at once.",
     "grpc.max_response_pool"),
    ("grpc", "grpc-use-ssl", _B, _BOOL, "Use TLS. Default is false.", "grpc.use_ssl"),
    ("grpc", "grpc-use-ssl-mutual", _B, _BOOL, "Use TLS and ask clients for a certificate. Default is false.",
     "grpc.use_ssl_mutual"),
    ("grpc", "grpc-server-cert", _S, _TEXT, "File of the server's certificate, PEM.", "grpc.server_cert"),
    ("grpc", "grpc-server-key", _S, _TEXT, "File of the server's key, PEM.", "grpc.server_key"),
    ("grpc", "grpc-root-cert", _S, _TEXT, "File of the root certificate of clients, PEM.", "grpc.root_cert"),
    ("grpc", "grpc-infer-response-compression-level", _S,
     _mode("grpc_infer_response_compression_level", "none", "low", "medium", "high"),
     "Compression of responses: none, low, medium or high. Default is none.", "grpc.compression_level"),
    ("grpc", "grpc-keepalive-time", _I, _COUNT, "Milliseconds between keepalive pings. Default is 7200000.",
     "grpc.keepalive_time_ms"),
    ("grpc", "grpc-keepalive-timeout", _I, _COUNT, "Milliseconds to wait for a ping's answer. Default is 20000.",
     "grpc.keepalive_timeout_ms"),
    ("grpc", "grpc-keepalive-permit-without-calls", _B, _BOOL, "Send pings without calls. Default is 0.",
     "grpc.keepalive_permit_without_calls"),
    ("grpc", "grpc-http2-max-pings-without-data", _I, _COUNT, "Pings to send without data. Default is 2.",
     "grpc.max_pings_without_data"),
    ("grpc", "grpc-http2-min-recv-ping-interval-without-data", _I, _COUNT,
     "Milliseconds that clients must leave between pings without data. Default is 300000.",
     "grpc.min_recv_ping_interval_ms"),
    ("grpc", "grpc-http2-max-ping-strikes", _I, _COUNT, "Bad pings before a connection is closed. Default is 2.",
     "grpc.max_ping_strikes"),
    ("grpc", "grpc-max-connection-age", _I, _COUNT, "Milliseconds that a connection may live. Default is no limit.",
     "grpc.max_connection_age_ms"),
    ("grpc", "grpc-max-connection-age-grace", _I, _COUNT, "Milliseconds for its calls to end then.",
     "grpc.max_connection_age_grace_ms"),
    ("sagemaker", "allow-sagemaker", _B, _BOOL, "Serve the Sagemaker protocol. Default is false."),
    ("sagemaker", "sagemaker-port", _I, _PORT, "Its port. Default is 8080."),
    ("sagemaker", "sagemaker-safe-port-range", "<<integer>-<integer>>", values.port_range,
     "Ports that the other endpoints may use."),
    ("sagemaker", "sagemaker-thread-count", _I, _THREADS, "Threads that handle its requests. Default is 8."),
    ("vertex", "allow-vertex-ai", _B, _BOOL, "Serve the Vertex AI protocol. Default is false."),
    ("vertex", "vertex-ai-port", _I, _PORT, "Its port. Default is 8080."),
    ("vertex", "vertex-ai-thread-count", _I, _THREADS, "Threads that handle its requests. Default is 8."),
    ("vertex", "vertex-ai-default-model", _S, _TEXT, "The model of requests that name none."),
    ("metrics", "allow-metrics", _B, _BOOL, "Serve Prometheus metrics. Default is true.", "metrics.enabled"),
    ("metrics", "allow-gpu-metrics", _B, _BOOL, "Metrics of GPUs. Default is true.", "metrics.gpu"),
    ("metrics", "allow-cpu-metrics", _B, _BOOL, "Metrics of the CPU. Default is true.", "metrics.cpu"),
    ("metrics", "metrics-address", _S, _ADDRESS, "Address to serve metrics at. Default is the HTTP address.",
     "metrics.address"),
    ("metrics", "metrics-port", _I, _PORT, "Port to serve metrics at; 0 is any free one. Default is 8002.",
     "metrics.port"),
    ("metrics", "metrics-interval-ms", _F, values.milliseconds,
     "Milliseconds between readings of polled metrics. Default is 2000.", "metrics.interval_ms"),
    ("metrics", "metrics-config", "<<string>=<string>>", values.metrics_setting,
     ("A setting of latencies in metrics: counter_latencies, histogram_latencies or summary_latencies (true or false), "
     "summary_quantiles (<quantile>:<error>, with commas between several). May be given several times."),
     "metrics.config"),
    ("trace", "trace-config", "<<string>,<string>=<string>>", values.trace_setting,
     "A setting of tracing, of one mode or of all. May be given several times.", "trace.config"),
    ("backend", "backend-directory", _S, _TEXT,
     "Where Python-based backends lie, as <name>/model.py. Default is /opt/tritonserver/backends.",
     "repository.backend_directory"),
    ("backend", "backend-config", "<<string>,<string>=<string>>", values.backend_setting,
     "A setting of one backend, or of all: <setting>=<value>. May be given several times.", "backend"),
    ("agent", "repoagent-directory", _S, _TEXT,
     "Where repository agents lie, as <name>/agent.py. Default is /opt/tritonserver/repoagents.",
     "repository.agent_directory"),
    ("cache", "cache-config", "<<string>,<string>=<string>>", values.cache_setting,
     "A setting of the response cache, local or redis. May be given several times.", "cache.settings"),
    ("cache", "cache-directory", _S, _TEXT, "Where caches lie; those that there are, are built in."),
    ("rate", "rate-limit", _S, _mode("rate-limit", "execution_count", "off"),
     "How instances take turns: execution_count or off. Default is off.", "rate.mode"),
    ("rate", "rate-limit-resource", "<<string>:<integer>:<integer>>", values.resource,
     "How much there is of a resource, in all or on a device. May be given several times.", "rate.resources"),
    ("memory", "memory-budget", "<<device>=<amount>>", memory_budget,
     ("Memory that models and the server may take together: 6GiB, or ram=6GiB,gpu:0=40GiB. Those used the longest time "
     "ago sleep, and are loaded again when they are asked. Default is no limit. Not in Triton."), "memory.budget"),
    ("memory", "pinned-memory-pool-byte-size", _I, _BYTES,
     "Bytes of the host's memory that copies from and to GPUs go through; 0 for none. Default is 268435456.",
     "gpu.pinned_bytes"),
    ("memory", "cuda-memory-pool-byte-size", "<<integer>:<integer>>", _GPU_BYTES, "Bytes of a GPU's memory pool."),
    ("memory", "cuda-virtual-address-size", "<<integer>:<integer>>", _GPU_BYTES,
     "Bytes of a GPU's addresses for each growable state."),
    ("memory", "min-supported-compute-capability", _F, values.number(),
     "Do not use GPUs of a compute capability below this. Default is 6.0.", "gpu.min_compute_capability"),
    ("memory", "buffer-manager-thread-count", _I, _COUNT, "Threads that copy tensors. Default is 0."),
    ("memory", "host-policy", "<<string>,<string>=<string>>", values.host_policy,
     "A setting of a host policy: numa-node or cpu-cores. May be given several times.", "host.policies"),
    ("memory", "model-load-gpu-limit", "<<device_id>:<fraction>>", values.pair(":", _COUNT, values.fraction),
     "Make no instance on a GPU when more than this share of its memory, 0 to 1, is in use.", "gpu.load_limits"),
    ("shm", "allow-client-shm", _B, _BOOL, "Let clients register shared memory. Default is false.",
     "memory.client_shm"),
    ("deprecated", "strict-model-config", _B, _BOOL, "Use --disable-auto-complete-config.", "strict_model_config"),
    ("deprecated", "response-cache-byte-size", _I, _BYTES, "Use --cache-config=local,size=<bytes>.",
     "cache.size"),
    ("deprecated", "trace-file", _S, _TEXT, "Use --trace-config=triton,file=<path>.", "trace.file"),
    ("deprecated", "trace-level", _S, values.trace_level, "Use --trace-config=level=<level>.", "trace.level"),
    ("deprecated", "trace-rate", _I, _COUNT, "Use --trace-config=rate=<n>.", "trace.rate"),
    ("deprecated", "trace-count", _I, values.integer(-1), "Use --trace-config=count=<n>.", "trace.count"),
    ("deprecated", "trace-log-frequency", _I, _COUNT, "Use --trace-config=triton,log-frequency=<n>.",
     "trace.log_frequency"),
)  # fmt: skip

_REPEATED: Final = frozenset({
    "model-store", "model-repository", "load-model", "http-restricted-api", "grpc-restricted-protocol",
    "metrics-config", "trace-config", "backend-config", "cache-config", "rate-limit-resource", "host-policy",
    "cuda-memory-pool-byte-size", "cuda-virtual-address-size", "model-load-gpu-limit", "trace-level",
})  # fmt: skip

FLAGS: Final[dict[str, Flag]] = {row[1]: Flag(*row, repeated=row[1] in _REPEATED) for row in _ROWS}  # type: ignore[misc]


def titles() -> dict[str, str]:
    """Group -> its title in the usage text, in order."""
    return dict(_GROUP_TITLES)
