"""Gives bytes to a protocol as the event loop does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def deliver(protocol: Callable[[], asyncio.BaseProtocol | None], piece: bytes) -> None:
    """To a buffered protocol as much at a time as it has room for. `protocol` says who takes the next bytes."""
    while piece:
        taker = protocol()
        if taker is None:
            return
        if not isinstance(taker, asyncio.BufferedProtocol):
            assert isinstance(taker, asyncio.Protocol)
            taker.data_received(piece)
            return
        room = taker.get_buffer(-1)
        size = min(len(room), len(piece))
        assert size
        room[:size] = piece[:size]
        piece = piece[size:]
        taker.buffer_updated(size)
