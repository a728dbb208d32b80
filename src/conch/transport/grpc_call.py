"""One gRPC call: collects the request's message, and is the sink that its answer comes to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from conch.protocol.v2.grpc import GrpcCodec
from conch.protocol.v2.grpc_status import STATUS, Status
from conch.transport.bridge import Bridge
from conch.transport.grpc_headers import AnswerHeaders, answer_end, answer_start, failure
from conch.types.error import InferError
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Buffer

if TYPE_CHECKING:
    from conch.transport.http2 import Connection
    from conch.transport.http2_send import SendState

_size = struct.Struct(">I").unpack_from
_prefix = struct.Struct(">BI").pack
#: Smaller messages become `bytes`, so that cutting tensors from them gives `bytes`.
_KEEP_FROM: Final = 65_536


class GrpcFault(Exception):  # noqa: N818  not an error of ours: a call that is answered with a status
    """The call breaks gRPC's own rules and is answered with this status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Peer:
    """What the gRPC transport keeps per connection."""

    __slots__ = ("answers", "codec")

    def __init__(self, codec: GrpcCodec) -> None:
        self.codec = codec
        self.answers = AnswerHeaders()


class Inbox:
    """Puts one length-prefixed message together from pieces of any size. Pure."""

    __slots__ = ("_limit", "_message", "_prefix", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._prefix = b""
        self._size = -1
        # Grows with what has arrived, never to a size that was only announced.
        self._message = bytearray()

    def add(self, buffer: Buffer, start: int, stop: int) -> None:
        """Raises GrpcFault as soon as something is wrong."""
        if self._size < 0:
            take = min(stop - start, 5 - len(self._prefix))
            self._prefix += bytes(buffer[start : start + take])
            start += take
            if len(self._prefix) < 5:
                return
            self._size = check_prefix(self._prefix, self._limit)
        if stop - start > self._size - len(self._message):
            raise GrpcFault(Status.INTERNAL, "the call takes one message, but more was sent")
        self._message += memoryview(buffer)[start:stop]

    def message(self) -> Buffer:
        """The message, once everything has been sent."""
        if len(self._message) != self._size:
            what = "no message" if not self._prefix else "only a part of its message"
            raise GrpcFault(Status.INTERNAL, f"the call has ended with {what}")
        return self._message if self._size >= _KEEP_FROM else bytes(self._message)


def check_prefix(prefix: Buffer, limit: int) -> int:
    """The length that a message's five-byte prefix announces."""
    size: int = _size(prefix, 1)[0]
    if prefix[0] == 1:
        raise GrpcFault(Status.INTERNAL, "the message is marked as compressed, but grpc-encoding names no compression")
    if prefix[0]:
        raise GrpcFault(Status.INTERNAL, f"the message's first byte is {prefix[0]}, expected 0 or 1")
    if size > limit:
        raise GrpcFault(Status.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {limit})")
    return size


class Method(Protocol):
    """What answers a call whose message is complete. Settles the call, now or later; must not raise."""

    def __call__(self, call: Call, message: Buffer, /) -> None: ...


class Route:
    """What a header list asks for; shared by all calls with the same headers."""

    __slots__ = ("bridge", "limit", "loop", "method", "timeout")

    def __init__(
        self,
        method: Method,
        bridge: Bridge,
        limit: int,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout: float | None = None,
    ) -> None:
        self.method = method
        self.bridge = bridge
        self.limit = limit
        self.loop = loop
        self.timeout = timeout

    def open(self, connection: Connection[Peer], number: int, /) -> Call:
        call = Call(connection, number, self)
        if self.timeout is not None and self.loop is not None:
            call.timer = self.loop.call_later(self.timeout, call.expire)
        return call


class Refusal:
    """A header list that is answered with an error, whatever its message says."""

    __slots__ = ("block", "loop")

    def __init__(self, block: bytes, loop: asyncio.AbstractEventLoop | None) -> None:
        """With a `loop` the answer does not wait for a message; else it lets the peer finish sending first."""
        self.block = block
        self.loop = loop

    def open(self, connection: Connection[Peer], number: int, /) -> RefusedCall:
        call = RefusedCall(connection, number, self.block)
        if self.loop is not None:
            call.patience = 0
            # Not now: the connection does not know the stream yet.
            self.loop.call_soon(call.settle)
        return call


class RefusedCall:
    """A call whose answer is an error, and whose message nobody reads."""

    __slots__ = (
        "block", "connection", "ended", "id", "idle_since", "patience", "promised", "sending", "unacked", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection[Peer], number: int, block: bytes) -> None:
        self.connection: Connection[Peer] | None = connection
        self.block = block
        self.id = number
        self.window = 0
        self.sending: SendState | None = None
        self.ended = False
        self.unacked = 0
        self.promised = -1
        self.idle_since = 0.0
        #: Bytes that the peer may still send before it is answered: some HTTP clients take an early answer, and the
        #: RST_STREAM after it, for a failure.
        self.patience = 1 << 20

    def receive(self, buffer: Buffer, start: int, stop: int, ended: bool) -> None:
        self.patience -= stop - start
        if ended or self.patience < 0:
            self.settle()

    def settle(self) -> None:
        connection = self.connection
        if connection is not None:
            self.connection = None
            connection.sender.headers(self.id, self.block, end=True)
            connection.answered(self)
            connection.mark()

    def dropped(self) -> None:
        self.connection = None


class Call:
    """An HTTP/2 stream and the `ResponseSink` of its request. Methods that may come from other threads say so."""

    __slots__ = (
        "_early", "_inbox", "_request", "_route", "connection", "ended", "id", "idle_since", "promised", "sending",
        "timer", "unacked", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection[Peer], number: int, route: Route) -> None:
        #: None from the moment that the call is settled: also what keeps finished calls free of cycles.
        self.connection: Connection[Peer] | None = connection
        self.id = number
        self.window = 0
        self.sending: SendState | None = None
        self.ended = False
        self.unacked = 0
        self.promised = -1
        self.idle_since = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self._route = route
        self._inbox: Inbox | None = None
        self._request: InferRequest | None = None
        #: Answers before the last one.
        self._early = 0

    # -- the stream's side

    def receive(self, buffer: Buffer, start: int, stop: int, ended: bool) -> None:
        size = stop - start - 5
        route = self._route
        if (
            ended
            and self._inbox is None
            and 0 <= size <= route.limit
            and buffer[start] == 0
            and _size(buffer, start + 1)[0] == size
        ):
            route.method(self, buffer[start + 5 : stop])
            return
        if self.connection is None:
            return
        inbox = self._inbox
        if inbox is None:
            inbox = self._inbox = Inbox(route.limit)
        try:
            inbox.add(buffer, start, stop)
            if ended:
                message = inbox.message()
                self._inbox = None
                route.method(self, message)
        except GrpcFault as fault:
            self.refuse(fault.status, fault.message)

    def dropped(self) -> None:
        self._settle()

    def expire(self) -> None:
        self.timer = None
        self.refuse(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    # -- the sink's side

    def begin(self, request: InferRequest) -> None:
        """`request` answers this call; when the call ends before it does, the request is cancelled."""
        self._request = request

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        """Any thread."""
        bridge = self._route.bridge
        if bridge.on_loop():
            self._reply(request, response, final)
        else:
            bridge.post(self._reply, request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        """Any thread."""
        bridge = self._route.bridge
        if bridge.on_loop():
            self._fail(error)
        else:
            bridge.post(self._fail, error)

    def answer(self, parts: Sequence[Buffer], size: int) -> None:
        """Settle the call with a message of `size` bytes. Loop thread."""
        connection = self.connection
        if connection is None:
            return
        self._request = None
        self._settle()
        sender, answers = connection.sender, connection.state.answers
        if answers.ready and sender.reserve(self, size + 5):
            output = sender.output
            output.append(answer_start(self.id, size))
            output += parts
            output.append(answer_end(self.id))
            connection.answered(self)
        else:
            sender.headers(self.id, answers.headers(), end=False)
            sender.data(self, [_prefix(0, size), *parts], answers.trailers)
        connection.mark()

    def refuse(self, status: Status, message: str) -> None:
        """Settle the call with an error. Loop thread."""
        connection = self.connection
        if connection is None:
            return
        self._settle()
        connection.sender.headers(self.id, failure(status, message), end=True)
        connection.answered(self)
        connection.mark()

    def _reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        connection = self.connection
        if connection is None:
            return
        if not final:
            self._early += 1
            return
        self._request = None
        if self._early:
            self.refuse(Status.INTERNAL, f"expected a single response, got {self._early + 1}")
            return
        try:
            parts, size = connection.state.codec.encode_infer(request, response)
        except InferError as error:
            self._fail(error)
            return
        self.answer(parts, size)

    def _fail(self, error: InferError) -> None:
        self._request = None
        self.refuse(STATUS[error.code], error.message)

    def _settle(self) -> None:
        self.connection = None
        self._inbox = None
        request = self._request
        if request is not None:
            self._request = None
            request.cancelled = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
