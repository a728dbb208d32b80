"""The receiving half of an HTTP/2 server connection (RFC 9113): frames in, streams out, every rule enforced.

An `Application` makes streams of header lists; a stream is told of its data and of its end, and answers through
`Connection.sender`. Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from conch.transport import http2_frames as h2
from conch.transport.bridge import Bridge
from conch.transport.http2_api import Application, DrainingStream, Opener, Stream
from conch.transport.http2_control import CONTROL
from conch.transport.http2_data import PartialData
from conch.transport.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    MAX_31,
    PADDED,
    PREFACE,
    ConnectionFault,
    ErrorCode,
)
from conch.transport.http2_headers import BlockAssembly, Header, HeaderBlocks, content_length, fault, trailer_fault
from conch.transport.http2_limits import Budget, Limits
from conch.transport.http2_send import Sender, SendingStream
from conch.transport.http2_upkeep import Step, Upkeep
from conch.transport.tls import SHUTDOWN_SECONDS
from conch.transport.uptake import still_owed, taken, untaken

#: What the application keeps per connection.
State = TypeVar("State")

_unpack = HEAD.unpack_from
#: Streams that we have reset and whose late frames are therefore no fault of the peer.
_REMEMBERED_RESETS = 4096
#: Late DATA is on its way in frames of at least so many bytes, but for the last.
_LATE_FRAME = 1024
#: No frame but DATA and those of header blocks needs to be longer.
_MAX_CONTROL = 16_384


@dataclass(frozen=True, slots=True)
class _Request:
    """What a header block came to, where the fast path does not apply: no `opener` when it is malformed."""

    opener: Opener | None
    content_length: int = -1


class Connection(asyncio.Protocol, Generic[State]):
    """One peer. `streams` holds those that are open or half-closed; `last_stream` the highest number seen."""

    __slots__ = (
        "_application",
        "_assembly",
        "_bridge",
        "_budget",
        "_clock",
        "_left",
        "_limits",
        "_marked",
        "_moved_at",
        "_owed",
        "_parse",
        "_partial",
        "_resets",
        "_stalled_at",
        "_taken",
        "_transport",
        "_unacked",
        "blocks",
        "closing",
        "draining",
        "greeted",
        "last_stream",
        "sender",
        "state",
        "streams",
        "upkeep",
    )  # fmt: skip

    def __init__(
        self, application: Application, bridge: Bridge, limits: Limits, clock: Callable[[], float], state: State
    ) -> None:
        self._application = application
        self._bridge = bridge
        self._limits = limits
        self._clock = clock
        self._budget = Budget(clock())
        self._transport: asyncio.Transport | None = None
        #: The application's own.
        self.state = state
        self.sender = Sender(self.answered)
        self.blocks: HeaderBlocks[Opener, _Request] = HeaderBlocks(self._make, _Request, limits.max_header_list)
        self.streams: dict[int, Stream] = {}
        #: By their numbers.
        self.draining: dict[int, DrainingStream] = {}
        self.upkeep = Upkeep(limits.upkeep, clock(), random.uniform(0.9, 1.1))  # noqa: S311  no secret
        self.last_stream = 0
        self.closing = False
        self._marked = False
        self.greeted = False
        #: The start of a frame (never DATA) whose end has not arrived.
        self._left = b""
        self._parse: Callable[[bytes], int] = self._preface
        self._partial = PartialData(self.streams, self._moved)
        self._assembly = BlockAssembly(limits)
        #: Bytes of DATA that we have not yet returned to the connection's window.
        self._unacked = 0
        #: By the numbers of streams that we have reset, how many bytes of DATA may still be on their way.
        self._resets: dict[int, int] = {}
        #: When `check` first saw that no frame had been completed; 0 when one has since.
        self._moved_at = clock()
        #: When the peer was last seen to read, once the socket's buffer is full or we have closed; 0 before.
        self._stalled_at = 0.0
        #: How much it had taken when that was last looked at.
        self._taken = 0
        #: Whether a peer of TLS had bytes to take when `owed` was last asked.
        self._owed = False

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self.sender.transport = cast("asyncio.Transport", transport)
        self._partial.attach(self._transport, self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limits = self._limits
        self._transport.set_write_buffer_limits(high=1 << 20, low=1 << 18)
        self.sender.output.append(
            h2.settings(
                {
                    h2.SETTINGS_MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                    h2.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window,
                    h2.SETTINGS_MAX_FRAME_SIZE: limits.max_frame_size,
                    h2.SETTINGS_MAX_HEADER_LIST_SIZE: limits.max_header_list,
                }
            )
            + h2.window_update(0, limits.connection_window - h2.DEFAULT_WINDOW)
        )
        self.flush()
        self._application.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._transport = None
        self._drop_streams()
        self._application.closed(self)
        # What refers back lets go: the connection is freed now, not when the collector comes, which is rarely.
        self._parse = len
        self.blocks.detach()
        self.sender.detach()
        self._partial.detach()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        # A peer that does not read gets nothing more to answer.
        self.sender.paused = True
        self._stalled_at = self._clock()
        if self._transport is not None:
            self._taken = taken(self._transport)
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.sender.paused = False
        self._stalled_at = self._clock() if self.closing else 0.0
        if self._transport is not None and not self.closing:
            self._transport.resume_reading()
        self.mark()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        if self._left:
            data = self._left + data
            self._left = b""
        try:
            used = self._parse(data)
        except ConnectionFault as error:
            self.shut(error.code, error.reason)
            return
        if used < len(data) and not self.closing:
            self._left = data[used:]
        if used:
            self._moved_at = 0.0
        if self._unacked > self._limits.connection_window >> 1:
            self.sender.output.append(h2.window_update(0, self._unacked))
            self._unacked = 0
        if self.sender.output:
            # Not written at once: acknowledgements and windows travel with this tick's answers.
            self.mark()

    # -- the application's side, and that of the control frames

    def table_shrunk(self) -> None:
        """The peer's header table is smaller than the default: we then use none, and say so (RFC 7541 4.2)."""
        self.sender.table_update = b"\x20"
        self._application.table_shrunk(self)

    def mark(self) -> None:
        """There is output: have it written at the end of this tick."""
        if not self._marked:
            self._marked = True
            self._bridge.dirty(self)

    def flush(self) -> None:
        self._marked = False
        if self.sender.flush():
            self.mark()
        if self.draining:
            for stream in list(self.draining.values()):
                stream.drained()

    def answered(self, stream: SendingStream) -> None:
        """The last frame of the answer is in the output. Earns the peer some patience."""
        self._budget.credit += 2
        if not self.streams.pop(stream.id).ended:
            # The request is not needed to its end (RFC 9113 8.1).
            self._forget(stream.id)
            self.sender.output.append(h2.rst_stream(stream.id, ErrorCode.NO_ERROR))

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Give up on one stream (RFC 9113 5.4.2)."""
        if self.streams.pop(stream.id, None) is None:
            return
        self._reset(stream.id, code)
        self.sender.drop(stream)
        stream.dropped()

    def return_window(self, stream: Stream) -> None:
        """`stream` is not full any more: the peer may send again."""
        if stream.unacked > self._limits.stream_window >> 1 and not stream.ended:
            self.sender.output.append(h2.window_update(stream.id, stream.unacked))
            stream.unacked = 0
            self.mark()

    def received_ping(self) -> None:
        """Raises ConnectionFault when the peer has pinged too often."""
        if not self.upkeep.received_ping(self._clock(), self._progress(), len(self.streams)):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def say_goodbye(self, reason: str = "the server is shutting down") -> None:
        """Ask the peer to open no more streams; those that are on their way are still answered (RFC 9113 6.8)."""
        self.sender.output.append(h2.goaway(MAX_31, ErrorCode.NO_ERROR, reason))
        self.mark()

    def shut(self, code: ErrorCode, reason: str = "") -> None:
        """GOAWAY, and the end of every stream and of the connection."""
        if self.closing:
            return
        self.closing = True
        self._left = b""
        self._drop_streams()
        transport = self._transport
        if transport is not None:
            self.sender.output.append(h2.goaway(self.last_stream, code, reason))
            self.sender.flush()
            self._stalled_at = self._clock()
            self._taken = taken(transport)
            transport.close()

    def owed(self) -> bool:
        """Whether the peer has not taken all that was written; to be asked again and again while the server stops."""
        transport = self._transport
        if transport is None:
            return False
        owed, self._owed = still_owed(transport, self._owed)
        return owed

    def abort(self) -> None:
        """Close at once, without waiting for the peer to read."""
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Called every few seconds: hang up on peers, and reset streams, that make no progress."""
        timeout = self._limits.timeout
        if self._stalled_at or self.closing:
            self._check_reader(now)
            return
        if self._upkeep(now, self._moved_at == 0.0):
            return
        if self._moved_at == 0.0:
            self._moved_at = now
        unfinished = self._parse == self._preface or self._left or self._assembly.stream or not self.greeted
        if now - self._moved_at > timeout and (unfinished or self._partial):
            self.shut(ErrorCode.SETTINGS_TIMEOUT if unfinished else ErrorCode.PROTOCOL_ERROR, "too slow")
            return
        self._check_streams(now)
        if self.sender.output:
            self.flush()

    # -- frames

    def _preface(self, data: bytes) -> int:
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "expected the HTTP/2 connection preface")
        if len(data) < len(PREFACE):
            return 0
        self._parse = self._frames
        return self._frames(data, len(PREFACE))

    def _frames(self, data: bytes, at: int = 0) -> int:  # noqa: PLR0912, PLR0915  calls cost more than the work
        """Handle every complete frame from `at` on, and DATA as far as it has arrived. Returns the bytes used."""
        size = len(data)
        streams, made, limits = self.streams, self.blocks.made, self._limits
        if self._partial:
            at = self._partial.feed(data, at, size)
        while size - at >= 9 and not self.closing:
            word, flags, number = _unpack(data, at)
            length = word >> 8
            kind = word & 0xFF
            start = at + 9
            stop = start + length
            if not self.greeted or self._assembly.stream or length > limits.max_frame_size or number > MAX_31:
                number &= MAX_31
                self._check_order(kind, flags, length, number)
            if kind == DATA:
                stream = streams.get(number)
                if (
                    stream is not None
                    and stop <= size
                    and not flags & PADDED
                    and not stream.ended
                    and stream.promised < 0
                    and length
                ):
                    self._unacked += length
                    if flags & END_STREAM:
                        stream.ended = True
                        stream.receive(data, start, stop, True)
                    else:
                        self._take(stream, length)
                        stream.receive(data, start, stop, False)
                    at = stop
                    continue
                if flags & PADDED and start >= size:
                    break
                at = self._data(data, start, size, length, flags, number)
                continue
            if stop > size:
                self._check_length(kind, length)
                break
            at = stop
            if kind == HEADERS:
                if flags & ~END_STREAM == END_HEADERS:
                    opener = made.get(data[start:stop])
                    if (
                        opener is not None
                        and number > self.last_stream
                        and number & 1
                        and len(streams) < limits.max_concurrent_streams
                        and self.sender.pending < limits.max_pending
                    ):
                        self.last_stream = number
                        stream = streams[number] = opener.open(self, number)
                        if flags & END_STREAM:
                            stream.ended = True
                            stream.receive(b"", 0, 0, True)
                        continue
                block = self._assembly.start(flags, number, data[start:stop])
                if block is not None:
                    self._block_done(flags, number, block)
            elif kind == CONTINUATION:
                block = self._assembly.more(flags, data[start:stop])
                if block is not None:
                    self._block_done(self._assembly.flags, number, block)
            else:
                self._control(kind, flags, number, data[start:stop])
        return at

    def _check_order(self, kind: int, flags: int, length: int, number: int) -> None:
        if length > self._limits.max_frame_size:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes is larger than advertised")
        if not self.greeted:
            if kind != h2.SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        elif self._assembly.stream and (kind != CONTINUATION or number != self._assembly.stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block must be continued before anything else")

    def _check_length(self, kind: int, length: int) -> None:
        """Refuse by its head a frame that we would not want to collect."""
        if kind in (HEADERS, CONTINUATION):
            if length > self._limits.max_header_block:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of {length} bytes is too large")
        elif length > _MAX_CONTROL:
            raise ConnectionFault(
                ErrorCode.FRAME_SIZE_ERROR, f"a frame of type {kind} with {length} bytes is too large"
            )

    # -- DATA that is padded, incomplete, empty, counted or late: the common kind is handled by `_frames`

    def _data(self, data: bytes, start: int, size: int, length: int, flags: int, number: int) -> int:
        if number == 0 or number > self.last_stream or not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {number}, which is idle")
        pad = 0
        if flags & PADDED:
            if length == 0 or data[start] >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than the frame")
            pad = data[start]
            start += 1
        body = length - pad - (1 if flags & PADDED else 0)
        ended = bool(flags & END_STREAM)
        self._unacked += length
        if self._unacked > self._limits.connection_window:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window allows")
        stream = self.streams.get(number)
        if stream is None:
            self._late(number, length)
        elif stream.ended:
            self.reset(stream, ErrorCode.STREAM_CLOSED)
        else:
            if body == 0 and not ended:
                self.spend()
            # Padding counts (RFC 9113 6.9.1), and so does the byte that gives its length.
            self._take(stream, length)
            if stream.promised >= 0:
                stream.promised -= body
                if stream.promised < 0 or (ended and stream.promised):
                    self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        self._partial.begin(number, body, pad, ended)
        return self._partial.feed(data, start, size)

    def _take(self, stream: Stream, length: int) -> None:
        """Count DATA against the stream's window and return the window when half of it is used."""
        stream.idle_since = 0.0
        stream.unacked += length
        window = self._limits.stream_window
        if stream.unacked > window:
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.unacked > window >> 1 and not stream.full:
            self.sender.output.append(h2.window_update(stream.id, stream.unacked))
            stream.unacked = 0

    def _late(self, number: int, length: int) -> None:
        """DATA for a stream that is no more: fine if we have reset it, else the peer's fault (RFC 9113 5.1).

        What was within the stream's window may have been on its way.
        """
        left = self._resets.get(number)
        if left is not None and _LATE_FRAME <= length <= left:
            self._resets[number] = left - length
            return
        self.spend()
        if left is None:
            self._reset(number, ErrorCode.STREAM_CLOSED)

    def _moved(self) -> None:
        """Something has arrived that did not come through `data_received`."""
        self._moved_at = 0.0
        if self.sender.output:
            self.mark()

    # -- header blocks

    def _block_done(self, flags: int, number: int, block: bytes) -> None:
        ended = bool(flags & END_STREAM)
        if number <= self.last_stream:
            self._trailers(number, block, ended)
            return
        self.last_stream = number
        if len(self.streams) >= self._limits.max_concurrent_streams or self.sender.pending >= self._limits.max_pending:
            self.blocks.skip(block)
            self.spend()
            self._reset(number, ErrorCode.REFUSED_STREAM)
            return
        request = self.blocks.read(block)
        promised = -1
        if isinstance(request, _Request):
            promised = request.content_length
            if request.opener is None:
                self.spend()
                self._reset(number, ErrorCode.PROTOCOL_ERROR)
                return
            request = request.opener
        stream = self.streams[number] = request.open(self, number)
        stream.promised = promised
        if ended:
            if promised > 0:
                self.reset(stream, ErrorCode.PROTOCOL_ERROR)
                return
            stream.ended = True
            stream.receive(b"", 0, 0, True)

    def _trailers(self, number: int, block: bytes, ended: bool) -> None:
        headers = self.blocks.skip(block)
        stream = self.streams.get(number)
        if stream is None:
            if number not in self._resets:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
            self.spend()
        elif stream.ended:
            self.reset(stream, ErrorCode.STREAM_CLOSED)
        elif not ended or trailer_fault(headers) or stream.promised > 0:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.ended = True
            stream.receive(b"", 0, 0, True)

    def _make(self, headers: list[Header]) -> Opener | _Request:
        length = content_length(headers)
        if length == -2 or fault(headers):
            return _Request(None)
        opener = self._application.route(headers, self.blocks.oversized(headers))
        return opener if length < 0 else _Request(opener, length)

    # -- the other frames

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        handler = CONTROL.get(kind)
        if handler is None:
            # Unknown types are ignored (RFC 9113 4.1), though not for free.
            self.spend()
            return
        handler(self, flags, number, payload)

    # -- the rest

    def check_not_idle(self, frame: str, number: int) -> None:
        if number == 0 or number > self.last_stream or not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{frame} on stream {number}, which is idle")

    def spend(self, cost: int = 1) -> None:
        budget = self._budget
        budget.credit -= cost
        if budget.credit <= 0 and not budget.refill(self._clock(), self.sender.sent):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that lead nowhere")

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._forget(number)
        self.sender.output.append(h2.rst_stream(number, code))
        if self._transport is not None:
            self.mark()

    def _forget(self, number: int) -> None:
        self._resets[number] = self._limits.stream_window
        if len(self._resets) > _REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]

    def _drop_streams(self) -> None:
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            self.sender.drop(stream)
            stream.dropped()

    def _progress(self) -> int:
        """Grows when we send data and when the peer opens a stream."""
        return self.sender.sent + self.last_stream

    def _upkeep(self, now: float, heard: bool) -> bool:
        """True when the connection is at its end."""
        step = self.upkeep.check(now, heard, self._progress(), len(self.streams))
        if step is Step.PING:
            self.sender.output.append(h2.frame(h2.PING, 0, 0, b"conch\0\0\0"))
        elif step is Step.GOODBYE:
            self.say_goodbye("max_age")
        elif step is Step.CLOSE:
            self.shut(ErrorCode.NO_ERROR, "max_age")
            return True
        elif step is Step.GIVE_UP:
            self.abort()
            return True
        return False

    def _check_reader(self, now: float) -> None:
        """The socket's buffer is full, or we have closed: hang up when the peer takes nothing any more, or has taken
        everything and does not say goodbye (TLS). Meanwhile it is not read, so that it can do nothing else."""
        transport = self._transport
        if (not self.closing and self._upkeep(now, heard=True)) or transport is None:
            return
        before, self._taken = self._taken, taken(transport)
        if self._taken > before:
            self._stalled_at = now
        patience = SHUTDOWN_SECONDS if self.closing and not untaken(transport) else self._limits.timeout
        if now - self._stalled_at > patience:
            self.abort()
            return
        self._moved_at = 0.0
        for stream in self.streams.values():
            stream.idle_since = 0.0

    def _check_streams(self, now: float) -> None:
        timeout = self._limits.timeout
        # An answer that waits for its reader is only in the way when there are many.
        crowded = self.sender.pending > self._limits.max_pending >> 2
        for stream in list(self.streams.values()):
            sending = stream.sending
            blocked = sending is not None and sending.size
            if sending is not None:
                if sending.size < sending.seen or sending.seen < 0:
                    stream.idle_since = 0.0
                sending.seen = sending.size
            if (stream.ended or stream.resting) and not (crowded and blocked):
                continue
            if stream.idle_since == 0.0:
                stream.idle_since = now
            elif now - stream.idle_since > timeout:
                self.reset(stream, ErrorCode.CANCEL)
