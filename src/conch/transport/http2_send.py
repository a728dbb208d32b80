"""The sending half of an HTTP/2 connection: the peer's windows, streams that wait for them, one write per flush."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from conch.transport import http2_frames as h2
from conch.transport.http2_frames import HEAD, MAX_31, ConnectionFault, ErrorCode
from conch.types.tensor import Buffer

#: Above this many bytes buffers are handed to the socket one by one instead of being joined.
_JOIN_LIMIT = 131_072
#: DATA made per flush while others wait: bounds what lies in our buffers on behalf of one peer.
_FLUSH_LIMIT = 4 << 20


class SendState:
    """What a stream that could not be answered in one go still has to send."""

    __slots__ = ("end", "parts", "seen", "size")

    def __init__(self) -> None:
        self.parts: deque[memoryview] = deque()
        self.size = 0
        #: What `size` was when it was last looked at; -1 before.
        self.seen = -1
        #: Makes the trailers when the last part has gone; None while more parts may come.
        self.end: Callable[[], bytes] | None = None


class SendingStream(Protocol):
    """What the sender keeps on a stream."""

    id: int
    #: The stream's own share of the peer's window: `Sender.stream_window` plus this may be sent.
    window: int
    #: None unless the stream has parts that wait, or may get more.
    sending: SendState | None


class Sender:
    """Frames collect in `output`; `flush` writes them all at once. Loop thread only."""

    __slots__ = (
        "_bulky",
        "_ended",
        "_granted",
        "blocked",
        "frame_size",
        "made",
        "output",
        "paused",
        "pending",
        "stream_window",
        "table_update",
        "transport",
        "window",
    )

    def __init__(self, ended: Callable[[SendingStream], None]) -> None:
        """`ended` is called when a stream's last frame has been made."""
        self._ended = ended
        self.transport: asyncio.Transport | None = None
        self.output: list[Buffer] = []
        #: What the peer lets us send: on the connection, on each stream, in one frame.
        self.window = h2.DEFAULT_WINDOW
        self.stream_window = h2.DEFAULT_WINDOW
        self.frame_size = h2.DEFAULT_FRAME_SIZE
        #: Streams with parts that may not go yet, in turn.
        self.blocked: dict[int, SendingStream] = {}
        #: Bytes of those parts.
        self.pending = 0
        #: DATA frames made by the slow path so far.
        self.made = 0
        #: The socket's buffer is full: the peer does not read.
        self.paused = False
        #: Goes before the next header block: the peer shrank our encoder's table (RFC 7541 4.2).
        self.table_update = b""
        self._bulky = False
        #: All that the connection's window has ever held.
        self._granted = self.window

    def detach(self) -> None:
        """The connection is gone: nothing is written or told any more."""
        self.transport = None
        self.output = []
        self._ended = _nobody_listens

    def reserve(self, stream: SendingStream, size: int) -> bool:
        """Whether one DATA frame of `size` bytes may go at once; the caller then appends it to `output`, whole."""
        if (
            size <= self.window
            and size <= self.frame_size
            and size <= self.stream_window + stream.window
            and not self.blocked
            and not self.paused
            and size <= _JOIN_LIMIT
        ):
            self.window -= size
            stream.window -= size
            return True
        return False

    def headers(self, stream: int, block: bytes, end: bool) -> None:
        if self.table_update:
            block = self.table_update + block
            self.table_update = b""
        limit = self.frame_size
        flags = h2.END_STREAM if end else 0
        if len(block) <= limit:
            self.output.append(h2.frame(h2.HEADERS, flags | h2.END_HEADERS, stream, block))
            return
        self.output.append(h2.frame(h2.HEADERS, flags, stream, block[:limit]))
        for at in range(limit, len(block), limit):
            last = h2.END_HEADERS if at + limit >= len(block) else 0
            self.output.append(h2.frame(h2.CONTINUATION, last, stream, block[at : at + limit]))

    def data(self, stream: SendingStream, parts: Sequence[Buffer], end: Callable[[], bytes] | None) -> None:
        """Send `parts` as the windows allow and then, when `end` is given, the trailers that it makes."""
        state = stream.sending
        if state is None:
            state = stream.sending = SendState()
        for part in parts:
            size = len(part)
            if size:
                state.parts.append(memoryview(part))
                state.size += size
                self.pending += size
        state.end = end
        self._pump(stream, state)

    def drop(self, stream: SendingStream) -> None:
        """The stream is gone: forget what it had to send."""
        self.blocked.pop(stream.id, None)
        if stream.sending is not None:
            self.pending -= stream.sending.size
            stream.sending = None

    @property
    def sent(self) -> int:
        """Bytes of DATA made since the connection began."""
        return self._granted - self.window

    def add_window(self, increment: int) -> None:
        self.window += increment
        self._granted += increment
        if self.window > MAX_31:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE makes the window larger than 2^31-1")

    def set_stream_window(self, size: int, streams: Sequence[SendingStream]) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE; changes the window of every open stream (RFC 9113 6.9.2)."""
        if size > MAX_31 or any(size + stream.window > MAX_31 for stream in streams):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is larger than 2^31-1")
        self.stream_window = size

    def flush(self) -> bool:
        """Write what has collected. True when streams wait for nothing but another flush."""
        again = self._pump_blocked() if self.blocked else False
        output = self.output
        if output:
            self.output = []
            transport = self.transport
            if transport is not None:
                if self._bulky:
                    self._bulky = False
                    transport.writelines(output)
                else:
                    transport.write(b"".join(output))
        return again

    def _pump_blocked(self) -> bool:
        budget = self.made + _FLUSH_LIMIT // self.frame_size + 1
        # The streams take turns: whoever still waits afterwards goes to the end of the line.
        for number in list(self.blocked):
            if self.window <= 0 or self.paused:
                return False
            if self.made > budget:
                return True
            stream = self.blocked.pop(number)
            if stream.sending is not None:
                self._pump(stream, stream.sending)
        return False

    def _pump(self, stream: SendingStream, state: SendState) -> None:
        parts, output = state.parts, self.output
        while parts:
            allowed = min(self.window, self.stream_window + stream.window, self.frame_size)
            if allowed <= 0 or self.paused:
                self.blocked[stream.id] = stream
                return
            size = min(allowed, state.size)
            output.append(HEAD.pack((size << 8) | h2.DATA, 0, stream.id))
            left = size
            while left:
                part = parts[0]
                if len(part) <= left:
                    output.append(parts.popleft())
                    left -= len(part)
                else:
                    output.append(part[:left])
                    parts[0] = part[left:]
                    left = 0
            state.size -= size
            self.pending -= size
            self.window -= size
            stream.window -= size
            self.made += 1
            self._bulky = self._bulky or size >= _JOIN_LIMIT >> 4
        self.blocked.pop(stream.id, None)
        if state.end is not None:
            stream.sending = None
            self.headers(stream.id, state.end(), end=True)
            self._ended(stream)


def _nobody_listens(stream: SendingStream) -> None:
    """In place of who was told of the end of streams."""
