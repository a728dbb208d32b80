"""Large JSON answers, written in steps of about a millisecond."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from conch.protocol.v2.numbers import Writer, write_strings
from conch.types.dtype import BYTES, DataType
from conch.types.tensor import Buffer

#: Elements written in one step; and bytes of BYTES elements.
_ELEMENTS: Final = 1 << 13
_BYTES: Final = 1 << 16
#: Numbers, and bytes of BYTES elements, that take some milliseconds to write.
_MANY_NUMBERS: Final = 1 << 18
_MANY_BYTES: Final = 1 << 16

_LENGTH = struct.Struct("<I")


def is_heavy(datatype: DataType, size: int) -> bool:
    """Whether the text of a tensor of `size` bytes is written in steps."""
    return size > (_MANY_BYTES if datatype is BYTES else _MANY_NUMBERS * datatype.size)


class Rendering:
    """One answer. `finish` makes it of its text, once there is no step left. One thread at a time."""

    __slots__ = ("_finish", "_text", "_work")

    def __init__(self, work: Iterator[bytes], finish: Callable[[list[bytes]], tuple[bytes, list[Buffer]]]) -> None:
        self._work = work
        self._finish = finish
        self._text: list[bytes] = []

    def step(self) -> bool:
        """Write some more. True at the end. Raises ValueError for a tensor that is none."""
        piece = next(self._work, None)
        if piece is None:
            return True
        self._text.append(piece)
        return False

    def finish(self) -> tuple[bytes, list[Buffer]]:
        """As `Pattern.encode`."""
        return self._finish(self._text)


def write(datatype: DataType, data: Buffer) -> Iterator[bytes]:
    """The JSON array of a tensor, in pieces. Raises ValueError where BYTES elements run past the end."""
    before = b"["
    for text in _strings(data) if datatype is BYTES else _numbers(datatype, data):
        yield before + text[1:-1]
        before = b","
    yield b"]" if before == b"," else b"[]"


def _numbers(datatype: DataType, data: Buffer) -> Iterator[bytes]:
    size = _ELEMENTS * datatype.size
    writer = Writer(datatype, size)
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        yield (writer if len(piece) == size else Writer(datatype, len(piece))).write(piece)


def _strings(data: Buffer) -> Iterator[bytes]:
    for elements in _cut_strings(memoryview(data)):
        yield write_strings(elements)


def _cut_strings(data: memoryview) -> Iterator[Sequence[bytes]]:
    elements: list[bytes] = []
    at, end, stop = 0, len(data), _BYTES
    while at < end:
        if at + _LENGTH.size > end:
            raise ValueError(f"a string length needs 4 bytes, {end - at} are left")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > end:
            raise ValueError(f"a string of {size} bytes runs past the end, {end - at} bytes are left")
        elements.append(bytes(data[at : at + size]))
        at += size
        if at >= stop:
            yield elements
            elements, stop = [], at + _BYTES
    if elements:
        yield elements
