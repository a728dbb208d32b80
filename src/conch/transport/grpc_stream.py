"""One streaming gRPC call: messages in and out until both sides have ended, neither faster than the other bears."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from conch.protocol.v2.grpc_status import Status
from conch.transport import http2_frames as h2
from conch.transport.aside import Aside
from conch.transport.grpc_call import Peer, Said
from conch.transport.grpc_deadline import Deadline
from conch.transport.grpc_fault import GrpcFault
from conch.transport.grpc_headers import encoding_field, failure, trailers
from conch.transport.grpc_messages import Inbox, Packing
from conch.transport.grpc_unpack import Unpacking
from conch.types.flow import Flow
from conch.types.tensor import Buffer

if TYPE_CHECKING:
    from conch.transport.http2 import Connection
    from conch.transport.http2_send import SendState

#: Bytes given to the connection ahead of the peer's window; what is more waits here, message by message.
_AHEAD: Final = 1 << 18
#: Bytes that may wait before no more messages are taken; and before the stream is given up.
_FULL: Final = 4 << 20
_TOO_MUCH: Final = 256 << 20

DRAINING: Final = "GRPC server is shutting down and has stopped accepting new requests."

_size = struct.Struct(">I").unpack_from
_prefix = struct.Struct(">BI").pack
_data_and_prefix = struct.Struct(">IBIBI").pack


class Conversation(Protocol):
    """What a streaming method does with one stream. Loop thread; nothing here may raise but GrpcFault."""

    def message(self, message: Buffer) -> None: ...

    def busy(self) -> bool:
        """While true no more messages are taken; call `Stream.resume` when that changes."""

    def ended(self) -> None:
        """The client has said all it had to say."""

    def drain(self) -> None:
        """The server stops: come to an end."""

    def dropped(self) -> None:
        """Nobody listens any more. Called once, and after that nothing else."""


class StreamRoute:
    """What a header list of a streaming method asks for; shared by all calls with the same headers."""

    __slots__ = ("aside", "limit", "most", "said", "start")

    def __init__(
        self, start: Callable[[Stream], Conversation], limit: int, most: int, said: Said, aside: Aside
    ) -> None:
        """Messages are at most `limit` bytes, and `most` answers may wait for the peer."""
        self.start = start
        self.limit = limit
        self.most = most
        self.said = said
        self.aside = aside

    def open(self, connection: Connection[Peer], number: int, /) -> Stream:
        return Stream(connection, number, self)


class Stream:
    """An HTTP/2 stream and a conversation over it. Loop thread only."""

    __slots__ = (
        "_held", "_held_size", "_inbox", "_last", "_packing", "_route", "_said_ended", "_started", "_talk",
        "_unpacking", "connection", "deadline", "ended", "flow", "full", "id", "idle_since", "promised", "sending",
        "unacked", "window",
    )  # fmt: skip

    def __init__(self, connection: Connection[Peer], number: int, route: StreamRoute) -> None:
        #: None from the moment that nothing can be said any more.
        self.connection: Connection[Peer] | None = connection
        self.id = number
        self.window = 0
        self.sending: SendState | None = None
        self.ended = False
        self.unacked = 0
        self.promised = -1
        self.idle_since = 0.0
        #: Too much is on its way: the connection returns no window for this stream.
        self.full = False
        #: For those who make the answers.
        self.flow = Flow()
        said = route.said
        self.deadline: Deadline | None = None
        if said.timeout is not None:
            self.deadline = Deadline(said.loop, said.timeout, self._expire)
        self._route = route
        self._inbox = Inbox(route.limit, said.encoding)
        #: A large message is being unpacked; those after it wait.
        self._unpacking = False
        #: Answers that wait for those before them to leave.
        self._held: deque[tuple[list[Buffer], int]] = deque()
        self._held_size = 0
        #: The answer that is being compressed aside, the next to leave; its plain bytes are in `_held_size`.
        self._packing: Packing | None = None
        #: Headers have been sent.
        self._started = False
        #: The conversation knows of the client's end.
        self._said_ended = False
        #: Status and text once the conversation is over; it is told when all answers have left.
        self._last: tuple[Status, str] | None = None
        self._talk: Conversation | None = route.start(self)

    @property
    def said(self) -> Said:
        return self._route.said

    @property
    def resting(self) -> bool:
        """The peer owes us nothing: it may be silent for as long as it likes."""
        return self.full or not len(self._inbox)

    # -- what arrives

    def receive(self, buffer: Buffer, start: int, stop: int, ended: bool) -> None:
        talk = self._talk
        if talk is None:
            return
        size = stop - start - 5
        if (
            not self.full
            and size >= 0
            and not len(self._inbox)
            and buffer[start] == 0
            and _size(buffer, start + 1)[0] == size
            and size <= self._route.limit
        ):
            # The commonest case: one message, whole.
            self._tell(talk, buffer[start + 5 : stop])
        elif start < stop:
            try:
                self._inbox.add(buffer, start, stop)
            except GrpcFault as fault:
                self.finish(fault.status, fault.message)
                return
        self.resume()

    def room(self, size: int) -> memoryview | None:
        return None if self._talk is None else self._inbox.room(size)

    def filled(self, size: int, ended: bool) -> None:
        self._inbox.filled(size)
        self.resume()

    def resume(self) -> None:
        """Take the messages that have arrived, for as long as the conversation and the peer's window bear it."""
        inbox = self._inbox
        while (talk := self._talk) is not None:
            if self._busy(talk):
                self.full = True
                return
            if self.full:
                self.full = False
                if self.connection is not None:
                    self.connection.return_window(self)
            try:
                message = inbox.next()
            except GrpcFault as fault:
                self.finish(fault.status, fault.message)
                return
            if message is None:
                break
            if isinstance(message, Unpacking):
                self._unpacking = True
                self._route.aside.run(self.connection, message, self._unpacked)
            else:
                self._tell(talk, message)
        if self.ended and talk is not None and not self._said_ended:
            if len(inbox):
                self.finish(Status.INTERNAL, "the call has ended with only a part of its message")
                return
            self._said_ended = True
            try:
                talk.ended()
            except GrpcFault as fault:
                self.finish(fault.status, fault.message)

    def dropped(self) -> None:
        self._end()
        connection = self.connection
        if connection is not None:
            self.connection = None
            connection.draining.pop(self.id, None)
        self._drop_held()

    def drain(self) -> None:
        """The server stops."""
        if self._talk is not None:
            self._talk.drain()

    # -- what is said

    def send(self, parts: list[Buffer], size: int) -> None:
        """One message of `size` bytes."""
        connection = self.connection
        if connection is None or self._last is not None:
            return
        if self._held or self._packing is not None or (self.sending is not None and self.sending.size > _AHEAD):
            self._held.append((parts, size))
            self._held_size += size
            connection.draining[self.id] = self
            self.flow.full = self._overfull()
            if self._held_size > _TOO_MUCH:
                self._abandon(Status.RESOURCE_EXHAUSTED, "the client does not read its responses")
        else:
            self._write(connection, parts, size)

    def finish(self, status: Status = Status.OK, message: str = "") -> None:
        """The conversation is over: no more messages, and this status when those before have left."""
        connection = self.connection
        if connection is None or self._last is not None:
            return
        self._last = status, message
        self._end()
        if not self._held and self._packing is None:
            self._write_end(connection, status, message)

    def drained(self) -> None:
        """The connection has written: perhaps there is room for more of what is held."""
        connection = self.connection
        if connection is None:
            return
        held = self._held
        while held and self._packing is None and (self.sending is None or self.sending.size <= _AHEAD):
            parts, size = held.popleft()
            self._held_size -= size
            self._write(connection, parts, size)
        if not held and self._packing is None:
            connection.draining.pop(self.id, None)
            if self._last is not None:
                self._write_end(connection, *self._last)
        if self.flow.full and not self._overfull():
            self.flow.release()
        if self.full:
            self.resume()

    # -- inside

    def _overfull(self) -> bool:
        return self._held_size > _FULL or len(self._held) >= self._route.most

    def _tell(self, talk: Conversation, message: Buffer) -> None:
        try:
            talk.message(message)
        except GrpcFault as fault:
            self.finish(fault.status, fault.message)

    def _busy(self, talk: Conversation) -> bool:
        return self._unpacking or self.flow.full or talk.busy()

    def _unpacked(self, unpacking: Unpacking) -> None:
        self._unpacking = False
        talk = self._talk
        if talk is None:
            return
        try:
            message = unpacking.take()
        except GrpcFault as fault:
            self.finish(fault.status, fault.message)
            return
        self._tell(talk, message)
        self.resume()

    def _set_aside(self, connection: Connection[Peer], packing: Packing) -> None:
        """What has been compressed is written, and until then nothing else."""
        self._packing = packing
        self._held_size += packing.whole
        self.flow.full = self._overfull()
        self._route.aside.run(connection, packing, self._packed)

    def _packed(self, packing: Packing) -> None:
        connection = self.connection
        if packing.given_up or connection is None:
            return
        self._packing = None
        self._held_size -= packing.whole
        packed, parts, size = packing.take()
        self._write(connection, parts, size, packed)
        self.drained()

    def _write(self, connection: Connection[Peer], parts: Sequence[Buffer], size: int, packed: int = -1) -> None:
        """`packed`: whether the message is compressed; -1 where that is still to be done, if it is at all."""
        compression = self._route.said.compression
        if packed < 0:
            packed = 0
            if compression is not None:
                if size > compression.at_once:
                    self._set_aside(connection, compression.begin(parts, size))
                    return
                packed, parts, size = compression.pack(parts, size)
        sender = connection.sender
        if not self._started:
            self._started = True
            block = connection.state.answers.headers()
            if compression is not None:
                block += encoding_field(compression.encoding)
            sender.headers(self.id, block, end=False)
        if self.sending is None and sender.reserve(self, size + 5):
            output = sender.output
            output.append(_data_and_prefix((size + 5) << 8, 0, self.id, packed, size))
            output += parts
        else:
            sender.data(self, [_prefix(packed, size), *parts], None)
            if self.sending is not None and not self.sending.size:
                # Nothing waits: the next message may go the short way.
                sender.drop(self)
        connection.mark()

    def _write_end(self, connection: Connection[Peer], status: Status, message: str) -> None:
        self.connection = None
        sender, answers = connection.sender, connection.state.answers
        if status is Status.OK:
            if not self._started:
                sender.headers(self.id, answers.headers(), end=False)
            sender.data(self, (), answers.trailers)
        elif self._started:
            sender.data(self, (), lambda: trailers(status, message))
        else:
            sender.headers(self.id, failure(status, message), end=True)
            connection.answered(self)
        connection.mark()

    def _drop_held(self) -> None:
        self._held.clear()
        if self._packing is not None:
            self._packing.given_up = True
            self._packing = None

    def _end(self) -> None:
        """The conversation hears that it is over, once."""
        talk, self._talk = self._talk, None
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        self.full = False
        self._inbox.give_up()
        self._inbox = Inbox(0)
        if talk is not None:
            talk.dropped()
        self.flow.release()

    def _expire(self) -> None:
        self.deadline = None
        self._abandon(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _abandon(self, status: Status, message: str) -> None:
        """End at once; what waits is not said any more."""
        connection = self.connection
        if connection is None:
            return
        self._last = status, message
        self._end()
        self._drop_held()
        connection.draining.pop(self.id, None)
        waits = self.sending is not None
        connection.sender.drop(self)
        if waits:
            # Perhaps in the middle of a message, after which no trailers can follow.
            self.connection = None
            connection.reset(self, h2.ErrorCode.CANCEL)
            connection.mark()
        else:
            self._write_end(connection, status, message)
