"""What a config and the command line ask of TensorRT, read into one plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

_STRATEGY: Final = "execution_context_allocation_strategy"
#: Triton's names -> TensorRT's.
_STRATEGIES: Final = {"STATIC": "STATIC", "ON_PROFILE_CHANGE": "ON_PROFILE_CHANGE"}
_COMPATIBLE: Final = "version-compatible"
_PLUGINS: Final = "plugins"
#: Settings of Triton's that need no counterpart here, and why.
_NEEDLESS: Final = {
    "coalesce-request-input": "a batch is always copied to the GPU as one piece",
    "execution-policy": "each instance has a thread of its own",
}
#: Fields of optimization.cuda that have no counterpart, and why.
_CUDA: Final = {
    "busy_wait_events": "the driver decides how a thread waits for its stream",
    "output_copy_stream": "an instance has one stream",
}
_SERVER: Final = frozenset(
    {"auto-complete-config", "backend-directory", "default-max-batch-size", "min-compute-capability"}
)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    strategy: str = "STATIC"
    plugins: tuple[str, ...] = ()
    #: Whether engines may bring code of their own for the host, as version-compatible ones do.
    host_code: bool = False
    #: Whether equal shapes are run as one recorded CUDA graph.
    graphs: bool = False
    #: optimization.{input,output}_pinned_memory.
    pinned_input: bool = True
    pinned_output: bool = True
    #: What was accepted and has no effect; logged at load.
    notes: tuple[str, ...] = ()


def plan_engine(config: ModelConfig, settings: Mapping[str, str]) -> EnginePlan:
    """`settings` are those of `--backend-config=tensorrt,...`. Raises InferError for what cannot be meant."""
    values = {key: each.string_value for key, each in config.parameters.items()}
    strategy = values.get(_STRATEGY, "STATIC")
    if strategy not in _STRATEGIES:
        raise invalid(
            f"parameter '{_STRATEGY}' of model '{config.name}' is '{strategy}', expected one of "
            + ", ".join(_STRATEGIES)
        )
    compatible = settings.get(_COMPATIBLE, "false")
    if compatible not in ("true", "false"):
        raise invalid(
            f"backend setting '{_COMPATIBLE}' is '{compatible}', expected true or false",
            f"--backend-config=tensorrt,{_COMPATIBLE}=true",
        )
    cuda = config.optimization.cuda
    notes = [
        f"model '{config.name}': parameter '{key}' is not one that the tensorrt backend knows, it has no effect"
        for key in sorted(values.keys() - {_STRATEGY})
        if not key.startswith("conch_")
    ]
    notes += [
        f"--backend-config=tensorrt,{key}={settings[key]} has no effect: {reason}"
        for key, reason in _NEEDLESS.items()
        if key in settings
    ]
    notes += [
        f"--backend-config=tensorrt,{key}={settings[key]} has no effect, its settings are {_PLUGINS}, {_COMPATIBLE}"
        for key in sorted(settings.keys() - _NEEDLESS.keys() - _SERVER - {_PLUGINS, _COMPATIBLE})
    ]
    if cuda.graph_spec:
        notes.append(
            f"model '{config.name}': optimization.cuda.graph_spec has no effect, a graph is recorded for each shape "
            "that is met"
        )
    notes += [
        f"model '{config.name}': optimization.cuda.{field} has no effect, {reason}"
        for field, reason in _CUDA.items()
        if getattr(cuda, field)
    ]
    plugins = tuple([path for path in settings.get(_PLUGINS, "").split(";") if path])
    pinned = config.optimization
    return EnginePlan(
        _STRATEGIES[strategy],
        plugins,
        compatible == "true",
        cuda.graphs,
        not pinned.HasField("input_pinned_memory") or pinned.input_pinned_memory.enable,
        not pinned.HasField("output_pinned_memory") or pinned.output_pinned_memory.enable,
        tuple(notes),
    )
