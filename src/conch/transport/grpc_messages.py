"""gRPC's length-prefixed messages: cut from pieces of any size, and compressed both ways (gzip, deflate). Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from conch.protocol.v2.coding import Deflater, compress
from conch.protocol.v2.grpc_status import Status
from conch.transport.bodies import SizedBody
from conch.transport.filler import LARGE
from conch.transport.grpc_fault import GrpcFault
from conch.transport.grpc_unpack import AT_ONCE, WINDOW, Unpacking
from conch.types.tensor import Buffer

#: What we can read, as `grpc-accept-encoding` lists it.
ENCODINGS: Final = b"identity,deflate,gzip"
#: Level of `--grpc-infer-response-compression-level` -> the encodings to choose from, best first, and zlib's level.
_LEVELS: Final = {
    "low": ((b"gzip", b"deflate"), 1),
    "medium": ((b"deflate", b"gzip"), 6),
    "high": ((b"deflate", b"gzip"), 9),
}

#: About a millisecond of zlib's, at its fastest level and at the others.
_AT_ONCE_FAST: Final = 1 << 16
_AT_ONCE_SLOW: Final = 1 << 14

_size = struct.Struct(">I").unpack_from


class Inbox:
    """Cuts bytes into messages. `encoding` is the call's grpc-encoding; empty when its messages are plain.

    Memory grows with what has arrived, never to a size that was only announced; the same holds for what a compressed
    message claims to be. A large one comes out as an `Unpacking`, to be finished before the next is asked for.
    """

    __slots__ = ("_at", "_data", "_encoding", "_large", "_limit", "_packed", "_size", "_unpacking")

    def __init__(self, limit: int, encoding: bytes = b"") -> None:
        self._limit = limit
        self._encoding = encoding
        self._data = bytearray()
        #: Where in `_data` the next prefix, or the message whose size is known, begins.
        self._at = 0
        self._size = -1
        self._packed = False
        #: The message whose size is known, where it is large; what follows it is in `_data`.
        self._large: SizedBody | None = None
        #: The compressed message that came out last.
        self._unpacking: Unpacking | None = None

    def __len__(self) -> int:
        """Bytes held, whole messages or not."""
        return self._held + (5 if self._size >= 0 else 0)

    @property
    def _held(self) -> int:
        """Bytes held without the prefix that has been read."""
        return len(self._data) - self._at + (0 if self._large is None else self._size - self._large.missing)

    def add(self, buffer: Buffer, start: int, stop: int) -> None:
        """The next bytes, of which a copy is kept. Raises GrpcFault when they begin a message that is wrong."""
        view = memoryview(buffer)[start:stop]
        if self._size < 0 and len(view) >= LARGE and len(self._data) - self._at < 5:
            short = 5 - (len(self._data) - self._at)
            self._data += view[:short]
            view = view[short:]
            self._look()
        if self._large is not None:
            view = view[self._large.feed(view, 0) :]
        self._data += view

    def room(self, size: int) -> memoryview | None:
        """Memory for the next bytes, at most `size`, where they belong to a large message."""
        large = self._large
        return None if large is None or large.complete else large.room()[:size]

    def filled(self, size: int) -> None:
        """So many bytes have been written where `room` pointed."""
        if self._large is not None:
            self._large.filled(size)

    def next(self) -> Buffer | Unpacking | None:
        """The next whole message, decompressed if it is little; None until more comes. Raises GrpcFault as soon as one
        is wrong."""
        self._look()
        data, at, size = self._data, self._at, self._size
        if size < 0 or self._held < size:
            self._trim()
            return None
        message: Buffer
        if self._large is not None:
            message, self._large = self._large.take(), None
        else:
            message = bytes(memoryview(data)[at : at + size])
            self._at = at + size
            if self._at >= LARGE:
                # Where more always waits, the end of what has come may never be reached.
                self._trim()
        self._size = -1
        return self._unpack(message) if self._packed else message

    def single(self, ended: bool) -> Buffer | Unpacking | None:
        """For calls that take one message: it, once the call has `ended`. Raises GrpcFault when it is not just one."""
        self._look()
        size, held = self._size, self._held
        if 0 <= size < held:
            raise GrpcFault(Status.INTERNAL, "the call takes one message, but more was sent")
        if not ended:
            return None
        if held < size or size < 0:
            what = "only a part of its message" if held or size >= 0 else "no message"
            raise GrpcFault(Status.INTERNAL, f"the call has ended with {what}")
        return self.next()

    def give_up(self) -> None:
        """Nobody waits for messages any more."""
        if self._unpacking is not None:
            self._unpacking.given_up = True

    def _unpack(self, message: Buffer) -> Buffer | Unpacking:
        unpacking = Unpacking(message, self._encoding, self._limit)
        if unpacking.step(AT_ONCE):
            return unpacking.take()
        self._unpacking = unpacking
        return unpacking

    def _trim(self) -> None:
        """Let go of what has been read. Cheap: a bytearray forgets its beginning without moving the rest."""
        if self._at:
            del self._data[: self._at]
            self._at = 0

    def _look(self) -> None:
        if self._size < 0 and len(self._data) - self._at >= 5:
            self._size = check_prefix(self._data, self._at, self._limit, self._encoding)
            self._packed = self._data[self._at] == 1
            self._at += 5
            if self._size >= LARGE:
                self._large = SizedBody(self._size)
                self._at = self._large.feed(self._data, self._at)


def check_prefix(buffer: Buffer, at: int, limit: int, encoding: bytes) -> int:
    """The length that the five-byte prefix at `at` announces."""
    size: int = _size(buffer, at + 1)[0]
    if buffer[at] == 1:
        if not encoding:
            raise GrpcFault(
                Status.INTERNAL, "the message is marked as compressed, but grpc-encoding names no compression"
            )
    elif buffer[at]:
        raise GrpcFault(Status.INTERNAL, f"the message's first byte is {buffer[at]}, expected 0 or 1")
    if size > limit:
        raise GrpcFault(Status.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {limit})")
    return size


class Packing:
    """One message of `whole` bytes that is compressed. Implements `transport.aside.Job`."""

    __slots__ = ("_deflater", "_failed", "_parts", "given_up", "whole")

    def __init__(self, deflater: Deflater, parts: Sequence[Buffer], whole: int) -> None:
        self._deflater = deflater
        self._parts = parts
        self._failed = False
        self.whole = whole
        #: Nobody waits for the message any more. Set by the loop's thread.
        self.given_up = False

    def step(self, most: int) -> bool:
        return self._deflater.step(most)

    def fail(self, error: Exception) -> None:
        """The message goes as it is."""
        self._failed = True

    def take(self) -> tuple[int, Sequence[Buffer], int]:
        """The prefix's first byte, the message and its size: as it was where compression gains nothing."""
        made = self._deflater
        if self._failed or made.size >= self.whole:
            return 0, self._parts, self.whole
        return 1, made.pieces, made.size


class Compression:
    """How the responses of a call are compressed."""

    __slots__ = ("_level", "_window", "at_once", "encoding")

    def __init__(self, encoding: bytes, level: int) -> None:
        self.encoding = encoding
        self._window = WINDOW[encoding]
        self._level = level
        #: Bytes of a message that the loop's thread compresses itself.
        self.at_once = _AT_ONCE_FAST if level <= 1 else _AT_ONCE_SLOW

    def begin(self, parts: Sequence[Buffer], size: int) -> Packing:
        return Packing(Deflater(parts, self._window, self._level), parts, size)

    def pack(self, parts: Sequence[Buffer], size: int) -> tuple[int, Sequence[Buffer], int]:
        """A message of at most `at_once` bytes, as `Packing.take` says."""
        packed = compress(parts, self._window, self._level)
        smaller = sum([len(piece) for piece in packed])
        return (1, packed, smaller) if smaller < size else (0, parts, size)


def choose_compression(level: str, accepted: bytes) -> Compression | None:
    """By the flag's level (`none` for none) and the client's grpc-accept-encoding."""
    if level not in _LEVELS:
        return None
    names = {name.strip() for name in accepted.split(b",")}
    candidates, strength = _LEVELS[level]
    return next((Compression(name, strength) for name in candidates if name in names), None)
