"""Compression of HTTP bodies, where it cannot hold up the event loop: little ones at once, large ones aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from conch.protocol.v2.coding import Deflater, Inflater, coded_head, deflate, deflater
from conch.transport.aside import Aside
from conch.transport.http1 import Connection
from conch.types.error import InferError, internal
from conch.types.tensor import Buffer

#: Uncompressed bytes that the loop's thread deals with itself: about a millisecond.
_AT_ONCE: Final = 1 << 16

#: Gets the body, or the reason why there is none.
Inflated = Callable[[Buffer, InferError | None], object]


class Inflation:
    """The body of a request whose coding is undone. Implements `transport.aside.Job`."""

    __slots__ = ("_connection", "_inflater", "error", "plain")

    def __init__(self, connection: Connection, inflater: Inflater) -> None:
        self._connection = connection
        self._inflater = inflater
        self.plain: Buffer = b""
        self.error: InferError | None = None

    @property
    def given_up(self) -> bool:
        return self._connection.closed

    def step(self, most: int) -> bool:
        try:
            plain = self._inflater.step(most)
        except InferError as error:
            self.error = error
            return True
        if plain is None:
            return False
        # What is cut out of a view is not copied.
        self.plain = memoryview(plain)
        return True

    def fail(self, error: Exception) -> None:
        self.error = internal(f"the request body could not be decompressed: {error}")


class Deflation:
    """The body of an answer that is compressed. Implements `transport.aside.Job`."""

    __slots__ = ("_connection", "deflater", "failed")

    def __init__(self, connection: Connection, deflater: Deflater) -> None:
        self._connection = connection
        self.deflater = deflater
        self.failed = False

    @property
    def given_up(self) -> bool:
        return self._connection.closed

    def step(self, most: int) -> bool:
        return self.deflater.step(most)

    def fail(self, error: Exception) -> None:
        self.failed = True


class Coder:
    """One per listener. Call it on the event loop's thread. A connection stays busy until it is answered."""

    __slots__ = ("_aside",)

    def __init__(self, aside: Aside) -> None:
        self._aside = aside

    def inflate(self, connection: Connection, coding: str, body: Buffer, limit: int, then: Inflated) -> None:
        """Have `then` called with the body uncompressed, now or later, on the loop's thread. Raises InferError."""
        inflater = Inflater(coding, body, limit)
        plain = inflater.step(_AT_ONCE)
        if plain is not None:
            then(plain, None)
        else:
            self._aside.run(connection, Inflation(connection, inflater), lambda job: then(job.plain, job.error))

    def respond(self, connection: Connection, coding: str, head: bytes, body: Sequence[Buffer]) -> None:
        """As `Connection.respond`, compressed."""
        if sum(map(len, body)) <= _AT_ONCE:
            packed = deflate(coding, body)
            connection.respond(coded_head(head, coding, len(packed)), (packed,))
        else:
            work = Deflation(connection, deflater(coding, body))
            self._aside.run(connection, work, lambda job: _answer(connection, coding, head, job))


def _answer(connection: Connection, coding: str, head: bytes, job: Deflation) -> None:
    if job.failed:
        connection.fail(500, "the response could not be compressed")
    else:
        connection.respond(coded_head(head, coding, job.deflater.size), job.deflater.pieces)
