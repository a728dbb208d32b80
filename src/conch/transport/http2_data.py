"""A DATA frame whose end has not arrived: it is handed on as it comes, large ones straight to where they belong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from conch.transport.filler import LARGE, Filler
from conch.transport.http2_api import Stream
from conch.types.tensor import Buffer


class PartialData:
    """One per connection, true while a frame is under way. `moved` is called for what a `Filler` has received."""

    __slots__ = (
        "_ended",
        "_filler",
        "_home",
        "_left",
        "_moved",
        "_number",
        "_padding",
        "_scrap",
        "_streams",
        "_transport",
    )

    def __init__(self, streams: Mapping[int, Stream], moved: Callable[[], None]) -> None:
        self._streams = streams
        self._moved = moved
        self._transport: asyncio.Transport | None = None
        self._home: asyncio.Protocol | None = None
        #: Of the frame: whose it is, bytes and padding to come, and END_STREAM.
        self._number = 0
        self._left = 0
        self._padding = 0
        self._ended = False
        #: Receives the rest of a large frame where it belongs.
        self._filler: Filler | None = None
        #: Where bytes of such a frame go for which the stream has no place of its own.
        self._scrap: Buffer = b""

    def __bool__(self) -> bool:
        return self._left > 0 or self._padding > 0

    def attach(self, transport: asyncio.Transport, home: asyncio.Protocol) -> None:
        """What the connection, `home`, reads from."""
        self._transport = transport
        self._home = home

    def detach(self) -> None:
        """The connection is gone: nothing arrives any more."""
        self._transport = self._home = self._filler = None
        self._moved = _nobody_listens

    def begin(self, number: int, size: int, padding: int, ended: bool) -> None:
        """The head of a frame has come: `size` bytes for stream `number`, then `padding`."""
        self._number, self._left, self._padding, self._ended = number, size, padding, ended
        if size == 0 and ended:
            self._deliver(b"", 0, 0, ended=True)

    def feed(self, data: bytes, at: int, size: int) -> int:
        """Take what belongs to the frame from `data[at:size]`; where the rest begins."""
        if self._left:
            stop = min(size, at + self._left)
            self._left -= stop - at
            self._deliver(data, at, stop, ended=self._ended and self._left == 0)
            at = stop
        if self._left == 0 and self._padding:
            stop = min(size, at + self._padding)
            self._padding -= stop - at
            at = stop
        if self._left >= LARGE and at == size:
            self._fill()
        return at

    def _fill(self) -> None:
        """Have the rest of the frame received where it belongs, if its stream knows."""
        transport, home = self._transport, self._home
        if self._room() is not None and transport is not None and home is not None and not transport.is_closing():
            self._filler = Filler(transport, home, self._next_room, self._filled)

    def _room(self) -> memoryview | None:
        stream = self._streams.get(self._number)
        return None if stream is None or stream.ended else stream.room(self._left)

    def _next_room(self) -> memoryview:
        room = self._room()
        self._scrap = b"" if room is not None else bytearray(min(self._left, LARGE))
        return memoryview(self._scrap) if room is None else room

    def _filled(self, size: int) -> None:
        self._left -= size
        filler = self._filler
        if self._left == 0 and filler is not None:
            self._filler = None
            filler.restore()
        ended = self._ended and self._left == 0
        if self._scrap:
            self._deliver(self._scrap, 0, size, ended=ended)
            self._scrap = b""
        elif (stream := self._streams.get(self._number)) is not None and not stream.ended:
            stream.idle_since = 0.0
            stream.ended = ended
            stream.filled(size, ended)
        self._moved()

    def _deliver(self, data: Buffer, start: int, stop: int, ended: bool) -> None:
        # Looked up each time: between two pieces of a frame the stream may have been answered or reset.
        stream = self._streams.get(self._number)
        if stream is not None and not stream.ended:
            stream.idle_since = 0.0
            stream.ended = ended
            if start < stop or ended:
                stream.receive(data, start, stop, ended)


def _nobody_listens() -> None:
    """In place of who was told of what has arrived."""
