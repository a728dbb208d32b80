"""Large JSON requests, read in steps: the data of their tensors piece by piece, all the rest as a text without it.

The parsers hold the interpreter's lock for as long as they read; of a piece that is about a millisecond.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator
from typing import Final

import msgspec
import simdjson

from conch.protocol.v2.asked import Asked, AskedInput
from conch.protocol.v2.bulk import Packed, pack
from conch.protocol.v2.carving import PIECE, LongArray, find_arrays
from conch.protocol.v2.lenient import parse
from conch.protocol.v2.numbers import Reader, flatten
from conch.types.dtype import BY_NAME, BYTES
from conch.types.error import InferError
from conch.types.tensor import Buffer

#: JSON of so many bytes takes some milliseconds to read; of types that are read element by element, much less does.
#: Below that a thread would only make it slower: an image of 1.5 MB took 3.6 ms instead of 1.9.
_HEAVY: Final = 1 << 22
SLOW: Final = 1 << 16
_SLOW_TYPE = re.compile(rb'"datatype"[ \t\r\n]*:[ \t\r\n]*"(?:BYTES|BOOL|BF16)"')
#: Where a first tensor's type is looked for.
_HEAD: Final = 4096
#: The longest text that is left when the tensors have been taken out.
_MAX_REST: Final = 1 << 18
#: Stands for an array that has been taken out. No client can know it.
_MARK: Final = secrets.token_hex(16)

_decode = msgspec.json.Decoder(Asked).decode


def is_heavy(text: Buffer) -> bool:
    """Whether JSON of at least `SLOW` bytes would hold up the event loop."""
    return len(text) >= _HEAVY or _SLOW_TYPE.search(text, 0, _HEAD) is not None


class Reading:
    """Reads one request in steps. `asked` is None where it is a matter for the usual parsers. One thread at a time."""

    __slots__ = ("_work", "asked")

    def __init__(self, text: Buffer, size: int = PIECE) -> None:
        """`size`: about so many bytes are read in a step."""
        self.asked: Asked | None = None
        self._work = _read(memoryview(text), size)

    def step(self) -> bool:
        """Read about a piece more. True at the end."""
        try:
            next(self._work)
        except StopIteration as end:
            self.asked = end.value
            return True
        return False


def _read(text: memoryview, size: int) -> Generator[None, None, Asked | None]:
    arrays = yield from find_arrays(text, size)
    if not arrays or len(text) - sum([each.stop - each.start for each in arrays]) > _MAX_REST:
        return None
    try:
        asked = _decode(_without(text, arrays))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # What was left alone may hold an element of any kind.
    marked = {
        each.data[0]: each
        for each in asked.inputs
        if type(each.data) is list and len(each.data) == 1 and type(each.data[0]) is str
    }
    owners = [marked.get(_mark(number)) for number in range(len(arrays))]
    for array, owner in zip(arrays, owners, strict=True):
        if owner is None:
            return None  # it was within a string, say
        data = yield from _join(text, array, owner)
        if data is None:
            return None
        owner.data = data  # type: ignore[assignment]
    return asked


def _mark(number: int) -> str:
    return f"{_MARK}{number}"


def _without(text: memoryview, arrays: list[LongArray]) -> bytes:
    parts: list[Buffer] = []
    at = 0
    for number, array in enumerate(arrays):
        parts += text[at : array.start], b'["%b"]' % _mark(number).encode()
        at = array.stop
    return b"".join([*parts, text[at:]])


def _join(text: memoryview, array: LongArray, owner: AskedInput) -> Generator[None, None, Packed | None]:
    """The array as wire bytes; None where its owner's type does not fit."""
    parser = simdjson.Parser()
    found: list[bytes] = []
    count = 0
    for piece in array.pieces:
        part = _pack(parser, owner.datatype, piece.text(text))
        if part is None:
            return None
        found.append(part.raw)
        count += part.count
        yield
    return Packed(b"".join(found), count)


def _pack(parser: simdjson.Parser, datatype: str, text: bytes) -> Packed | None:
    known = BY_NAME.get(datatype)
    if not text or known is None:
        return None
    if datatype[0] in "FIU":
        try:
            packed = pack(datatype, parser.parse(text))
        except (ValueError, TypeError, RuntimeError):
            packed = None  # NaN, numbers out of range
        if isinstance(packed, Packed):
            return packed
    try:
        flat, _ = flatten(parse(text))
        return Packed(Reader("", known, -1 if known is BYTES else len(flat)).read(flat), len(flat))
    except InferError:
        return None
