"""Request bodies on their way in: memory grows as bytes really arrive, never as a client announces."""

from __future__ import annotations

from typing import Final

import numpy as np

from conch.transport.heads import BadRequestError
from conch.types.tensor import Buffer

#: The first allocation for a large body, of which the system gives what is written to; each further one is four times
#: the last.
_FIRST: Final = 64 << 20
#: Shorter bodies are collected as the pieces in which they come.
SMALL: Final = 1 << 16

#: Triton's limit.
MAX_CHUNKS: Final = 65536
_MAX_CHUNK_LINE: Final = 4096
_MAX_TRAILERS: Final = 65536
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


def _memory(size: int) -> memoryview:
    """Memory that the system gives page by page as it is written, unlike a bytearray's, which is zeroed at once."""
    return np.empty(size, np.uint8).data


class SizedBody:
    """A body of known length."""

    __slots__ = ("_length", "_memory", "_received")

    def __init__(self, length: int) -> None:
        self._length = length
        self._received = 0
        self._memory = _memory(min(length, _FIRST))

    def room(self) -> memoryview:
        """Where the next bytes belong; at least one byte long until the body is complete."""
        if self._received == len(self._memory):
            grown = _memory(min(self._length, 4 * self._received))
            grown[: self._received] = self._memory
            self._memory = grown
        return self._memory[self._received :]

    @property
    def missing(self) -> int:
        """Bytes that have not come yet."""
        return self._length - self._received

    def filled(self, size: int) -> None:
        """So many bytes have been written where `room` pointed."""
        self._received += size

    def feed(self, data: Buffer, at: int) -> int:
        """Take what belongs to the body from `data[at:]`; where the rest begins."""
        source = memoryview(data)
        while at < len(data) and self._received < self._length:
            room = self.room()
            size = min(len(room), len(data) - at)
            room[:size] = source[at : at + size]
            self._received += size
            at += size
        return at

    @property
    def complete(self) -> bool:
        return self._received == self._length

    def take(self) -> Buffer:
        return self._memory


class SmallBody:
    """A body of known length, at most `SMALL`."""

    __slots__ = ("_missing", "_pieces")

    def __init__(self, length: int) -> None:
        self._missing = length
        self._pieces: list[bytes] = []

    def feed(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._missing]
        self._pieces.append(piece)
        self._missing -= len(piece)
        return at + len(piece)

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def take(self) -> Buffer:
        return b"".join(self._pieces)


class ChunkedBody:
    """A body in chunks (RFC 9112 7.1), read strictly; extensions and trailers are dropped. Raises BadRequestError."""

    __slots__ = ("_body", "_chunks", "_left", "_limit", "_line", "_state", "_trailers", "complete")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = bytearray()
        self._chunks = 0
        self._left = 0
        self._line = b""
        self._trailers = 0
        self._state = self._size
        self.complete = False

    def feed(self, data: bytes, at: int) -> int:
        while at < len(data) and not self.complete:
            at = self._state(data, at)
        return at

    def take(self) -> Buffer:
        return bytes(self._body) if len(self._body) <= SMALL else memoryview(self._body)

    def _read_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """The line that ends in `data`, without its CRLF, or None; and where to go on."""
        end = data.find(b"\n", at)
        stop = len(data) if end < 0 else end + 1
        self._line += data[at:stop]
        if len(self._line) > _MAX_CHUNK_LINE:
            raise BadRequestError(400, "malformed chunked body: a line is too long")
        if end < 0:
            return None, stop
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise BadRequestError(400, "malformed chunked body: lines must end with CRLF")
        return line[:-2], stop

    def _size(self, data: bytes, at: int) -> int:
        line, at = self._read_line(data, at)
        if line is None:
            return at
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not digits or len(digits) > 16 or not _HEX.issuperset(digits):
            raise BadRequestError(400, "malformed chunked body: a chunk must begin with its size in hexadecimal digits")
        self._left = int(digits, 16)
        if not self._left:
            self._state = self._trailer
            return at
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise BadRequestError(
                400,
                f"Chunked request body exceeds maximum of {MAX_CHUNKS} non-empty chunks. "
                "Send fewer or larger HTTP chunks.",
            )
        if len(self._body) + self._left > self._limit:
            raise BadRequestError(413, f"the request body exceeds the limit of {self._limit} bytes")
        self._state = self._data
        return at

    def _data(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._left]
        self._body += piece
        self._left -= len(piece)
        if not self._left:
            self._state = self._data_end
        return at + len(piece)

    def _data_end(self, data: bytes, at: int) -> int:
        line, at = self._read_line(data, at)
        if line is not None:
            if line:
                raise BadRequestError(400, "malformed chunked body: a chunk is longer than its size")
            self._state = self._size
        elif self._line not in (b"", b"\r"):
            raise BadRequestError(400, "malformed chunked body: a chunk is longer than its size")
        return at

    def _trailer(self, data: bytes, at: int) -> int:
        before = at
        line, at = self._read_line(data, at)
        self._trailers += at - before
        if self._trailers > _MAX_TRAILERS:
            raise BadRequestError(431, "the trailers are too long")
        if line == b"":
            self.complete = True
        return at


Body = SizedBody | SmallBody | ChunkedBody


def body_of(length: int, limit: int) -> Body:
    """For a body of `length` bytes, -1 for a chunked one."""
    if length < 0:
        return ChunkedBody(limit)
    return SmallBody(length) if length <= SMALL else SizedBody(length)
