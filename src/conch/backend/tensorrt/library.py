"""Opens TensorRT and CUDA, and turns their refusals into our errors. The only importer of either."""

from __future__ import annotations

import ctypes
import logging
import threading
from functools import cache
from pathlib import Path
from typing import Any, Final

from conch.backend.tensorrt.options import EnginePlan
from conch.types.error import Code, InferError, internal, invalid

_LOG: Final = logging.getLogger(__name__)
_lock: Final = threading.Lock()
#: Plugin libraries that the process holds; they stay.
_plugins: Final[dict[str, Any]] = {}


class _Told(threading.local):
    """For which model this thread calls TensorRT, and the last error that it heard of meanwhile."""

    model = ""
    error = ""


_told: Final = _Told()


def tensorrt() -> Any:
    """The tensorrt package. Raises InferError where it is not installed."""
    try:
        import tensorrt  # noqa: PLC0415  heavy; a server without engines does not pay for it
    except ImportError as error:
        raise invalid(
            "unable to find backend library for backend 'tensorrt', try specifying runtime on the model configuration.",
            f"pip install 'conch[tensorrt]' ({error})",
        ) from None
    return tensorrt


def cuda() -> Any:
    """CUDA's runtime, with at least one GPU. Raises InferError."""
    try:
        from cuda.bindings import runtime  # noqa: PLC0415  heavy
    except ImportError as error:
        raise invalid(
            "unable to find the CUDA runtime for backend 'tensorrt'", f"pip install cuda-python ({error})"
        ) from None
    code, count = runtime.cudaGetDeviceCount()
    if int(code) or not count:
        raise InferError(
            Code.UNAVAILABLE,
            f"backend 'tensorrt' needs a GPU, and CUDA finds none (error {int(code)})",
            "serve the model on a machine with an NVIDIA driver, or its ONNX file with backend onnxruntime",
        )
    return runtime


def checked(answer: Any) -> Any:
    """What a call of CUDA returns besides its error code. Raises InferError unless that is 0."""
    code, *values = answer
    if int(code):
        raise internal(f"CUDA error {int(code)}: {getattr(code, 'name', code)}")
    return values[0] if len(values) == 1 else tuple(values)


def find_engine(directory: Path, filename: str, model: str) -> Path:
    path = directory / (filename or "model.plan")
    if not path.is_file():
        raise InferError(
            Code.UNAVAILABLE,
            f"unable to find '{path}' for model instance '{model}'",
            "put the engine there, or name it in default_model_filename",
        )
    return path


def open_engine(path: Path, plan: EnginePlan, model: str) -> Any:
    """The `tensorrt.ICudaEngine` of a file, on the device that is current. Raises InferError."""
    trt = tensorrt()
    logger = _logger(trt)
    calling_for(model)
    with _lock:
        for plugin in plan.plugins:
            _plugin(plugin)
        trt.init_libnvinfer_plugins(logger, "")
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = plan.host_code
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise internal(
            f"unable to load model '{model}', TensorRT {trt.__version__} cannot read '{path}': "
            f"{last_error() or 'it gives no reason'}",
            "engines run on the TensorRT version and the GPU that they were built for; build it again here, or build "
            "it version-compatible and use --backend-config=tensorrt,version-compatible=true",
        )
    return engine


def _plugin(path: str) -> None:
    if path in _plugins:
        return
    try:
        _plugins[path] = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise invalid(
            f"unable to load TensorRT plugin library '{path}': {error}", "see --backend-config=tensorrt,plugins=..."
        ) from None


def calling_for(model: str) -> None:
    """What TensorRT says from now on in this thread, it says of `model`."""
    _told.model, _told.error = model, ""


def last_error() -> str:
    """What TensorRT has last complained of since `calling_for`; empty if it has not."""
    return _told.error


@cache
def _logger(trt: Any) -> Any:
    """One for the process: plugins, and TensorRT itself, call the first that they were given for ever."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Writes to our log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # TensorRT has threads of its own, too.
            who = f"model '{_told.model}': " if _told.model else ""
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                _told.error = message
                _LOG.error("%sTensorRT: %s", who, message)
            elif severity.name == "WARNING":
                _LOG.warning("%sTensorRT: %s", who, message)

    return Logger()
