"""JSON of HTTP inference that is too much for the event loop's thread: requests read and answers written aside."""

from __future__ import annotations

import time

from conch.protocol.v2.asked import Asked
from conch.protocol.v2.pieces import Reading
from conch.protocol.v2.rendering import Rendering
from conch.transport.http1 import Connection
from conch.types.tensor import Buffer


class JsonReading:
    """The JSON of a request. Implements `transport.aside.Job`."""

    __slots__ = ("_connection", "_reading", "received_ns")

    def __init__(self, connection: Connection, text: Buffer) -> None:
        self._connection = connection
        self._reading = Reading(text)
        #: When the request had arrived.
        self.received_ns = time.monotonic_ns()

    @property
    def given_up(self) -> bool:
        return self._connection.closed

    @property
    def asked(self) -> Asked | None:
        """The request; None where the usual parsers are to be asked."""
        return self._reading.asked

    def step(self, most: int) -> bool:
        return self._reading.step()

    def fail(self, error: Exception) -> None:
        """`asked` stays None."""


class JsonWriting:
    """The JSON of an answer. Implements `transport.aside.Job`."""

    __slots__ = ("_connection", "_rendering", "error")

    def __init__(self, connection: Connection, rendering: Rendering) -> None:
        self._connection = connection
        self._rendering = rendering
        self.error: Exception | None = None

    @property
    def given_up(self) -> bool:
        return self._connection.closed

    def step(self, most: int) -> bool:
        try:
            return self._rendering.step()
        except Exception as error:  # noqa: BLE001  a model's bad tensor must not leave the client waiting
            self.error = error
            return True

    def fail(self, error: Exception) -> None:
        self.error = error

    def take(self) -> tuple[bytes, list[Buffer]]:
        """The HTTP head and the body. Raises what went wrong."""
        if self.error is not None:
            raise self.error
        return self._rendering.finish()
