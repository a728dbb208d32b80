"""What a config and the command line ask of ONNX Runtime, read into one plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid

_TRUE: Final = frozenset({"true", "True", "1"})
_FALSE: Final = frozenset({"false", "False", "0"})

#: optimization.graph.level -> the name of ONNX Runtime's GraphOptimizationLevel (Triton's mapping).
_LEVELS: Final = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}

#: What no machine has processors for: ONNX Runtime would start as many as it is told.
_MOST_THREADS: Final = 4096
#: Parameters that only mean something to the CUDA provider: Triton's older form of its options, numbers or text.
_CUDA: Final[Mapping[str, Mapping[str, str]]] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": {},
    "do_copy_in_default_stream": {},
}
_OWN: Final = frozenset(
    {
        "enable_mem_arena",
        "enable_mem_pattern",
        "execution_mode",
        "inter_op_thread_count",
        "intra_op_thread_count",
        "memory.enable_memory_arena_shrinkage",
        "share_session_between_instances",
    }
)
#: Settings of the command line: ours, and the global ones that other rooms read.
_SETTINGS: Final = frozenset(
    {
        "auto-complete-config",
        "backend-directory",
        "default-max-batch-size",
        "enable-global-threadpool",
        "inter_op_thread_count",
        "intra_op_thread_count",
        "min-compute-capability",
    }
)


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads a session computes with. 0 leaves the number to ONNX Runtime."""

    intra: int
    inter: int
    #: Whether idle threads wait in a loop while a run is on: faster for one caller, slower for several at once.
    spin: bool = False
    #: Both numbers size one pool that all sessions of the process share.
    process_wide: bool = False


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One session: every part of the config that ONNX Runtime acts on."""

    graph_level: str = "ORT_ENABLE_ALL"
    parallel: bool = False
    #: Threads that one instance computes with; None: its share of the CPUs.
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    memory_arena: bool | None = None
    memory_pattern: bool | None = None
    #: Whether instances on a CPU share one session; None: they do.
    shared: bool | None = None
    session_entries: Mapping[str, str] = field(default_factory=dict)
    run_entries: Mapping[str, str] = field(default_factory=dict)
    cuda_options: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[str, ...] = ()
    global_threads: bool = False
    #: What was accepted and has no effect; logged at load.
    warnings: tuple[str, ...] = ()


def plan_session(config: ModelConfig, settings: Mapping[str, str]) -> SessionPlan:
    """`settings` are those of `--backend-config=onnxruntime,...`. Raises InferError for values out of range."""
    model = config.name
    values = {key: each.string_value for key, each in config.parameters.items()}
    level = config.optimization.graph.level
    warnings = [
        f"model '{model}': parameter '{key}' is not one that the onnxruntime backend knows, it has no effect"
        for key in sorted(values)
        # Those that begin with conch_ are the server's.
        if key not in _OWN and key not in _CUDA and not key.startswith(("session.", "conch_"))
    ]
    warnings += [
        f"model '{model}': backend setting '{key}' is not one that the onnxruntime backend knows, it has no effect"
        for key in sorted(settings.keys() - _SETTINGS)
    ]
    if level not in _LEVELS:
        warnings.append(f"model '{model}': optimization.graph.level {level} is unknown, all optimizations are made")
    pooled = _flag(settings, "enable-global-threadpool", "backend setting 'enable-global-threadpool'") or False
    mode = _number(values, "execution_mode", f"parameter 'execution_mode' of model '{model}'")
    if mode not in (None, 0, 1):
        raise invalid(
            f"Invalid configuration value provided. Expected values for execution_mode are 0 or 1 but got {mode} ."
        )
    own = {} if pooled else values
    counts = {key: _threads(own, settings, key, model) for key in ("intra_op_thread_count", "inter_op_thread_count")}
    if pooled:
        warnings += [
            f"model '{model}': parameter '{key}' has no effect beside enable-global-threadpool"
            for key in counts
            if key in values
        ]
    if own.get("inter_op_thread_count", "0") != "0" and mode != 1:
        warnings.append(f"model '{model}': parameter 'inter_op_thread_count' has no effect unless execution_mode is 1")
    where = "parameter '{}' of model '" + model + "'"
    return SessionPlan(
        graph_level=_LEVELS.get(level, "ORT_ENABLE_ALL"),
        parallel=mode == 1,
        intra_op_threads=counts["intra_op_thread_count"],
        inter_op_threads=counts["inter_op_thread_count"],
        memory_arena=_flag(values, "enable_mem_arena", where.format("enable_mem_arena")),
        memory_pattern=_flag(values, "enable_mem_pattern", where.format("enable_mem_pattern")),
        shared=_flag(values, "share_session_between_instances", where.format("share_session_between_instances")),
        session_entries={key: value for key, value in values.items() if key.startswith("session.")},
        run_entries={key: value for key, value in values.items() if key == "memory.enable_memory_arena_shrinkage"},
        cuda_options=_cuda_options(values, model),
        custom_ops=tuple(config.model_operations.op_library_filename),
        global_threads=pooled,
        warnings=tuple(warnings),
    )


def plan_threads(plan: SessionPlan, cpus: int, instances: int, sharing: bool) -> Threads:
    """The pool of one session that `instances` use at once (`sharing`) or that one of them has for itself.

    An instance's own thread computes too, so a pool that n instances share counts the callers but one less: n callers
    and the pool's other threads are together n times the threads of one instance.
    """
    if plan.global_threads:
        return Threads(plan.intra_op_threads or 0, plan.inter_op_threads or 0, process_wide=True)
    each = plan.intra_op_threads or max(1, cpus // max(1, instances))
    intra = each * instances - (instances - 1) if sharing else each
    return Threads(intra, plan.inter_op_threads or (0 if plan.parallel else 1), spin=instances == 1)


def _cuda_options(values: Mapping[str, str], model: str) -> dict[str, str]:
    options = {}
    for key, names in _CUDA.items():
        value = values.get(key)
        if value is None:
            continue
        if names and value not in names:
            raise invalid(f"unsupported {key} value '{value}' is requested", f"use one of {', '.join(names)}")
        if key == "gpu_mem_limit":
            _number(values, key, f"parameter '{key}' of model '{model}'")
        options[key] = names.get(value, value)
    return options


def _threads(values: Mapping[str, str], settings: Mapping[str, str], key: str, model: str) -> int | None:
    """The model's own number, else the command line's; 0 is "not said", as in Triton."""
    what = f"parameter '{key}' of model '{model}'"
    count = _number(values, key, what)
    if not count:
        what = f"backend setting '{key}'"
        count = _number(settings, key, what)
    if count and count > _MOST_THREADS:
        raise _bad(what, str(count), f"at most {_MOST_THREADS} threads")
    return count or None


def _number(values: Mapping[str, str], key: str, what: str) -> int | None:
    text = values.get(key)
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise _bad(what, text, "a whole number >= 0")
    return number


def _flag(values: Mapping[str, str], key: str, what: str) -> bool | None:
    text = values.get(key)
    if text is None:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise _bad(what, text, "true, false, 1 or 0")


def _bad(what: str, text: str, expected: str) -> InferError:
    return invalid(f"{what} is '{text}', expected {expected}")
