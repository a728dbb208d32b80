"""The module that models import as `triton_python_backend_utils` (and `c_python_backend_utils`)."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from conch.backend.python.autocomplete import ModelConfig
from conch.backend.python.called import ResponseIterator
from conch.backend.python.calls import runtime
from conch.backend.python.custom import COUNTER, GAUGE, HISTOGRAM, Metric, MetricFamily, MetricKind
from conch.backend.python.errors import ErrorCode, TritonError, TritonModelException
from conch.backend.python.manage import is_model_ready, load_model, unload_model
from conch.backend.python.request import InferenceRequest, InferenceTrace
from conch.backend.python.response import InferenceResponse, InferenceResponseSender
from conch.backend.python.tensor import Tensor, encode, split

__all__ = [
    "COUNTER", "GAUGE", "HISTOGRAM", "TRITONSERVER_MEMORY_CPU", "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END", "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL", "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL", "TRITON_STRING_TO_NUMPY", "ErrorCode", "InferenceRequest",
    "InferenceResponse", "InferenceResponseSender", "InferenceTrace", "Logger", "MemoryType", "Metric", "MetricFamily",
    "MetricKind", "ModelConfig", "PreferredMemory", "ResponseIterator", "Tensor", "TritonError",
    "TritonModelException", "deserialize_bytes_tensor", "get_input_config_by_name", "get_input_tensor_by_name",
    "get_model_dir", "get_output_config_by_name", "get_output_tensor_by_name", "is_model_ready", "load_model",
    "numpy_to_triton_type", "serialize_byte_tensor", "triton_string_to_numpy", "triton_to_numpy_type",
    "unload_model", "using_decoupled_model_transaction_policy",
]  # fmt: skip

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2

TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    "TYPE_BOOL": bool, "TYPE_UINT8": np.uint8, "TYPE_UINT16": np.uint16, "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64, "TYPE_INT8": np.int8, "TYPE_INT16": np.int16, "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64, "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}  # fmt: skip
_NUMPY_BY_NUMBER = {
    1: np.bool_, 2: np.uint8, 3: np.uint16, 4: np.uint32, 5: np.uint64, 6: np.int8, 7: np.int16, 8: np.int32,
    9: np.int64, 10: np.float16, 11: np.float32, 12: np.float64, 13: np.object_,
}  # fmt: skip


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of `TYPE_FP32` and the like. Raises KeyError for others (BF16 has none)."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of a data type's number, None where there is none."""
    return _NUMPY_BY_NUMBER.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number of Triton's data type, None where there is none."""
    for number, numpy_type in _NUMPY_BY_NUMBER.items():
        if data_type == numpy_type:
            return number
    return 13 if data_type == np.bytes_ else None


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    for tensor in inference_request.inputs():
        if tensor._name == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    for tensor in inference_response.output_tensors():
        if tensor._name == name:
            return tensor
    return None


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    return _named(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    return _named(model_config.get("output", ()), name)


def _named(properties: Any, name: str) -> Any:
    return next((each for each in properties if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def serialize_byte_tensor(input_tensor: np.ndarray[Any, Any]) -> Any:
    """The elements in C order, each as 4 bytes of length and its bytes; `()` without elements, None for numbers."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return encode(input_tensor.ravel().tolist())


def deserialize_bytes_tensor(encoded_tensor: Any) -> np.ndarray[Any, Any]:
    """The other way round: a one-dimensional object array of `bytes`."""
    elements = split(bytes(encoded_tensor))
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def get_model_dir() -> str:
    """The folder of this version's files."""
    return runtime.model_directory


class _LogLevel(enum.IntEnum):
    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


class Logger:
    """Writes into the server's log, under the file and line of the caller."""

    LogLevel = _LogLevel
    INFO = _LogLevel.INFO
    WARNING = _LogLevel.WARNING
    ERROR = _LogLevel.ERROR
    VERBOSE = _LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: _LogLevel = _LogLevel.INFO) -> None:
        _log(message, level)

    @staticmethod
    def log_info(message: str) -> None:
        _log(message, _LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        _log(message, _LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        _log(message, _LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        _log(message, _LogLevel.VERBOSE)


def _log(message: str, level: _LogLevel) -> None:
    calls = runtime.calls
    if type(message) is not str or not isinstance(level, _LogLevel):
        raise TypeError(
            "log(): incompatible function arguments. The following argument types are supported:\n"
            "    1. (message: str, level: c_python_backend_utils.Logger.LogLevel = <LogLevel.INFO: 0>) -> None\n\n"
            f"Invoked with: {message!r}, {level!r}"
        )
    if calls is None or (level is _LogLevel.VERBOSE and not calls.verbose):
        return
    frame = sys._getframe(2)
    calls.log(int(level), PurePath(frame.f_code.co_filename).name, frame.f_lineno, message)


class MemoryType(enum.IntEnum):
    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU


class PreferredMemory:
    """Where the outputs of a call to another model should lie. They lie in host memory, whatever is preferred."""

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        if not isinstance(preferred_memory_type, MemoryType) or not isinstance(preferred_device_id, int):
            raise TypeError(
                "__init__(): incompatible constructor arguments. PreferredMemory takes preferred_memory_type, a "
                "pb_utils.MemoryType, and preferred_device_id, an int, found "
                f"{preferred_memory_type!r}, {preferred_device_id!r}"
            )
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id
