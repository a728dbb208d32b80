"""BYTES tensors for ONNX Runtime, whose Python interface knows strings as text.

Limits of that interface: an output must be UTF-8. An input may hold any bytes as long as they are UTF-8, or as long as
all elements of the tensor have the same length (one element always has).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conch.types.error import InferError, internal, invalid
from conch.types.tensor import Buffer, join_bytes, split_bytes


def to_strings(name: str, shape: tuple[int, ...], data: Buffer) -> np.ndarray[Any, Any]:
    """The elements as an array that ONNX Runtime takes. Raises InferError (INVALID_ARG) for what it cannot take."""
    elements = split_bytes(data)
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError:
        return _binary(name, shape, elements)
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


def from_strings(array: np.ndarray[Any, Any]) -> bytes:
    """The wire bytes of an array of `str`."""
    return join_bytes(array.ravel().tolist())


def not_text(model: str) -> InferError:
    """For the UnicodeDecodeError that ONNX Runtime raises over an output."""
    return internal(
        f"model '{model}' produced a string that is not UTF-8, which the onnxruntime Python interface cannot return",
        "make the model return UINT8 or INT64 tensors instead of binary strings",
    )


def _binary(name: str, shape: tuple[int, ...], elements: list[bytes]) -> np.ndarray[Any, Any]:
    """Void arrays pass through byte for byte, but have one length for all elements."""
    length = len(elements[0])
    if any(len(element) != length for element in elements):
        index = next(index for index, element in enumerate(elements) if not _is_text(element))
        raise invalid(
            f"element {index} of input '{name}' is not UTF-8 text; the onnxruntime backend takes binary strings only "
            "where all elements of the tensor have the same length",
            "send one binary string per request, encode them as base64, or send UINT8 tensors",
        )
    return np.frombuffer(b"".join(elements), dtype=f"V{length}").reshape(shape)


def _is_text(element: bytes) -> bool:
    try:
        element.decode()
    except UnicodeDecodeError:
        return False
    return True
