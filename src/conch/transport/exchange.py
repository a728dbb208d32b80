"""Where the answers to a connection's infer requests go."""

from __future__ import annotations

from conch.protocol.v2.layout import Pattern
from conch.protocol.v2.status import HTTP_STATUS
from conch.transport.bridge import Bridge
from conch.transport.http1 import Connection
from conch.types.error import Code, InferError, internal
from conch.types.request import InferRequest
from conch.types.response import InferResponse


def fail(connection: Connection, error: InferError) -> None:
    connection.fail(HTTP_STATUS[error.code], error.message)


class Exchange:
    """Implements `types.request.ResponseSink` for the one request at a time that a connection has in flight.

    Any thread may answer; what happens to the connection happens on the event loop's thread.
    """

    __slots__ = ("_answers", "_bridge", "_connection", "pattern", "request")

    def __init__(self, connection: Connection, bridge: Bridge) -> None:
        self._connection = connection
        self._bridge = bridge
        self._answers = 0
        #: How the answer is written; belongs to `request`.
        self.pattern: Pattern
        #: The request that is waited for; an answer to any other comes too late and is dropped. None again after the
        #: answer, so that the two do not keep each other alive.
        self.request: InferRequest | None = None

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
        if self.request is not None:
            self.request.cancelled = True
            self.request = None

    def _reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if request is not self.request:
            return
        if not final:
            self._answers += 1
            return
        answers, self._answers = self._answers, 0
        self.request = None
        if answers:
            fail(self._connection, internal(f"expected a single response, got {answers + 1}"))
            return
        try:
            head, body = self.pattern.encode(request.id, response)
        except InferError as error:
            fail(self._connection, error)
            return
        except Exception as error:  # noqa: BLE001  a model's bad tensor must not leave the client waiting
            fail(self._connection, InferError(Code.INTERNAL, f"the response could not be encoded: {error}"))
            return
        self._connection.respond(head, body)

    def _fail(self, request: InferRequest, error: InferError) -> None:
        if request is self.request:
            self._answers = 0
            self.request = None
            fail(self._connection, error)
