"""Content codings (RFC 9110 8.4.1): gzip and deflate, which is a zlib stream. Memory stays within what is allowed."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from typing import Final

from conch.protocol.v2.head import RAISE_LIMIT
from conch.types.error import InferError, invalid
from conch.types.tensor import Buffer

#: What `zlib` calls the two formats; and what tells them apart by itself, for clients that name the wrong one.
_WINDOW: Final = {"gzip": 31, "deflate": 15}
_EITHER: Final = 47
_GZIP: Final = b"\x1f\x8b"
#: Compressed bytes given to zlib at once, and bytes taken from it.
_SLICE: Final = 1 << 16
_PIECE: Final = 1 << 18
#: Parts that a gzip body may consist of.
_MAX_MEMBERS: Final = 1024
#: The level that is fast: answers are read once.
_LEVEL: Final = 1


def too_large(limit: int) -> InferError:
    return invalid(f"decompressed request size exceeds the maximum allowed input size of {limit} bytes. {RAISE_LIMIT}")


class Inflater:
    """Undoes the coding of one body, in steps. Raises InferError for what is corrupt or larger than `limit` bytes."""

    def __init__(self, coding: str, body: Buffer, limit: int) -> None:
        if not len(body):
            raise invalid("nothing to be decompressed")
        #: The size that a gzip body ends with is that of its last part: of a bomb that tells the truth nothing is kept.
        self._is_gzip = bytes(body[:2]) == _GZIP
        self._keeps = not self._is_gzip or int.from_bytes(body[-4:], "little") <= limit
        self._coding = coding
        self._limit = limit
        self._body = memoryview(body)
        self._at = 0
        self._left = b""
        self._zlib = zlib.decompressobj(_EITHER)
        self._members = 1
        self._pieces: list[bytes] = []
        self._size = 0

    def step(self, most: int) -> bytes | None:
        """The whole body; None when there is more to do than `most` bytes, read or made, which have then been done."""
        stop, end = self._size + most, self._at + most
        while self._size < stop and self._at <= end:
            room = min(_PIECE, self._limit + 1 - self._size)
            data = self._left or self._next()
            piece = self._inflate(data, room)
            self._left = self._zlib.unconsumed_tail
            self._size += len(piece)
            if piece and self._keeps:
                self._pieces.append(piece)
            if self._size > self._limit:
                self._pieces.clear()
                raise too_large(self._limit)
            if self._zlib.eof:
                if self._ends():
                    return b"".join(self._pieces)
            elif not data and len(piece) < room:
                raise _corrupt(self._coding, "it is cut off")
        return None

    def _next(self) -> bytes:
        data = bytes(self._body[self._at : self._at + _SLICE])
        self._at += len(data)
        return data

    def _inflate(self, data: bytes, room: int) -> bytes:
        try:
            return self._zlib.decompress(data, room)
        except zlib.error as error:
            raise _corrupt(self._coding, str(error).rpartition(": ")[2]) from None

    def _ends(self) -> bool:
        """Whether nothing follows the part that has ended; a gzip body may have further parts (RFC 1952 2.2)."""
        rest = self._zlib.unused_data or self._next()
        if not rest:
            return True
        if not self._is_gzip or self._members >= _MAX_MEMBERS:
            raise _corrupt(self._coding, "more follows its end")
        self._members += 1
        self._zlib = zlib.decompressobj(_WINDOW["gzip"])
        self._left = rest
        return False


def _corrupt(coding: str, reason: str) -> InferError:
    return invalid(f"failed to decompress the {coding} request body: {reason}")


class Deflater:
    """Compresses `parts`, one after the other, in steps; `pieces` are what becomes of them, `size` bytes."""

    __slots__ = ("_machine", "_parts", "pieces", "size")

    def __init__(self, parts: Sequence[Buffer], window: int, level: int = _LEVEL) -> None:
        """`window` and `level` as zlib counts them."""
        self._machine = zlib.compressobj(level, zlib.DEFLATED, window)
        self._parts = deque([memoryview(part) for part in parts if len(part)])
        self.pieces: list[bytes] = []
        self.size = 0

    def step(self, most: int) -> bool:
        """Compress about `most` bytes more. True at the end."""
        parts = self._parts
        while parts and most > 0:
            part = parts[0]
            # zlib joins what it makes of one piece while it holds the GIL: little is given at a time.
            self._keep(self._machine.compress(part[:_SLICE]))
            most -= _SLICE
            if len(part) > _SLICE:
                parts[0] = part[_SLICE:]
            else:
                parts.popleft()
        if parts:
            return False
        self._keep(self._machine.flush())
        return True

    def _keep(self, piece: bytes) -> None:
        if piece:
            self.pieces.append(piece)
            self.size += len(piece)


def compress(parts: Sequence[Buffer], window: int, level: int) -> list[bytes]:
    """What a `Deflater` makes of little `parts`, at once."""
    packer = zlib.compressobj(level, zlib.DEFLATED, window)
    pieces = [piece for part in parts if (piece := packer.compress(part))]
    pieces.append(packer.flush())
    return pieces


def deflate(coding: str, parts: Sequence[Buffer]) -> bytes:
    """The body of an HTTP answer, compressed at once."""
    return b"".join(compress(parts, _WINDOW[coding], _LEVEL))


def deflater(coding: str, parts: Sequence[Buffer]) -> Deflater:
    """For the body of an HTTP answer."""
    return Deflater(parts, _WINDOW[coding])


def coded_head(head: bytes, coding: str, size: int) -> bytes:
    """An answer's HTTP head, whose last line is its Content-Length, for the same body compressed to `size` bytes."""
    start = head.rindex(b"Content-Length: ")
    return head[:start] + b"Content-Encoding: %b\r\nContent-Length: %d\r\n" % (coding.encode(), size)
