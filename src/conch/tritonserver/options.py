"""Triton's `Options`, as flags of this server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conch.tritonserver.enums import InstanceGroupKind, LogFormat, ModelControlMode, RateLimitMode


@dataclass
class RateLimiterResource:
    name: str
    count: int
    device: int | None = None


@dataclass
class Options:
    """Defaults are Triton's; None is the server's. Times are seconds, `metrics_interval` milliseconds."""

    model_repository: str | Path | Sequence[str | Path] = field(default_factory=list)
    server_id: str = "triton"
    model_control_mode: ModelControlMode = ModelControlMode.NONE
    startup_models: Sequence[str] = field(default_factory=list)
    strict_model_config: bool = False
    rate_limiter_mode: RateLimitMode = RateLimitMode.OFF
    rate_limiter_resources: Sequence[RateLimiterResource] = field(default_factory=list)
    pinned_memory_pool_size: int | None = None
    cuda_memory_pool_sizes: Mapping[int, int] = field(default_factory=dict)
    cache_config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cache_directory: str | None = None
    min_supported_compute_capability: float | None = None
    exit_on_error: bool = True
    strict_readiness: bool = True
    exit_timeout: int = 30
    buffer_manager_thread_count: int | None = None
    model_load_thread_count: int | None = None
    model_load_retry_count: int | None = None
    model_namespacing: bool = False
    enable_peer_access: bool | None = None
    log_file: str | Path | None = None
    log_info: bool = False
    log_warn: bool = False
    log_error: bool = False
    log_format: LogFormat = LogFormat.DEFAULT
    log_verbose: bool | int = False
    metrics: bool = True
    gpu_metrics: bool = True
    cpu_metrics: bool = True
    metrics_interval: int = 2000
    backend_directory: str | None = None
    repo_agent_directory: str | None = None
    model_load_device_limits: Mapping[InstanceGroupKind, Mapping[int, float]] = field(default_factory=dict)
    backend_configuration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    host_policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics_configuration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """Of `conch.Server`."""
        logs = self.log_file or self.log_info or self.log_warn or self.log_error or self.log_verbose
        given: dict[str, Any] = {
            "id": self.server_id,
            "model_control_mode": self.model_control_mode.value,
            "load_model": list(self.startup_models),
            "disable_auto_complete_config": self.strict_model_config,
            "rate_limit": self.rate_limiter_mode.value,
            "rate_limit_resource": [_resource(each) for each in self.rate_limiter_resources],
            "pinned_memory_pool_byte_size": self.pinned_memory_pool_size,
            "cuda_memory_pool_byte_size": [f"{gpu}:{size}" for gpu, size in self.cuda_memory_pool_sizes.items()],
            "cache_config": self.cache_config or None,
            "cache_directory": self.cache_directory,
            "min_supported_compute_capability": self.min_supported_compute_capability,
            "exit_on_error": self.exit_on_error,
            "strict_readiness": self.strict_readiness,
            "exit_timeout_secs": self.exit_timeout,
            "buffer_manager_thread_count": self.buffer_manager_thread_count,
            "model_load_thread_count": self.model_load_thread_count,
            "model_load_retry_count": self.model_load_retry_count,
            "model_namespacing": self.model_namespacing,
            "enable_peer_access": self.enable_peer_access,
            "allow_gpu_metrics": self.gpu_metrics and self.metrics,
            "allow_cpu_metrics": self.cpu_metrics and self.metrics,
            "metrics_interval_ms": self.metrics_interval,
            "backend_directory": self.backend_directory,
            "repoagent_directory": self.repo_agent_directory,
            "model_load_gpu_limit": [
                f"{gpu}:{share}" for gpu, share in self.model_load_device_limits.get(InstanceGroupKind.GPU, {}).items()
            ],
            "backend_config": self.backend_configuration or None,
            "host_policy": self.host_policies or None,
            "metrics_config": [
                f"{key}={value}" for each in self.metrics_configuration.values() for key, value in each.items()
            ],
        }
        if logs:
            given |= {
                "log_file": self.log_file,
                "log_info": self.log_info,
                "log_warning": self.log_warn,
                "log_error": self.log_error,
                "log_format": self.log_format.value,
                "log_verbose": int(self.log_verbose),
            }
        return {name: value for name, value in given.items() if value is not None and value != []}


def _resource(resource: RateLimiterResource) -> str:
    where = "" if resource.device is None else f":{resource.device}"
    return f"{resource.name}:{resource.count}{where}"
