"""Which fields of a model config are kept and shown, and have no effect yet. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from conch.config import cut_batches, fairness, forest_engine, memory, padding, swap_gate, traffic
from conch.config.model_metrics import FIRST_RESPONSE, other_families
from conch.pb.model_config_pb2 import ModelConfig

_ONNX = "onnxruntime"
_TENSORRT = "tensorrt"
#: Backends that compute ragged batches.
_RAGGED = ("onnxruntime", "pytorch")


#: Field -> whether a config sets it in vain. What backends refuse or warn of by themselves is not here, nor what says
#: something about GPUs' memory alone (pinned memory), which is nothing to miss on a CPU.
_FIELDS: Final[dict[str, Callable[[ModelConfig], bool]]] = {
    "batch_input": lambda config: config.backend not in _RAGGED and bool(config.batch_input),
    "batch_output": lambda config: config.backend not in _RAGGED and bool(config.batch_output),
    "optimization.graph": lambda config: config.backend != _ONNX and config.optimization.HasField("graph"),
    "optimization.priority": lambda config: bool(config.optimization.priority),
    "optimization.cuda": lambda config: config.backend != _TENSORRT and config.optimization.HasField("cuda"),
    "optimization.execution_accelerators": lambda config: (
        config.backend != _ONNX and config.optimization.HasField("execution_accelerators")
    ),
    "optimization.gather_kernel_buffer_threshold": lambda config: bool(
        config.optimization.gather_kernel_buffer_threshold
    ),
    "optimization.eager_batching": lambda config: config.optimization.eager_batching,
    "dynamic_batching.max_queue_delay_microseconds (max_batch_size is 0)": lambda config: (
        config.max_batch_size == 0 and bool(config.dynamic_batching.max_queue_delay_microseconds)
    ),
    "dynamic_batching.default_priority_level (no priority_levels)": lambda config: (
        bool(config.dynamic_batching.default_priority_level) and not config.dynamic_batching.priority_levels
    ),
    "dynamic_batching.priority_queue_policy (no priority_levels)": lambda config: (
        bool(config.dynamic_batching.priority_queue_policy) and not config.dynamic_batching.priority_levels
    ),
    "instance_group.secondary_devices": lambda config: any(group.secondary_devices for group in config.instance_group),
    "cc_model_filenames": lambda config: bool(config.cc_model_filenames),
    "model_operations": lambda config: config.backend != _ONNX and config.HasField("model_operations"),
    "parameters.TRITON_BATCH_STRATEGY_PATH": lambda config: "TRITON_BATCH_STRATEGY_PATH" in config.parameters,
    "sequence_batching.oldest.preserve_ordering (iterative_sequence)": lambda config: (
        config.sequence_batching.iterative_sequence and config.sequence_batching.oldest.preserve_ordering
    ),
    "sequence_batching.state.use_growable_memory": lambda config: any(
        state.use_growable_memory for state in config.sequence_batching.state
    ),
    f"model_metrics.metric_control (of a family other than {FIRST_RESPONSE})": other_families,
}

#: Parameters of ours -> the backends that act on them; empty for all.
_OURS: Final[dict[str, tuple[str, ...]]] = {
    cut_batches.PARAMETER: cut_batches.BACKENDS,
    forest_engine.PARAMETER: forest_engine.BACKENDS,
    fairness.BY: (),
    fairness.WEIGHTS: (),
    memory.PARAMETER: (),
    padding.PARAMETER: (),
    swap_gate.PARAMETER: (),
    traffic.PARAMETER: (),
}


def ignored_fields(config: ModelConfig) -> list[str]:
    """The fields that `config`, normalised, sets and that do nothing yet, as paths such as `optimization.cuda`."""
    fields = [name for name, sets in _FIELDS.items() if sets(config)]
    return fields + [f"parameters.{name}" for name in sorted(config.parameters) if _in_vain(name, config.backend)]


def _in_vain(parameter: str, backend: str) -> bool:
    """Whether it has a name of ours, and no effect."""
    if not parameter.startswith("conch_"):
        return False
    backends = _OURS.get(parameter)
    return backends is None or bool(backends and backend not in backends)
