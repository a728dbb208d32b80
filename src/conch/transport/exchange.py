"""Where the answers to a connection's infer requests go."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from conch.protocol.v2.headers import Extras, UnsupportedCodingError
from conch.protocol.v2.layout import Pattern
from conch.protocol.v2.rendering import Rendering
from conch.protocol.v2.restrict import RestrictedError
from conch.protocol.v2.status import HTTP_STATUS, retry_after
from conch.transport.aside import Aside
from conch.transport.bridge import Bridge
from conch.transport.coder import Coder
from conch.transport.http1 import Connection
from conch.transport.json_jobs import JsonWriting
from conch.types.error import Code, InferError, internal, unavailable
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse


def fail(connection: Connection, error: InferError) -> None:
    more = retry_after(error)
    if isinstance(error, UnsupportedCodingError):
        more += b"Accept-Encoding: gzip, deflate\r\n"
    connection.fail(403 if isinstance(error, RestrictedError) else HTTP_STATUS[error.code], error.message, more)


def withdraw(request: InferRequest) -> None:
    """Nobody waits for `request` any more, in the queue or in the model."""
    request.cancelled = True
    request.form.withdraw(request)


def expired() -> InferError:
    return unavailable("Request timeout expired", "the header Request-Timeout gave the server this time")


class Exchange:
    """Implements `types.request.ResponseSink` for the one request at a time that a connection has in flight.

    Any thread may answer; what happens to the connection happens on the event loop's thread.
    """

    protocol: ClassVar[str] = "HTTP"

    __slots__ = ("_answers", "_aside", "_bridge", "_coder", "_connection", "_timer", "extras", "pattern", "request")

    def __init__(self, connection: Connection, bridge: Bridge, coder: Coder, aside: Aside) -> None:
        self._connection = connection
        self._bridge = bridge
        self._coder = coder
        self._aside = aside
        self._answers = 0
        self._timer: asyncio.TimerHandle | None = None
        #: What is special about `request`; None for most.
        self.extras: Extras | None = None
        #: How the answer is written; belongs to `request`.
        self.pattern: Pattern
        #: The request that is waited for; an answer to any other comes too late and is dropped. None again after the
        #: answer, so that the two do not keep each other alive.
        self.request: InferRequest | None = None

    @property
    def trace_context(self) -> str:
        """The W3C trace context that came with the request."""
        return self._connection.asked("traceparent")

    @property
    def trace_state(self) -> str:
        """What other tracing systems add to it."""
        return self._connection.asked("tracestate")

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if self._bridge.on_loop():
            self._reply(request, response, final)
        else:
            self._bridge.post(self._reply, request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        if self._bridge.on_loop():
            self._fail(request, error)
        else:
            self._bridge.post(self._fail, request, error)

    def cancel(self) -> None:
        """The client has left."""
        request, self.request = self.request, None
        if self.extras is not None:
            self._stop_timer()
        if request is not None:
            withdraw(request)

    def expect(self, request: InferRequest, extras: Extras) -> None:
        """Wait for the answer to `request` only as long as its client does."""
        if extras.timeout_ns:
            request.expires_ns = request.received_ns + extras.timeout_ns
            self._timer = self._bridge.later(extras.timeout_ns / 1e9, self._expire, request)

    def refused(self) -> None:
        """The request was not taken over."""
        self.request = None
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, request: InferRequest) -> None:
        if request is self.request:
            self._fail(request, expired())
            withdraw(request)

    def _reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if request is not self.request:
            return
        if not final:
            self._answers += 1
            return
        answers, self._answers = self._answers, 0
        self.request = None
        extras = self.extras
        if extras is not None:
            self._stop_timer()
        if answers or response is FINAL:
            found = answers + (response is not FINAL)
            fail(self._connection, internal(f"expected a single response, got {found}"))
            return
        try:
            pattern = self.pattern
            if request.form is not pattern.form:
                # Another version answers than the codec knew of.
                pattern = pattern.of(request.form)
            encoded = pattern.encode(request.id, response)
        except Exception as error:  # noqa: BLE001  a model's bad tensor must not leave the client waiting
            self._unwritable(error)
            return
        if isinstance(encoded, Rendering):
            self._aside.run(self._connection, JsonWriting(self._connection, encoded), self._written)
            return
        head, body = encoded
        if extras is not None and extras.coding:
            self._coder.respond(self._connection, extras.coding, head, body)
            return
        # The answers of a batch are written one right after the other: a client that waits for several is woken once.
        self._connection.respond(head, body, self._bridge.dirty)

    def _written(self, job: JsonWriting) -> None:
        """The text of a large answer; meanwhile the connection was busy, so that the request is still its last."""
        connection, extras = self._connection, self.extras
        if connection.closed:
            return
        try:
            head, body = job.take()
        except Exception as error:  # noqa: BLE001  a model's bad tensor must not leave the client waiting
            self._unwritable(error)
            return
        if extras is not None and extras.coding:
            self._coder.respond(connection, extras.coding, head, body)
        else:
            connection.respond(head, body)

    def _unwritable(self, error: Exception) -> None:
        if not isinstance(error, InferError):
            error = InferError(Code.INTERNAL, f"the response could not be encoded: {error}")
        fail(self._connection, error)

    def _fail(self, request: InferRequest, error: InferError) -> None:
        if request is self.request:
            self._answers = 0
            self.request = None
            self._stop_timer()
            fail(self._connection, error)
