"""Where the responses to a generate request go: one JSON object, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar, Final

from conch.protocol.v2.generate import NOT_ONE, encode, event
from conch.protocol.v2.headers import Extras
from conch.protocol.v2.status import HTTP_STATUS, error_body, retry_after
from conch.transport.bridge import Bridge
from conch.transport.exchange import expired, withdraw
from conch.transport.http1 import Connection, head_of, status_line
from conch.types.error import Code, InferError
from conch.types.flow import Flow
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse

_log = logging.getLogger("conch")

#: Bytes of events that may wait for a client that reads more slowly than its model answers. The model is asked to pause
#: long before; a stream that grows this far anyhow is cut.
MAX_UNREAD: Final = 64 << 20

_OK: Final = 200


class Generation:
    """Implements `types.request.ResponseSink` for one request. Any thread may answer."""

    __slots__ = (
        "_begun", "_bridge", "_connection", "_more", "_responses", "_result", "_streams", "_timer", "flow", "request",
    )  # fmt: skip

    protocol: ClassVar[str] = "HTTP"

    def __init__(self, connection: Connection, bridge: Bridge, *, streams: bool, more: bytes) -> None:
        """`streams`: as events, else as the one response there must be. `more`: further lines for the HTTP head."""
        self._connection = connection
        self._bridge = bridge
        self._streams = streams
        self._more = more
        self._begun = False
        #: For one response: how many there were, and the status and body of the first.
        self._responses = 0
        self._result = (_OK, b"")
        self._timer: asyncio.TimerHandle | None = None
        self.flow = Flow()
        #: What is being answered; None before, and after the end.
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

    def begin(self, request: InferRequest, extras: Extras | None) -> None:
        """Wait for the responses to `request`, as long as its client does."""
        self.request = request
        request.flow = self.flow
        if extras is not None and extras.timeout_ns:
            request.expires_ns = request.received_ns + extras.timeout_ns
            self._timer = self._bridge.later(extras.timeout_ns / 1e9, self._expire)

    def cancel(self) -> None:
        """The client has left."""
        request = self._settle()
        if request is not None:
            withdraw(request)

    def refused(self) -> None:
        """The request was not taken over."""
        self._settle()

    def _settle(self) -> InferRequest | None:
        """The end: what waits for the client to read need not wait any more."""
        request, self.request = self.request, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connection.exchange is self:
            self._connection.exchange = None
        self.flow.release()
        return request

    def _expire(self) -> None:
        request = self.request
        if request is not None:
            # Whatever one object was to be made of, it will not be complete.
            self._responses = 0
            self._fail(request, expired())
            withdraw(request)

    def _reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if request is not self.request:
            return
        if isinstance(response, FailedResponse):
            self._put_error(response.error)
        elif response is not FINAL:
            try:
                self._put(_OK, encode(request, response))
            except InferError as error:
                self._put_error(error)
            except Exception as error:  # noqa: BLE001  a model's bad tensor must not leave the client waiting
                self._put_error(InferError(Code.INTERNAL, f"the response could not be encoded: {error}"))
        if final:
            self._end()

    def _fail(self, request: InferRequest, error: InferError) -> None:
        if request is self.request:
            self._put_error(error)
            self._end()

    def _put_error(self, error: InferError) -> None:
        if not (self._begun or self._responses):
            self._more += retry_after(error)
        self._put(HTTP_STATUS[error.code], error_body(error.message))

    def _put(self, status: int, text: bytes) -> None:
        """One response."""
        if not self._streams:
            self._responses += 1
            if self._responses == 1:
                self._result = status, text
            return
        self._begin(status)
        connection = self._connection
        connection.send(event(text))
        if connection.unread() > MAX_UNREAD:
            _log.warning("a client of generate_stream did not read %d bytes; its connection is cut", MAX_UNREAD)
            self.cancel()
            connection.abort()
        else:
            self._bridge.dirty(connection)

    def _begin(self, status: int) -> None:
        """The status of the first response is that of all."""
        if not self._begun:
            self._begun = True
            head = status_line(status) + b"Content-Type: text/event-stream; charset=utf-8\r\n" + self._more
            self._connection.begin(head, self.flow)

    def _end(self) -> None:
        if self.request is None:
            return
        self._settle()
        if self._streams:
            self._begin(_OK)
            self._connection.finish()
            return
        status, text = self._result
        if self._responses != 1:
            text = error_body(NOT_ONE)
        self._connection.respond(head_of(status, "application/json", len(text)) + self._more, (text,))
