"""One gRPC call: collects the request's message, and is the sink that its answer comes to."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from conch.memory.regions import Regions
from conch.protocol.v2.grpc import GrpcCodec
from conch.protocol.v2.grpc_status import STATUS, Status
from conch.service.api import DataPlane
from conch.transport.aside import Aside
from conch.transport.bridge import Bridge
from conch.transport.grpc_deadline import Deadline
from conch.transport.grpc_fault import GrpcFault
from conch.transport.grpc_forward import Forwarded, ForwardingPlane
from conch.transport.grpc_headers import AnswerHeaders, answer_end, answer_start, encoding_field, failure
from conch.transport.grpc_messages import Compression, Inbox, Packing
from conch.transport.grpc_unpack import Unpacking
from conch.types.error import InferError, internal
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Buffer

if TYPE_CHECKING:
    from conch.transport.http2 import Connection
    from conch.transport.http2_send import SendState

_log = logging.getLogger("conch")

_size = struct.Struct(">I").unpack_from
_prefix = struct.Struct(">BI").pack
#: Distinct lists of forwarded metadata for which a connection keeps a codec.
_MAX_CODECS: Final = 16


class Peer:
    """What the gRPC transport keeps per connection."""

    __slots__ = ("_codecs", "_plane", "_regions", "answers", "codec")

    def __init__(self, plane: DataPlane, regions: Regions | None = None) -> None:
        self._plane = plane
        self._regions = regions
        self.codec = GrpcCodec(plane, regions=regions)
        self.answers = AnswerHeaders()
        self._codecs: dict[object, GrpcCodec] = {}

    def special_codec(self, streams: bool, forwarded: Forwarded | None) -> GrpcCodec:
        """For streams, and for calls whose metadata become parameters."""
        key = (streams, forwarded.key if forwarded is not None else None)
        codec = self._codecs.get(key)
        if codec is None:
            if len(self._codecs) >= _MAX_CODECS:
                self._codecs.clear()
            plane = self._plane if forwarded is None else ForwardingPlane(self._plane, forwarded)
            codec = self._codecs[key] = GrpcCodec(plane, streams, self._regions)
        return codec


class Method(Protocol):
    """What answers a call whose message is complete. Settles the call, now or later; must not raise."""

    def __call__(self, call: Call, message: Buffer, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Said:
    """What a call's header list says besides its method."""

    loop: asyncio.AbstractEventLoop
    #: Seconds from now on; None without a deadline.
    timeout: float | None = None
    #: Of the messages that the client sends compressed; empty when it sends none.
    encoding: bytes = b""
    compression: Compression | None = None
    forwarded: Forwarded | None = None
    #: `triton_grpc_error: true`: the first error of a model ends a stream.
    errors_end: bool = False
    #: The W3C trace context that came with the call, and what other tracing systems add to it.
    trace_context: str = ""
    trace_state: str = ""


class Route:
    """What a header list asks for; shared by all calls with the same headers."""

    __slots__ = (
        "aside", "bridge", "compression", "encoding", "forwarded", "limit", "loop", "method", "timeout",
        "trace_context", "trace_state",
    )  # fmt: skip

    def __init__(self, method: Method, bridge: Bridge, limit: int, said: Said, aside: Aside) -> None:
        self.method = method
        self.bridge = bridge
        self.aside = aside
        self.limit = limit
        self.loop = said.loop
        self.timeout = said.timeout
        self.encoding = said.encoding
        #: How answers are compressed; None for not at all.
        self.compression = said.compression
        #: Metadata that become parameters of requests; None without any.
        self.forwarded = said.forwarded
        self.trace_context = said.trace_context
        self.trace_state = said.trace_state

    def open(self, connection: Connection[Peer], number: int, /) -> Call:
        call = Call(connection, number, self)
        if self.timeout is not None:
            call.deadline = Deadline(self.loop, self.timeout, call.expire)
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

    full: ClassVar[bool] = False
    resting: ClassVar[bool] = False

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

    def room(self, size: int) -> memoryview | None:
        return None

    def filled(self, size: int, ended: bool) -> None:
        """Never called: there is no room."""

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

    protocol: ClassVar[str] = "GRPC"
    full: ClassVar[bool] = False
    resting: ClassVar[bool] = False

    __slots__ = (
        "_early", "_inbox", "_packing", "_request", "_route", "connection", "deadline", "ended", "id",
        "idle_since", "promised", "sending", "unacked", "window",
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
        self.deadline: Deadline | None = None
        self._route = route
        self._inbox: Inbox | None = None
        self._request: InferRequest | None = None
        #: The answer while it is compressed aside.
        self._packing: Packing | None = None
        #: Answers before the last one.
        self._early = 0

    @property
    def forwarded(self) -> Forwarded | None:
        return self._route.forwarded

    @property
    def trace_context(self) -> str:
        return self._route.trace_context

    @property
    def trace_state(self) -> str:
        return self._route.trace_state

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
            inbox = self._inbox = Inbox(route.limit, route.encoding)
        try:
            inbox.add(buffer, start, stop)
        except GrpcFault as fault:
            self.refuse(fault.status, fault.message)
            return
        self._look(inbox, ended)

    def room(self, size: int) -> memoryview | None:
        inbox = self._inbox
        return None if inbox is None or self.connection is None else inbox.room(size)

    def filled(self, size: int, ended: bool) -> None:
        inbox = self._inbox
        if inbox is not None:
            inbox.filled(size)
            if ended:
                self._look(inbox, ended)

    def _look(self, inbox: Inbox, ended: bool) -> None:
        try:
            message = inbox.single(ended)
        except GrpcFault as fault:
            self.refuse(fault.status, fault.message)
            return
        if isinstance(message, Unpacking):
            self._route.aside.run(self.connection, message, self._unpacked)
        elif message is not None:
            self._inbox = None
            self._route.method(self, message)

    def _unpacked(self, unpacking: Unpacking) -> None:
        if self.connection is None:
            return
        try:
            message = unpacking.take()
        except GrpcFault as fault:
            self.refuse(fault.status, fault.message)
            return
        self._inbox = None
        self._route.method(self, message)

    def dropped(self) -> None:
        self._settle()

    def expire(self) -> None:
        self.deadline = None
        self.refuse(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    # -- the sink's side

    def begin(self, request: InferRequest) -> None:
        """`request` answers this call; when the call ends before it does, the request is cancelled."""
        self._request = request
        if self.deadline is not None:
            request.expires_ns = self.deadline.expires_ns

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
        compression = self._route.compression
        if compression is not None:
            if size > compression.at_once:
                self._packing = compression.begin(parts, size)
                self._route.aside.run(connection, self._packing, self._packed)
            else:
                self._send(compression.pack(parts, size))
            return
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

    def _packed(self, packing: Packing) -> None:
        """The answer has been compressed."""
        if not packing.given_up:
            self._packing = None
            self._send(packing.take())

    def _send(self, packed: tuple[int, Sequence[Buffer], int]) -> None:
        """Settle the call with a message of a call with compression, as `Packing.take` gives it."""
        connection, compression = self.connection, self._route.compression
        if connection is None or compression is None:
            return
        self._settle()
        flag, parts, size = packed
        sender, answers = connection.sender, connection.state.answers
        sender.headers(self.id, answers.headers() + encoding_field(compression.encoding), end=False)
        sender.data(self, [_prefix(flag, size), *parts], answers.trailers)
        connection.mark()

    def refuse(self, status: Status, message: str, retry_after_s: float = 0.0) -> None:
        """Settle the call with an error. Loop thread."""
        connection = self.connection
        if connection is None:
            return
        self._settle()
        connection.sender.headers(self.id, failure(status, message, retry_after_s), end=True)
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
        if self._early or response is FINAL:
            found = self._early + (response is not FINAL)
            self.refuse(Status.INTERNAL, f"expected a single response, got {found}")
            return
        try:
            parts, size = connection.state.codec.encode_infer(request, response)
        except InferError as error:
            self._fail(error)
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            self._fail(unwritable(error))
            return
        self.answer(parts, size)

    def _fail(self, error: InferError) -> None:
        self._request = None
        self.refuse(STATUS[error.code], error.message, error.retry_after_s)

    def _settle(self) -> None:
        self.connection = None
        if self._inbox is not None:
            self._inbox.give_up()
            self._inbox = None
        if self._packing is not None:
            self._packing.given_up = True
            self._packing = None
        request = self._request
        if request is not None:
            self._request = None
            cancel(request)
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def unwritable(error: Exception) -> InferError:
    """What the client of a response hears that could not be encoded, for a reason that the log tells."""
    _log.error("a gRPC response could not be written", exc_info=error)
    return internal(f"the server failed to write the response: {type(error).__name__}")


def cancel(request: InferRequest) -> None:
    """Nobody waits for `request` any more. Its sink may be told so from within this call. Loop thread."""
    request.cancelled = True
    request.form.withdraw(request)
