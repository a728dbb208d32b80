"""Listening sockets, and one HTTP/1.1 listener with its connections."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from conch.transport.heads import Head, HeadCache
from conch.transport.http1 import Connection
from conch.transport.tls import Certificates, server_arguments
from conch.types.tensor import Buffer

#: Connections that wait to be accepted.
BACKLOG: Final = 1024
_MAX_SWEEP: Final = 5.0

Handle = Callable[[Connection, Head, Buffer], None]


class Listener:
    """Implements `http1.Owner` for whoever gives it the three calls.

    `route` fills in a new head, `handle` answers a request, `lost` hears of every connection that ends. All of it on
    the event loop's thread.
    """

    __slots__ = (
        "_address", "_connections", "_lost", "_reuse_port", "_server", "_sweep", "_timeout", "_tls", "draining",
        "handle", "heads", "port", "soon",
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
        tls: Certificates | None = None,
        soon: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        """`soon` has a call made in the event loop's next round; without it the running loop is asked."""
        self._address = address
        self.port = port
        self.heads = HeadCache(route)
        self.handle = handle
        self.soon = soon or _soon
        self._lost = lost
        #: Seconds that a client may take between two signs of life within a request.
        self._timeout = timeout
        self._reuse_port = reuse_port
        self._tls = tls
        self.draining = False
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind and accept. Raises OSError."""
        loop = asyncio.get_running_loop()
        sock = listen(self._address, self.port, reuse_port=self._reuse_port)
        self.port = sock.getsockname()[1]
        more = server_arguments(self._tls, sock, self._timeout)
        self._server = await loop.create_server(lambda: Connection(self), sock=sock, backlog=BACKLOG, **more)
        if self._tls is not None:
            self._tls.watch()
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
        """Requests without an answer, and answers that their clients have not taken."""
        return sum([connection.busy or connection.owed() for connection in self._connections])

    async def close(self) -> None:
        self.stop_accepting()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._tls is not None:
            self._tls.close()
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


def _soon(call: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_soon(call)


class HttpFace:
    """What every `transport.api.Transport` over a `Listener` leaves to it."""

    _listener: Listener

    @property
    def port(self) -> int:
        return self._listener.port

    async def start(self) -> None:
        await self._listener.start()

    def stop_accepting(self) -> None:
        self._listener.stop_accepting()

    def connections(self) -> int:
        return self._listener.connections()

    def inflight(self) -> int:
        return self._listener.inflight()

    async def close(self) -> None:
        await self._listener.close()


def listen(address: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A bound TCP socket; an empty `address` is every one. Raises OSError, in Triton's words when it is taken."""
    try:
        found = socket.getaddrinfo(address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(f"cannot listen on '{address}:{port}': {error.strerror}") from error
    # A name such as localhost has addresses of both kinds; Triton takes the one of IPv4.
    family, kind, protocol, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"Socket '{address}:{port}' already in use ") from error
        raise OSError(f"cannot listen on '{address}:{port}': {error.strerror}") from error
    return sock
