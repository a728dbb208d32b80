"""`pb_utils.Tensor`: a named array as Triton's Python models see it."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from conch.backend.python.errors import TritonModelException

BYTES, BF16 = 13, 14
#: The numpy type of each of Triton's data types; BF16 has none.
NUMPY = {
    1: np.dtype("?"), 2: np.dtype("u1"), 3: np.dtype("u2"), 4: np.dtype("u4"), 5: np.dtype("u8"), 6: np.dtype("i1"),
    7: np.dtype("i2"), 8: np.dtype("i4"), 9: np.dtype("i8"), 10: np.dtype("f2"), 11: np.dtype("f4"),
    12: np.dtype("f8"), 13: np.dtype("O"),
}  # fmt: skip
_KINDS = {dtype: kind for kind, dtype in NUMPY.items()}
_CPU_DEVICE = 1
_LENGTH = struct.Struct("<I")
_ndarray = np.ndarray
_NO_STRINGS = "DLPack does not have support for string tensors."
_NOT_DLPACK = (
    "Provided tensor is not supported. Tensor must be a DLPack capsule or have `__dlpack__` and `__dlpack_device__` "
    "attributes"
)


class Tensor:
    """A tensor in host memory. `_kind` is Triton's number of the data type, `_array` the elements.

    Inputs of type BYTES are decoded when the model first asks for them: until then `_array` is None and `_raw` holds
    their wire bytes. BF16 elements lie in `_array` as `uint16` patterns.
    """

    __slots__ = ("__weakref__", "_array", "_kind", "_name", "_raw", "_shape")
    _array: Any
    _kind: int
    _name: str
    _raw: Any
    _shape: tuple[int, ...]

    def __init__(self, name: str, array: Any, /) -> None:
        if type(array) is not _ndarray or type(name) is not str:
            name, array = _check_arguments(name, array)
        kind = _KINDS.get(array.dtype)
        if kind is None:
            array, kind = _convert(array)
        self._name = name
        self._array = array
        self._kind = kind

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """The elements, the same array at each call. BYTES elements are `bytes`."""
        array = self._array
        if array is None:
            array = self._array = decode(self._raw, self._shape)
        if self._kind == BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
            )
        return array  # type: ignore[no-any-return]

    def triton_dtype(self) -> int:
        return self._kind

    def shape(self) -> list[int]:
        return list(self._shape if self._array is None else self._array.shape)

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        """A DLPack capsule of the elements. BF16 needs PyTorch, the only one to know that type."""
        return self.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if self._kind == BYTES:
            raise TritonModelException("TYPE_BYTES tensors cannot be converted to DLPack.")
        if self._kind == BF16:
            import torch  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415  the model's own library

            return torch.from_numpy(self._array.view(np.int16)).view(torch.bfloat16).__dlpack__()
        array = self._array if self._array.flags.writeable else self._array.copy()
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU_DEVICE, 0)

    @staticmethod
    def from_dlpack(name: str, tensor: Any, /) -> Tensor:
        """A tensor over the memory of anything that speaks DLPack and lies in host memory."""
        if getattr(tensor, "dtype", None) is not None and str(tensor.dtype) == "torch.bfloat16":
            torch = sys.modules["torch"]
            array = tensor.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
            return _tensor(name, array, BF16)
        if type(tensor).__name__ == "PyCapsule":
            tensor = _Capsule(tensor)
        elif not hasattr(tensor, "__dlpack__") or not hasattr(tensor, "__dlpack_device__"):
            raise TritonModelException(_NOT_DLPACK)
        elif isinstance(tensor, _ndarray) and tensor.dtype.kind in "OSU":
            raise TritonModelException(_NO_STRINGS)
        array = np.from_dlpack(tensor)
        if not array.flags.c_contiguous:
            raise TritonModelException(
                "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in "
                "C-Order are supported."
            )
        return Tensor(name, array)


class _Capsule:
    """A bare DLPack capsule in the form that numpy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU_DEVICE, 0)


def input_tensor(name: str, kind: int, array: np.ndarray[Any, Any]) -> Tensor:
    """An input whose elements are at hand; BF16 as `uint16` patterns."""
    return _tensor(name, array, kind)


def bytes_input(name: str, raw: Any, shape: tuple[int, ...]) -> Tensor:
    """An input of type BYTES, from its wire bytes."""
    tensor = _tensor(name, None, BYTES)
    tensor._raw = raw
    tensor._shape = shape
    return tensor


def _tensor(name: str, array: np.ndarray[Any, Any] | None, kind: int) -> Tensor:
    tensor = Tensor.__new__(Tensor)
    tensor._name = name
    tensor._array = array
    tensor._kind = kind
    return tensor


def text(value: Any) -> Any:
    """Where Triton takes a string it takes its UTF-8 bytes too."""
    return value.decode() if isinstance(value, bytes) else value


def _check_arguments(name: Any, array: Any) -> tuple[str, np.ndarray[Any, Any]]:
    if isinstance(name, (str, bytes)) and isinstance(array, _ndarray):
        return text(name), np.asarray(array)
    raise TypeError(
        "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
        "    1. c_python_backend_utils.Tensor(arg0: str, arg1: numpy.ndarray)\n\n"
        f"Invoked with: {name!r}, {array!r}"
    )


def _convert(array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """Arrays of types that only look different: strings of fixed width, foreign byte order, bfloat16 extensions."""
    dtype = array.dtype
    if dtype.kind == "S":
        return array, BYTES
    if dtype.kind == "U":
        return array.astype(object), BYTES
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return array.view(np.uint16), BF16
    kind = _KINDS.get(dtype.newbyteorder("="))
    if kind is None:
        raise TritonModelException("NumPy dtype is not supported.")
    return array.astype(NUMPY[kind]), kind


def encode(elements: Iterable[Any]) -> bytes:
    """The wire form of BYTES elements: each a uint32 length and the bytes; what is no `bytes` goes by its `str()`."""
    parts: list[bytes] = []
    pack = _LENGTH.pack
    for element in elements:
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts.append(pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)


def decode(raw: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    elements = split(bytes(raw))
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def split(raw: bytes) -> list[bytes]:
    """The elements in the wire form of a BYTES tensor. Raises ValueError where it ends early."""
    elements: list[bytes] = []
    position, end = 0, len(raw)
    unpack = _LENGTH.unpack_from
    while position < end:
        if position + 4 > end:
            raise ValueError(f"a string length needs 4 bytes, {end - position} are left")
        (size,) = unpack(raw, position)
        position += 4
        if position + size > end:
            raise ValueError(f"a string of {size} bytes runs past the end, {end - position} bytes are left")
        elements.append(raw[position : position + size])
        position += size
    return elements
