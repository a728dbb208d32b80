"""Triton's `Tensor`: a data type, a shape and memory, which other libraries take by DLPack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from conch.tritonserver.enums import DataType, MemoryType
from conch.tritonserver.errors import InvalidArgumentError, UnsupportedError
from conch.types import dtype as datatypes


class Tensor:
    """Memory of the host; BYTES are objects and have no memory to share."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    @classmethod
    def from_dlpack(cls, value: Any) -> Self:
        return cls(value._array if isinstance(value, Tensor) else np.from_dlpack(value))

    @classmethod
    def from_numpy(cls, array: np.ndarray[Any, Any]) -> Self:
        return cls(array)

    @classmethod
    def from_bytes_array(cls, array: Sequence[bytes] | np.ndarray[Any, Any]) -> Self:
        return cls(np.asarray(array, dtype=object))

    @classmethod
    def from_string_array(cls, array: Sequence[str] | np.ndarray[Any, Any]) -> Self:
        texts = np.asarray(array, dtype=object)
        made = np.empty(texts.shape, dtype=object)
        for index, text in np.ndenumerate(texts):
            made[index] = text.encode()
        return cls(made)

    @property
    def data_type(self) -> DataType:
        if self._array.dtype.kind in "OSU":
            return DataType.BYTES
        found = [each for each in datatypes.ALL if each.numpy == self._array.dtype and each is not datatypes.BF16]
        if not found:
            raise InvalidArgumentError(f"an array of {self._array.dtype} is no tensor")
        return DataType(found[0].number)

    @property
    def shape(self) -> list[int]:
        return list(self._array.shape)

    @property
    def memory_type(self) -> MemoryType:
        return MemoryType.CPU

    @property
    def memory_type_id(self) -> int:
        return 0

    @property
    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self._array.nbytes)

    @property
    def memory_buffer(self) -> memoryview:
        return np.ascontiguousarray(self._array).data.cast("B")

    def to_numpy(self) -> np.ndarray[Any, Any]:
        return self._array

    def to_bytes_array(self) -> np.ndarray[Any, Any]:
        self._check_bytes()
        return self._array

    def to_string_array(self) -> np.ndarray[Any, Any]:
        """Texts in UTF-8, as numpy's."""
        self._check_bytes()
        texts = [each.decode() if isinstance(each, bytes) else str(each) for each in self._array.reshape(-1)]
        return np.array(texts, dtype=np.str_).reshape(self._array.shape)

    def to_host(self) -> Tensor:
        return self

    def to_device(self, device: Any) -> Tensor:
        if device in ("cpu", MemoryType.CPU, (MemoryType.CPU, 0)):
            return self
        raise UnsupportedError(f"tensors of this server are in the host's memory, {device!r} is not")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self._array, dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        # Answers are views that cannot be written to, which DLPack before its version 1 does not know.
        array = self._array if self._array.flags.writeable else self._array.copy()
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def _check_bytes(self) -> None:
        if self.data_type is not DataType.BYTES:
            raise InvalidArgumentError(f"the tensor is {self.data_type.name}, expected BYTES")

    def __repr__(self) -> str:
        return f"Tensor({self.data_type.name}, {self.shape})"
