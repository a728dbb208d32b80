"""What a config asks of PyTorch, read into one plan. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from conch.backend.python.settings import OWN
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

_TRUE: Final = frozenset({"true", "on", "1"})
_FALSE: Final = frozenset({"false", "off", "0"})
#: Parameters that all kinds of models have.
_COMMON: Final = frozenset(
    {
        "DISABLE_CUDNN",
        "ENABLE_CACHE_CLEANING",
        "ENABLE_WEIGHT_SHARING",
        "INFERENCE_MODE",
        "INTER_OP_THREAD_COUNT",
        "INTRA_OP_THREAD_COUNT",
        "NUM_INTEROP_THREADS",
        "NUM_THREADS",
    }
)
_SCRIPT: Final = frozenset(
    {"DISABLE_OPTIMIZED_EXECUTION", "ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER"}
)
_MODULE: Final = frozenset({"FORCE_CPU_ONLY_INPUT_TENSORS", "TORCH_COMPILE_OPTIONAL_PARAMETERS"})
#: Parameters of the worker processes' own.
_WORKER: Final = frozenset({"EXECUTION_ENV_PATH"})
#: What no machine has processors for: PyTorch would start as many as it is told.
_MOST_THREADS: Final = 4096
_COMPILE: Final = frozenset({"backend", "disable", "dynamic", "fullgraph", "mode", "options"})


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """None stands for what the config does not say."""

    optimized: bool = True
    inference_mode: bool = True
    cudnn: bool = True
    sharing: bool | None = None
    cache_cleaning: bool = False
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    jit_executor: bool | None = None
    jit_profiling: bool | None = None
    tensor_fuser: bool | None = None
    #: Options of torch.compile; None where modules run as they are.
    compile: Mapping[str, Any] | None = None
    #: optimization.{input,output}_pinned_memory, for GPUs.
    pinned_input: bool = True
    pinned_output: bool = True
    #: What was accepted and has no effect; logged at load.
    warnings: tuple[str, ...] = ()

    @property
    def jit_switches(self) -> bool:
        """Whether any of the process-wide switches of TorchScript is asked for."""
        return not (self.jit_executor is None and self.jit_profiling is None and self.tensor_fuser is None)


def plan_model(config: ModelConfig, settings: Mapping[str, str], *, script: bool, worker: bool) -> TorchPlan:
    """`script` says that it is TorchScript, `worker` that it runs in a worker process. Raises InferError."""
    model = config.name
    values = {key: each.string_value for key, each in config.parameters.items()}
    flags = {
        key: _flag(values, key, model)
        for key in (*_SCRIPT, "DISABLE_CUDNN", "ENABLE_CACHE_CLEANING", "ENABLE_WEIGHT_SHARING", "INFERENCE_MODE")
    }
    pinned = config.optimization
    return TorchPlan(
        optimized=not flags["DISABLE_OPTIMIZED_EXECUTION"],
        inference_mode=flags["INFERENCE_MODE"] is not False,
        cudnn=not flags["DISABLE_CUDNN"],
        sharing=flags["ENABLE_WEIGHT_SHARING"],
        cache_cleaning=bool(flags["ENABLE_CACHE_CLEANING"]),
        intra_op_threads=_count(values, "INTRA_OP_THREAD_COUNT", model) or _count(values, "NUM_THREADS", model),
        inter_op_threads=_count(values, "INTER_OP_THREAD_COUNT", model) or _count(values, "NUM_INTEROP_THREADS", model),
        jit_executor=flags["ENABLE_JIT_EXECUTOR"],
        jit_profiling=flags["ENABLE_JIT_PROFILING"],
        tensor_fuser=flags["ENABLE_TENSOR_FUSER"],
        compile=_compile_options(values, model),
        pinned_input=not pinned.HasField("input_pinned_memory") or pinned.input_pinned_memory.enable,
        pinned_output=not pinned.HasField("output_pinned_memory") or pinned.output_pinned_memory.enable,
        warnings=tuple(_warnings(values, settings, model, script=script, worker=worker)),
    )


def plan_threads(plan: TorchPlan, cpus: int, instances: int) -> int:
    """How many threads one of `instances` computes with: as the config says, else its share of the CPUs.

    Measured on 2 CPUs, CNN at 64x64, batches of 8: two callers with one thread each made 3,993 img/s, one caller with
    two threads 2,762 (TorchScript as it is: 1,575 and 1,409); beside other load two threads were slower still.
    """
    return plan.intra_op_threads or max(1, cpus // max(1, instances))


def _warnings(
    values: Mapping[str, str], settings: Mapping[str, str], model: str, *, script: bool, worker: bool
) -> list[str]:
    known = _COMMON | (_SCRIPT if script else frozenset()) | (_MODULE | _WORKER if worker else frozenset())
    elsewhere = {
        **dict.fromkeys(_SCRIPT, "it is for TorchScript"),
        **dict.fromkeys(_MODULE | _WORKER, "it is for models in worker processes"),
    }
    texts = []
    for key in sorted(values):
        # Those that begin with conch_ are the server's; this one is warned of for every backend.
        if key in known or key.startswith("conch_") or key == "TRITON_BATCH_STRATEGY_PATH":
            continue
        why = elsewhere.get(key, "it is not one that the pytorch backend knows")
        texts.append(f"model '{model}': parameter '{key}' has no effect: {why}")
    if worker and values.get("ENABLE_WEIGHT_SHARING", "").lower() in _TRUE:
        texts.append(
            f"model '{model}': parameter 'ENABLE_WEIGHT_SHARING' has no effect: each instance is a process of its own"
        )
    # The Python backend's are those of the models in worker processes, and the server's are among them.
    texts += [
        f"model '{model}': backend setting '{key}' is not one that the pytorch backend knows, it has no effect"
        for key in sorted(settings.keys() - OWN)
    ]
    return texts


def _flag(values: Mapping[str, str], key: str, model: str) -> bool | None:
    text = values.get(key)
    if text is None:
        return None
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise invalid(
        f"failed to convert '{text}' to boolean",
        f"parameter '{key}' of model '{model}' is true, on, 1, false, off or 0",
    )


def _count(values: Mapping[str, str], key: str, model: str) -> int | None:
    """0 and below leave the number to the server, as in Triton."""
    text = values.get(key)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        raise invalid(
            f"failed to convert '{text}' to integral number",
            f"parameter '{key}' of model '{model}' is a number of threads, such as 2",
        ) from None
    if number > _MOST_THREADS:
        raise invalid(f"parameter '{key}' of model '{model}' is {text}, expected at most {_MOST_THREADS} threads")
    return number if number > 0 else None


def _compile_options(values: Mapping[str, str], model: str) -> Mapping[str, Any] | None:
    text = values.get("TORCH_COMPILE_OPTIONAL_PARAMETERS")
    if text is None:
        return None
    what = f"parameter 'TORCH_COMPILE_OPTIONAL_PARAMETERS' of model '{model}'"
    example = '{"mode": "reduce-overhead"}, with any of ' + ", ".join(sorted(_COMPILE))
    try:
        options = json.loads(text)
    except ValueError as error:
        raise invalid(f"{what} is no JSON: {error}", example) from None
    if not isinstance(options, dict) or options.keys() - _COMPILE:
        unknown = sorted(options.keys() - _COMPILE) if isinstance(options, dict) else type(options).__name__
        raise invalid(f"{what} is expected to be an object of torch.compile's options, found {unknown}", example)
    return None if options.get("disable") else options
