"""One HTTP/1.1 listening socket and its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from conch.transport.heads import Head, HeadCache
from conch.transport.http1 import Connection
from conch.types.tensor import Buffer

_BACKLOG: Final = 1024
_MAX_SWEEP: Final = 5.0

Handle = Callable[[Connection, Head, Buffer], None]


class Listener:
    """Implements `http1.Owner` for whoever gives it the three calls.

    `route` fills in a new head, `handle` answers a request, `lost` hears of every connection that ends. All of it on
    the event loop's thread.
    """

    __slots__ = (
        "_address", "_connections", "_lost", "_reuse_port", "_server", "_sweep", "_timeout", "draining", "handle",
        "heads", "port",
    )  # fmt: skip

    def __init__(
        self,
        address: str,
        port: int,
        *,
        route: Callable[[Head], None],
        handle: Handle,
        lost: Callable[[Connection], None],
        timeout: float,
        reuse_port: bool = False,
    ) -> None:
        self._address = address
        self.port = port
        self.heads = HeadCache(route)
        self.handle = handle
        self._lost = lost
        #: Seconds that a client may take between two signs of life within a request.
        self._timeout = timeout
        self._reuse_port = reuse_port
        self.draining = False
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind and accept. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self),
            self._address or None,
            self.port,
            backlog=_BACKLOG,
            reuse_port=self._reuse_port or None,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._plan_sweep(loop)

    def stop_accepting(self) -> None:
        """Refuse new connections; close those that are idle, the others after their answer."""
        if self._server is not None:
            self._server.close()
        self.draining = True
        for connection in list(self._connections):
            connection.stop()

    def connections(self) -> int:
        return len(self._connections)

    def inflight(self) -> int:
        return sum([connection.busy for connection in self._connections])

    async def close(self) -> None:
        self.stop_accepting()
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._connections):
            connection.close()
        # The transports close at the end of this tick.
        await asyncio.sleep(0)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self.draining:
            connection.stop()

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._lost(connection)

    def _plan_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = loop.call_later(min(self._timeout / 4, _MAX_SWEEP), self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        for connection in list(self._connections):
            connection.tick(self._timeout)
        self._plan_sweep(loop)
