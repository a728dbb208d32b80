"""Long arrays of tensor data in a JSON text: where they are, and where they can be cut. No numbers are read here.

Every cut is at a comma between two elements, so that the pieces can be parsed one by one. What cannot be cut for sure
is left alone: nothing here judges whether a text is JSON.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

from conch.protocol.v2.faults import MAX_DEPTH

#: Bytes looked at in one step, and about the size of a piece.
PIECE: Final = 1 << 16

_START = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*')
#: Two matches of `_START` that overlap windows of a search are found whole up to this length.
_OVERLAP: Final = 256
_STRINGS = re.compile(rb'(?:[ \t\r\n]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+,)++', re.DOTALL)
_LAST_STRING = re.compile(rb'[ \t\r\n]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"[ \t\r\n]*+(?=\])', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]]")
_BLANK: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of an array: `text[start:stop]`, which begins `before` arrays deep and ends `after` deep, at least 1."""

    start: int
    stop: int
    before: int = 1
    after: int = 1

    def text(self, text: memoryview) -> bytes:
        """The elements as an array of their own; empty where there are none on either side of a comma."""
        middle = bytes(text[self.start : self.stop]).strip(_BLANK)
        if not middle or middle[:1] == b"]" or middle[-1:] == b"[":
            return b""
        return b"[" * self.before + middle + b"]" * self.after


@dataclass(slots=True)
class LongArray:
    """`text[start:stop]` is the array with its brackets."""

    start: int
    stop: int = -1
    pieces: list[Piece] = field(default_factory=list)


def find_arrays(text: memoryview, size: int = PIECE) -> Generator[None, None, list[LongArray]]:
    """The members `data` that are longer than a piece and hold strings alone, or neither strings nor objects.

    They are cut into pieces of about `size` bytes. Yields after each step.
    """
    found: list[LongArray] = []
    at = 0
    while at < len(text):
        match = _START.search(text, at, at + size + _OVERLAP)
        if match is None:
            at += size
            yield
            continue
        at = match.end()
        array = LongArray(match.start() + match[0].index(b"["))
        ended = yield from (_cut_strings if bytes(text[at : at + 1]) == b'"' else _cut_plain)(text, at, size, array)
        if ended:
            at = array.stop
            if len(array.pieces) > 1:
                found.append(array)
    return found


def _cut_strings(text: memoryview, at: int, size: int, array: LongArray) -> Generator[None, None, bool]:
    reach = size
    while True:
        stop = at + reach
        last = _LAST_STRING.match(text, at, stop)
        many = None if last is not None else _STRINGS.match(text, at, stop)
        if last is not None:
            array.pieces.append(Piece(at, last.end()))
            array.stop = last.end() + 1
            return True
        if many is not None:
            array.pieces.append(Piece(at, many.end() - 1))
            at, reach = many.end(), size
        elif stop < len(text):
            reach *= 4  # a string that is longer than that
        else:
            return False
        yield


def _cut_plain(text: memoryview, at: int, size: int, array: LongArray) -> Generator[None, None, bool]:
    depth = 1
    while True:
        window = bytes(text[at : at + size])
        if depth <= window.count(b"]"):
            end = _end(window, depth)
            if end >= 0:
                array.pieces.append(Piece(at, at + end, depth, 1))
                array.stop = at + end + 1
                return not _has_others(window[:end])
        cut = window.rfind(b",")
        if cut < 0 or _has_others(window):
            return False
        piece = window[:cut]
        after = depth + piece.count(b"[") - piece.count(b"]")
        array.pieces.append(Piece(at, at + cut, depth, after))
        if after > MAX_DEPTH:
            return False
        at, depth = at + cut + 1, after
        yield


def _has_others(window: bytes) -> bool:
    return b'"' in window or b"{" in window


def _end(window: bytes, depth: int) -> int:
    """Where the bracket is that closes the array; -1 where it is not in this window."""
    for match in _BRACKETS.finditer(window):
        depth += 1 if match[0] == b"[" else -1
        if not depth:
            return match.start()
    return -1
