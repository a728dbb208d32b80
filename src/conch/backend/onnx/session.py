"""Opens ONNX Runtime sessions, and turns its exceptions into our errors. The only importer of onnxruntime."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Final

from conch.backend.onnx.options import SessionPlan, Threads
from conch.backend.onnx.providers import CPU, Provider, check_active
from conch.types.error import Code, InferError, internal, invalid

_LOG: Final = logging.getLogger(__name__)
_ERROR: Final = re.compile(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", re.DOTALL)
#: ONNX Runtime's severities: errors reach us as exceptions, only what is fatal need be printed.
_FATAL: Final = 4

_pool_lock: Final = threading.Lock()
#: The sizes of the process-wide thread pool once it is made: ONNX Runtime allows that once per process.
_pool: list[tuple[int, int]] = []


def runtime() -> Any:
    """The onnxruntime package. Raises InferError where it is not installed."""
    try:
        import onnxruntime  # noqa: PLC0415  heavy; a server without ONNX models does not pay for it
    except ImportError as error:
        raise invalid(
            "unable to find backend library for backend 'onnxruntime', "
            "try specifying runtime on the model configuration.",
            f"pip install 'conch[onnx]' ({error})",
        ) from None
    return onnxruntime


def find_model(directory: Path, filename: str, model: str) -> Path:
    """The ONNX file in a version directory: `filename`, by default model.onnx, or model.onnx in a folder so named.

    External data lies beside the file, under the names that it gives. Raises InferError when there is no such file.
    """
    path = directory / (filename or "model.onnx")
    if path.is_dir():
        path = path / "model.onnx"
    if not path.is_file():
        raise InferError(
            Code.UNAVAILABLE,
            f"unable to find '{path}' for model instance '{model}'",
            "put the ONNX file there, or name it in default_model_filename",
        )
    return path


def peek(path: Path) -> Any:
    """A session to read the signature from: nothing is optimised or prepared. Raises InferError."""
    ort = runtime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return _open(ort, path, options, [CPU])


def open_session(model: str, path: Path, plan: SessionPlan, threads: Threads, providers: list[Provider]) -> Any:
    """A session to compute with. Raises InferError for files and options that ONNX Runtime does not accept."""
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, plan.graph_level)
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if plan.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    if plan.memory_arena is not None:
        options.enable_cpu_mem_arena = plan.memory_arena
    if plan.memory_pattern is not None:
        options.enable_mem_pattern = plan.memory_pattern
    _set_threads(ort, options, threads)
    try:
        for key, value in plan.session_entries.items():
            options.add_session_config_entry(key, value)
        for library in plan.custom_ops:
            options.register_custom_ops_library(_library(path, library))
    except Exception as error:  # noqa: BLE001  whatever it is, it is the config's
        raise runtime_error(error) from None
    preload(frozenset([name for name, _ in providers]))
    session = _open(ort, path, options, providers)
    check_active(model, providers, session.get_providers())
    return session


@cache
def preload(providers: frozenset[str]) -> None:
    """Load the libraries of these providers from the packages of pip, where their own search does not look; once."""
    if "CUDAExecutionProvider" in providers:
        load = getattr(runtime(), "preload_dlls", None)
        if load is not None:
            load()
    if "TensorrtExecutionProvider" in providers:
        # To import it is to load TensorRT. Where it fails, the provider does, and says what it lacks.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt_libs")


def run_options(plan: SessionPlan) -> Any:
    """The options of each run: silent, with the config's entries."""
    options = runtime().RunOptions()
    options.log_severity_level = _FATAL
    for key, value in plan.run_entries.items():
        options.add_run_config_entry(key, value)
    return options


def runtime_error(error: Exception) -> InferError:
    """What ONNX Runtime raised, in Triton's form: `onnx runtime error <number>: <text>`."""
    match = _ERROR.match(str(error))
    number, text = match.groups() if match else ("1", f"{error or type(error).__name__}")
    return internal(f"onnx runtime error {number}: {text.strip()}")


def _set_threads(ort: Any, options: Any, threads: Threads) -> None:
    if threads.process_wide:
        _make_pool(ort, threads)
        return
    options.intra_op_num_threads = threads.intra
    options.inter_op_num_threads = threads.inter
    if threads.intra > 1:
        # By default threads wait in a loop for the next run and keep whole CPUs from the server's own thread (measured:
        # 2.0 s of CPU where 0.4 s do). The model's `session.*` entries come later and win.
        entry = ("force_spinning_stop", "1") if threads.spin else ("intra_op.allow_spinning", "0")
        options.add_session_config_entry(f"session.{entry[0]}", entry[1])


def _make_pool(ort: Any, threads: Threads) -> None:
    sizes = (threads.intra, threads.inter)
    with _pool_lock:
        if not _pool:
            ort.set_global_thread_pool_sizes(*sizes)
            _pool.append(sizes)
        elif _pool[0] != sizes:
            _LOG.warning("the process-wide ONNX Runtime pool has %s threads already, %s has no effect", _pool[0], sizes)


def _open(ort: Any, path: Path, options: Any, providers: list[Provider]) -> Any:
    if _pool:
        # Once there is a process-wide pool, every session must use it.
        options.use_per_session_threads = False
    with warnings.catch_warnings():
        # It warns of providers that it lacks; `check_active` makes errors of them.
        warnings.simplefilter("ignore")
        try:
            # No falling back: it would print, and go on where nobody asked it to.
            return ort.InferenceSession(str(path), sess_options=options, providers=providers, enable_fallback=0)
        except Exception as error:  # noqa: BLE001  its exceptions have no common base
            raise runtime_error(error) from None


def _library(path: Path, name: str) -> str:
    """Triton hands the name to the loader as it stands; beside the model file is looked at first."""
    for folder in (path.parent, path.parent.parent):
        if (folder / name).is_file():
            return str(folder / name)
    return name
