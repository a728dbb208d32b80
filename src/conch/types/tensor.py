"""A tensor as it travels: a name, a type, a full shape and the bytes of the wire, never copied without need."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from conch.types.dtype import BYTES, DataType

#: Anything with a flat byte buffer: bytes, bytearray, or a C-contiguous memoryview of format "B".
Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")


class Tensor:
    """`data` holds the elements little-endian and row-major; BYTES elements are a uint32 length and then the bytes.

    `shape` is complete: with a leading batch dimension where the model batches. Its product times the element size is
    `len(data)` (for BYTES: the number of elements). Between the steps of an ensemble a `types.device.OnDevice` may
    stand for `data`, where all who read it can take that.
    """

    __slots__ = ("data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: DataType, shape: tuple[int, ...], data: Buffer) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype}, {list(self.shape)}, {len(self.data)} bytes)"


def to_numpy(datatype: DataType, shape: Sequence[int], data: Buffer) -> np.ndarray[Any, Any]:
    """A read-only view of the elements (BYTES: a new object array of `bytes`; BF16: the raw `uint16` patterns).

    Raises ValueError when `data` does not hold exactly the elements that `shape` asks for.
    """
    if datatype is BYTES:
        elements = split_bytes(data)
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(tuple(shape))
    return np.frombuffer(data, dtype=datatype.numpy).reshape(tuple(shape))


def from_numpy(datatype: DataType, array: np.ndarray[Any, Any]) -> Buffer:
    """The wire bytes of `array`: a view where its memory already is little-endian and contiguous, else a copy."""
    if datatype is BYTES:
        return join_bytes(array.ravel(order="C"))
    if array.dtype != datatype.numpy or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array, dtype=datatype.numpy)
    return array.reshape(-1).data.cast("B") if array.size else b""


def split_bytes(data: Buffer) -> list[bytes]:
    """The elements of a BYTES tensor. Raises ValueError where a length runs past the end of `data`."""
    elements: list[bytes] = []
    position, end = 0, len(data)
    raw = bytes(data)
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


def join_bytes(elements: Any) -> bytes:
    """The wire form of BYTES elements; `str` elements are encoded as UTF-8, other objects by their `str()`."""
    parts: list[bytes] = []
    pack = _LENGTH.pack
    for element in elements:
        if isinstance(element, bytes):
            raw = element
        elif isinstance(element, str):
            raw = element.encode()
        else:
            raw = str(element).encode()
        parts.append(pack(len(raw)))
        parts.append(raw)
    return b"".join(parts)


def string_offsets(data: Buffer, step: int) -> list[int]:
    """Where every `step`-th element of a BYTES tensor begins, and the end of the last; the elements were made by us."""
    raw = bytes(data)
    offsets = [0]
    position = count = 0
    while position < len(raw):
        position += 4 + _LENGTH.unpack_from(raw, position)[0]
        count += 1
        if count % step == 0:
            offsets.append(position)
    return offsets
