"""Compressed gRPC messages on their way in, unpacked in steps."""

from __future__ import annotations

import zlib
from typing import Final

from conch.protocol.v2.grpc_status import Status
from conch.transport.grpc_fault import GrpcFault
from conch.types.tensor import Buffer

#: zlib's window bits: gzip's container, zlib's own (which gRPC and HTTP call deflate).
WINDOW: Final = {b"gzip": 31, b"deflate": 15}
#: Uncompressed bytes that the loop's thread deals with itself: about a millisecond.
AT_ONCE: Final = 1 << 18
#: Compressed bytes given to zlib at once, and bytes taken from it.
_SLICE: Final = 1 << 16
_PIECE: Final = 1 << 20


class Unpacking:
    """One compressed message. Implements `transport.aside.Job`."""

    __slots__ = ("_at", "_encoding", "_fault", "_limit", "_machine", "_message", "_pieces", "_size", "given_up")

    def __init__(self, message: Buffer, encoding: bytes, limit: int) -> None:
        self._encoding = encoding
        self._limit = limit
        self._machine = zlib.decompressobj(WINDOW[encoding])
        self._message = memoryview(message)
        self._at = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._fault: tuple[Status, str] | None = None
        #: Nobody waits for the message any more. Set by the loop's thread.
        self.given_up = False

    def step(self, most: int) -> bool:
        """Unpack about `most` bytes more. True at the end, good or bad."""
        machine, stop = self._machine, self._size + most
        try:
            while not machine.eof:
                if self._size >= stop:
                    return False
                self._next()
            if machine.unused_data or self._at < len(self._message):
                raise self._broken("is cut off or longer than it says")
        except GrpcFault as fault:
            self._end(fault.status, fault.message)
        except zlib.error as error:
            self._end(Status.INTERNAL, self._broken(f"is broken: {error}").message)
        return True

    def take(self) -> bytes:
        """The whole message, after the last step. Raises GrpcFault for what is broken or larger than the limit."""
        if self._fault is not None:
            raise GrpcFault(*self._fault)
        return b"".join(self._pieces)

    def fail(self, error: Exception) -> None:
        """No further step can be made."""
        self._end(Status.INTERNAL, f"the message could not be unpacked: {type(error).__name__}")

    def _next(self) -> None:
        room = min(_PIECE, self._limit + 1 - self._size)
        # What is not consumed is copied: little is given at a time.
        data: Buffer = self._machine.unconsumed_tail
        if not data:
            data = self._message[self._at : self._at + _SLICE]
            self._at += len(data)
        piece = self._machine.decompress(data, room)
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise GrpcFault(
                Status.RESOURCE_EXHAUSTED, f"Decompressed message larger than max (max {self._limit} bytes)"
            )
        if not len(data) and len(piece) < room and not self._machine.eof:
            raise self._broken("is cut off or longer than it says")

    def _broken(self, what: str) -> GrpcFault:
        return GrpcFault(Status.INTERNAL, f"the {self._encoding.decode()} message {what}")

    def _end(self, status: Status, message: str) -> None:
        self._fault = status, message
        self._pieces.clear()
        self._message = memoryview(b"")
