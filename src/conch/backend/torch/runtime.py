"""PyTorch itself: imported on first use, asked for its types, switched and set. The only importer in the server."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np

from conch.backend.torch.parameters import TorchPlan
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import InferError, internal, invalid

_LOG: Final = logging.getLogger(__name__)
#: Names of torch's types beside ours.
_TYPES: Final = (
    ("bool", dtype.BOOL),
    ("uint8", dtype.UINT8),
    ("uint16", dtype.UINT16),
    ("uint32", dtype.UINT32),
    ("uint64", dtype.UINT64),
    ("int8", dtype.INT8),
    ("int16", dtype.INT16),
    ("int32", dtype.INT32),
    ("int64", dtype.INT64),
    ("float16", dtype.FP16),
    ("float32", dtype.FP32),
    ("float64", dtype.FP64),
    ("bfloat16", dtype.BF16),
)

_lock: Final = threading.Lock()
#: The size of the process-wide pool between operators, once a model has set it.
_inter_op: list[int] = []
#: Switches of TorchScript that are process-wide -> what the model that set it last wanted, and its name.
_switched: Final[dict[str, tuple[bool, str]]] = {}


class _Settings(threading.local):
    """What PyTorch was told last in this thread: threads within operators, whether graphs are optimised."""

    value: tuple[int, bool] | None = None


_settings: Final = _Settings()


@cache
def runtime() -> Any:
    """The torch package. Raises InferError where it is not installed."""
    try:
        import torch  # noqa: PLC0415  heavy; a server without PyTorch models does not pay for it
    except ImportError as error:
        raise invalid(
            "unable to find backend library for backend 'pytorch', try specifying runtime on the model configuration.",
            f"pip install 'conch[torch]' ({error})",
        ) from None
    with quiet():
        # It warns once per process that memory it is given is read-only; we give it such, and copy where it writes.
        torch.from_numpy(np.frombuffer(b"\0", np.uint8))
    return torch


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TorchScript warns of its own deprecation at every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def datatypes() -> dict[Any, DataType]:
    """torch's types -> ours."""
    torch = runtime()
    return {getattr(torch, name): ours for name, ours in _TYPES if hasattr(torch, name)}


@cache
def torch_types() -> dict[DataType, Any]:
    """Our types -> torch's."""
    return {ours: theirs for theirs, ours in datatypes().items()}


def settle_thread(threads: int, optimized: bool) -> None:
    """What holds for the calling thread alone. Cheap when nothing changes."""
    wanted = (threads, optimized)
    if _settings.value != wanted:
        torch = runtime()
        # Each thread has a number of its own (OpenMP and MKL); this sets the caller's.
        torch.set_num_threads(threads)
        torch._C._set_graph_executor_optimize(optimized)
        _settings.value = wanted


def settle_process(plan: TorchPlan, model: str) -> None:
    """What holds for all PyTorch models of the server; the first model's number of threads stands, as in Triton."""
    with _lock:
        wanted = plan.inter_op_threads
        if wanted is not None and not _inter_op:
            try:
                runtime().set_num_interop_threads(wanted)
            except RuntimeError as error:
                _LOG.warning("model '%s': parameter 'INTER_OP_THREAD_COUNT' has no effect: %s", model, error)
            _inter_op.append(runtime().get_num_interop_threads())
        if wanted is not None and _inter_op[0] != wanted:
            _LOG.warning(
                "model '%s': parameter 'INTER_OP_THREAD_COUNT' has no effect: PyTorch has %d threads between operators "
                "already, and one pool for all models", model, _inter_op[0],
            )  # fmt: skip
        for name, value in _switches(plan).items():
            before = _switched.get(name)
            if before is not None and before[0] is not value and before[1] != model:
                _LOG.warning(
                    "models '%s' and '%s' want the process-wide switch '%s' of TorchScript differently: it is turned "
                    "before each run, and may be as the other wants it", model, before[1], name,
                )  # fmt: skip
            _switched[name] = (value, model)


def switch(plan: TorchPlan) -> None:
    """Turn TorchScript's process-wide switches as the model wants them, as Triton does before each run."""
    internals = runtime()._C
    turn = {
        "ENABLE_JIT_EXECUTOR": internals._jit_set_profiling_executor,
        "ENABLE_JIT_PROFILING": internals._jit_set_profiling_mode,
        "ENABLE_TENSOR_FUSER": internals._jit_set_texpr_fuser_enabled,
    }
    for name, value in _switches(plan).items():
        turn[name](value)


def release_gpus() -> None:
    """Give back what PyTorch keeps of GPUs' memory for later: other models, and frameworks, may need it. As Triton."""
    gpus = runtime().cuda
    if gpus.is_initialized():
        gpus.empty_cache()


def execute_failure(error: Exception) -> InferError:
    """What a model raised, in Triton's form."""
    return internal(f"PyTorch execute failure: {error}")


def _switches(plan: TorchPlan) -> dict[str, bool]:
    asked = {
        "ENABLE_JIT_EXECUTOR": plan.jit_executor,
        "ENABLE_JIT_PROFILING": plan.jit_profiling,
        "ENABLE_TENSOR_FUSER": plan.tensor_fuser,
    }
    return {name: value for name, value in asked.items() if value is not None}
