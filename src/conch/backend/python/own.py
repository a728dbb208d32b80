"""What a model may say of a request of its own making."""

from __future__ import annotations

from typing import Any

from conch.backend.python.errors import TritonModelException
from conch.backend.python.tensor import Tensor


def check_own(
    request_id: Any, correlation_id: Any, inputs: Any, outputs: Any, model_name: Any, parameters: dict[str, Any] | None
) -> None:
    """Of a request of the model's own making, in Triton's words where it has some."""
    if not isinstance(request_id, str) or not isinstance(model_name, str):
        raise TypeError(f"'request_id' and 'model_name' must be strings, found {request_id!r} and {model_name!r}")
    if isinstance(correlation_id, bool) or not isinstance(correlation_id, (int, str)):
        raise TritonModelException("Correlation ID must be integer or string")
    _check_tensors(request_id, inputs, outputs, model_name)
    if parameters is not None:
        _check_parameters(parameters)


def _check_tensors(request_id: str, inputs: Any, outputs: Any, model_name: str) -> None:
    for tensor in inputs:
        if tensor is None:
            raise TritonModelException(
                f"Input tensor for request with id '{request_id}' and model name '{model_name}' should not be empty."
            )
        if not isinstance(tensor, Tensor):
            raise TypeError(f"'inputs' must be a list of pb_utils.Tensor, found {list(inputs)!r}")
    for name in outputs:
        if not isinstance(name, str):
            raise TypeError(f"'requested_output_names' must be a list of str, found {outputs!r}")
        if not name:
            raise TritonModelException(
                f"Requested output name for request with id '{request_id}' and model name '{model_name}' should not "
                "be empty."
            )


def _check_parameters(parameters: Any) -> None:
    if not isinstance(parameters, dict):
        raise TypeError(f"'parameters' must be a dict, found {parameters!r}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, float, str)):
            raise TritonModelException(f"Expect parameters values to have type bool/int/str, found type {type(value)}")


def check_numbers(model_version: Any, flags: Any, timeout: Any) -> None:
    for name, value, least in (("model_version", model_version, -1), ("flags", flags, 0), ("timeout", timeout, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TypeError(f"{name!r} must be a whole number from {least}, found {value!r}")
