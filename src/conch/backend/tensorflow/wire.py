"""Reads the few fields of TensorFlow's protobuf files that a server needs, without TensorFlow.

A frozen graph may be a gigabyte of weights; fields that nobody asks for are stepped over by their length.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


class WireError(ValueError):
    """The bytes are no protobuf message."""


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field: a number for varints, the content of what has a length; the rest is left out.

    Raises WireError.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if not number:
            raise WireError(f"there is a field 0 before byte {position}")
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif kind == _BYTES:
            size, position = _varint(data, position)
            if size > end - position:
                raise WireError(f"a field of {size} bytes runs past the end, {end - position} bytes are left")
            yield number, data[position : position + size]
            position += size
        elif kind in _SIZES:
            position += _SIZES[kind]
            if position > end:
                raise WireError("a number runs past the end")
        else:
            raise WireError(f"there is a field of kind {kind} before byte {position}")


def messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """The contents of the fields of that number that have a length."""
    for each, value in fields(data):
        if each == number and isinstance(value, memoryview):
            yield value


def text(data: memoryview, number: int) -> str:
    """The last string field of that number; empty where there is none."""
    found = ""
    for value in messages(data, number):
        found = bytes(value).decode("utf-8", "replace")
    return found


def whole(data: memoryview, number: int) -> int:
    """The last varint field of that number; 0 where there is none."""
    found = 0
    for each, value in fields(data):
        if each == number and isinstance(value, int):
            found = value
    return found


def entries(data: memoryview, number: int) -> Iterator[tuple[str, memoryview]]:
    """The map of strings to messages in the fields of that number."""
    for entry in messages(data, number):
        value = memoryview(b"")
        for each in messages(entry, 2):
            value = each
        yield text(entry, 1), value


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise WireError("it ends within a number")
        if shift > 63:
            raise WireError(f"there is a number of more than 10 bytes before byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
