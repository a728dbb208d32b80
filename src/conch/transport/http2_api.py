"""What an HTTP/2 connection and the application above it promise each other."""

from __future__ import annotations

from typing import Any, Protocol

from conch.transport.http2_headers import Header
from conch.transport.http2_send import SendingStream, SendState
from conch.types.tensor import Buffer


class Stream(SendingStream, Protocol):
    """What the connection keeps on a stream, and what it tells it."""

    #: The peer has sent END_STREAM.
    ended: bool
    #: Bytes received that we have not yet returned to the stream's window.
    unacked: int
    #: Bytes of DATA that content-length still promises; -1 when it was not given.
    promised: int
    #: When `Connection.check` first saw that nothing new had come; 0 when something has since.
    idle_since: float
    sending: SendState | None

    @property
    def full(self) -> bool:
        """The stream takes no more for now: its window is not returned before it asks for it (`return_window`)."""

    @property
    def resting(self) -> bool:
        """The peer owes nothing just now and may be silent."""

    def receive(self, buffer: Buffer, start: int, stop: int, ended: bool) -> None:
        """`buffer[start:stop]` arrived; with `ended` it was the last. The buffer is only borrowed."""

    def room(self, size: int) -> memoryview | None:
        """Memory for the next bytes, at most `size`, if they belong to something large; `filled` follows, or not."""

    def filled(self, size: int, ended: bool) -> None:
        """So many bytes have been written where `room` pointed; as `receive` otherwise."""

    def dropped(self) -> None:
        """The peer or the connection is gone, or the stream broke a rule: nobody waits for an answer."""


class DrainingStream(Protocol):
    """A stream that holds back output of its own until the connection has written."""

    def drained(self) -> None: ...


class Opener(Protocol):
    """What the application makes of a header list; may be used for many streams."""

    def open(self, connection: Any, number: int, /) -> Stream: ...


class Application(Protocol):
    def route(self, headers: list[Header], oversized: bool) -> Opener:
        """For a well-formed header list; `oversized` when it is larger than we advertised. Must not raise."""

    def table_shrunk(self, connection: Any) -> None:
        """The peer keeps fewer than the default 4096 bytes of our header fields; from now on do not rely on any."""

    def opened(self, connection: Any) -> None: ...

    def closed(self, connection: Any) -> None: ...
