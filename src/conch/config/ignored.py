"""Which fields of a model config are kept and shown, and have no effect yet. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig, ModelQueuePolicy

_ONNX = "onnxruntime"


def _group_sets(field: str) -> Callable[[ModelConfig], bool]:
    """Whether any instance group has something in `field`."""
    return lambda config: any(
        group.HasField("rate_limiter") if field == "rate_limiter" else bool(getattr(group, field))
        for group in config.instance_group
    )


def _delays(config: ModelConfig) -> bool:
    return config.dynamic_batching.default_queue_policy.timeout_action == ModelQueuePolicy.DELAY


#: Field -> whether a config sets it in vain. What backends refuse or warn of by themselves is not here, nor what says
#: something about GPUs' memory alone (pinned memory), which is nothing to miss on a CPU.
_FIELDS: Final[dict[str, Callable[[ModelConfig], bool]]] = {
    "runtime": lambda config: bool(config.runtime),
    "input.allow_ragged_batch": lambda config: (
        config.backend != _ONNX and any(tensor.allow_ragged_batch for tensor in config.input)
    ),
    "batch_input": lambda config: config.backend != _ONNX and bool(config.batch_input),
    "batch_output": lambda config: config.backend != _ONNX and bool(config.batch_output),
    "optimization.graph": lambda config: config.backend != _ONNX and config.optimization.HasField("graph"),
    "optimization.priority": lambda config: bool(config.optimization.priority),
    "optimization.cuda": lambda config: config.optimization.HasField("cuda"),
    "optimization.execution_accelerators": lambda config: (
        config.backend != _ONNX and config.optimization.HasField("execution_accelerators")
    ),
    "optimization.gather_kernel_buffer_threshold": lambda config: bool(
        config.optimization.gather_kernel_buffer_threshold
    ),
    "optimization.eager_batching": lambda config: config.optimization.eager_batching,
    "dynamic_batching (max_batch_size is 0)": lambda config: (
        config.HasField("dynamic_batching") and config.max_batch_size == 0
    ),
    "dynamic_batching.preserve_ordering": lambda config: config.dynamic_batching.preserve_ordering,
    "dynamic_batching.priority_levels": lambda config: bool(config.dynamic_batching.priority_levels),
    "dynamic_batching.default_priority_level": lambda config: bool(config.dynamic_batching.default_priority_level),
    "dynamic_batching.priority_queue_policy": lambda config: bool(config.dynamic_batching.priority_queue_policy),
    "dynamic_batching.default_queue_policy.timeout_action": _delays,
    "instance_group.rate_limiter": _group_sets("rate_limiter"),
    "instance_group.secondary_devices": _group_sets("secondary_devices"),
    "instance_group.host_policy": _group_sets("host_policy"),
    "cc_model_filenames": lambda config: bool(config.cc_model_filenames),
    "model_warmup": lambda config: bool(config.model_warmup),
    "model_operations": lambda config: config.backend != _ONNX and config.HasField("model_operations"),
    "model_repository_agents": lambda config: config.HasField("model_repository_agents"),
    "response_cache": lambda config: config.response_cache.enable,
    "model_metrics": lambda config: config.HasField("model_metrics"),
}


def ignored_fields(config: ModelConfig) -> list[str]:
    """The fields that `config`, normalised, sets and that do nothing yet, as paths such as `optimization.cuda`."""
    return [name for name, sets in _FIELDS.items() if sets(config)]
