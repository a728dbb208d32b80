"""The rest of something large, received straight to where it belongs: no buffer in between, no copy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

#: From how many missing bytes on it pays to take the socket's bytes this way.
LARGE: Final = 65_536


class Filler(asyncio.BufferedProtocol):
    """Stands in for a connection, `home`, while the bytes to come are known to belong to one place.

    `room` gives the memory for the next bytes, at least one and never more than are missing; `filled` is told how many
    have been written there, and calls `restore` after the last.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        home: asyncio.Protocol,
        room: Callable[[], memoryview],
        filled: Callable[[int], None],
    ) -> None:
        """Takes the transport over. Loop thread, while the transport is being read."""
        self._transport = transport
        self._home = home
        self._room = room
        self._filled = filled
        _switch(transport, self)

    def restore(self) -> None:
        """Give the transport back: what comes next goes to `home`."""
        transport, home = self._let_go()
        if not transport.is_closing():
            _switch(transport, home)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room()

    def buffer_updated(self, nbytes: int) -> None:
        self._filled(nbytes)

    def eof_received(self) -> bool | None:
        return self._home.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()[1].connection_lost(exc)

    def pause_writing(self) -> None:
        self._home.pause_writing()

    def resume_writing(self) -> None:
        self._home.resume_writing()

    def _let_go(self) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """uvloop's TLS keeps the last of its fillers, which must not keep what is behind it."""
        found = self._transport, self._home
        self._transport, self._home = asyncio.Transport(), asyncio.Protocol()
        self._room, self._filled = _no_room, _nothing_filled
        return found


def _no_room() -> memoryview:
    """In place of the memory that has been filled."""
    return memoryview(bytearray(1))


def _nothing_filled(size: int) -> None:
    """In place of who was told."""


def _switch(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    # uvloop looks at a protocol's kind only when it begins to read.
    reading = transport.is_reading()
    if reading:
        transport.pause_reading()
    transport.set_protocol(protocol)
    if reading:
        transport.resume_reading()
