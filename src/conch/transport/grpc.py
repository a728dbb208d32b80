"""The gRPC listener: GRPCInferenceService and the standard health service over our own HTTP/2."""

from __future__ import annotations

import asyncio
from typing import Final

from conch.config.server import GrpcOptions
from conch.protocol.v2.grpc import GrpcCodec
from conch.protocol.v2.grpc_status import Status
from conch.service.api import ControlPlane, DataPlane
from conch.transport.bridge import Bridge
from conch.transport.grpc_call import Method, Peer, Refusal, Route
from conch.transport.grpc_headers import failure, field, http_failure, parse_timeout
from conch.transport.grpc_methods import ALWAYS, MISSING, Methods
from conch.transport.http2 import Connection
from conch.transport.http2_frames import ErrorCode
from conch.transport.http2_headers import Header
from conch.transport.http2_limits import Limits
from conch.transport.listener import BACKLOG, listen

_CLOSE_SECONDS: Final = 1.0
_DRAINING: Final = "GRPC server is shutting down and has stopped accepting new requests."


class GrpcTransport:
    """Implements `transport.api.Transport` and `http2.Application`. Made on the loop's thread or before the loop."""

    title = "GRPCInferenceService"

    def __init__(
        self, options: GrpcOptions, data: DataPlane, control: ControlPlane, bridge: Bridge | None = None
    ) -> None:
        """`bridge`: that of the loop, where several transports share one."""
        self.port = 0
        self._options = options
        self._data = data
        self._control = control
        self._bridge = bridge
        self._limits = Limits(
            max_concurrent_streams=options.max_concurrent_streams, timeout=options.slow_sender_timeout
        )
        self._methods: dict[str, Method] = {}
        self._connections: set[Connection[Peer]] = set()
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    # -- transport.api.Transport

    async def start(self) -> None:
        loop = self.attach(asyncio.get_running_loop())
        listener = listen(self._options.address, self._options.port, reuse_port=self._options.reuse_port)
        self.port = listener.getsockname()[1]
        self._server = await loop.create_server(self.connection, sock=listener, backlog=BACKLOG)
        self._sweep()

    def stop_accepting(self) -> None:
        self._draining = True
        for connection in self._connections:
            # What was made of known headers no longer holds.
            connection.blocks.forget()
            connection.say_goodbye()

    def connections(self) -> int:
        return len(self._connections)

    def inflight(self) -> int:
        return sum([len(connection.streams) for connection in self._connections])

    async def close(self) -> None:
        self._draining = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.shut(ErrorCode.NO_ERROR, "the server is closing")
        if self._connections:
            self._empty = asyncio.Event()
            try:
                await asyncio.wait_for(self._empty.wait(), _CLOSE_SECONDS)
            except TimeoutError:
                for connection in list(self._connections):
                    connection.abort()

    def attach(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Get ready to serve connections on `loop`, without a listener."""
        self._loop = loop
        if self._bridge is None:
            self._bridge = Bridge(loop)
        self._methods = Methods(self._data, self._control, self._bridge).table()
        return loop

    def connection(self) -> Connection[Peer]:
        """A new peer's protocol object."""
        assert self._loop is not None
        assert self._bridge is not None
        return Connection(self, self._bridge, self._limits, self._loop.time, Peer(GrpcCodec(self._data)))

    # -- http2.Application

    def route(  # noqa: PLR0911  one rule after the other
        self, headers: list[Header], oversized: bool
    ) -> Route | Refusal:
        assert self._bridge is not None
        if field(headers, b":method") != b"POST":
            return Refusal(http_failure(405), None)
        kind = field(headers, b"content-type")
        if kind != b"application/grpc" and not kind.startswith((b"application/grpc+", b"application/grpc;")):
            return Refusal(http_failure(415), None)
        if oversized:
            limit = self._limits.max_header_list
            return self._refusal(Status.RESOURCE_EXHAUSTED, f"the request's metadata is larger than {limit} bytes")
        path = field(headers, b":path").decode("utf-8", "replace")
        method = self._methods.get(path)
        if self._draining and path not in ALWAYS:
            return self._refusal(Status.UNAVAILABLE, _DRAINING)
        if method is None:
            known = path in MISSING
            return self._refusal(
                Status.UNIMPLEMENTED, f"{path} is not supported yet" if known else f"there is no method {path}"
            )
        encoding = field(headers, b"grpc-encoding")
        if encoding not in (b"", b"identity"):
            name = encoding.decode("utf-8", "replace")
            return self._refusal(
                Status.UNIMPLEMENTED, f"the message encoding '{name}' is not supported, send it uncompressed"
            )
        given = field(headers, b"grpc-timeout")
        timeout = parse_timeout(given) if given else None
        if given and timeout is None:
            return self._refusal(
                Status.INTERNAL, f"malformed grpc-timeout {given[:64]!r}, expected up to 8 digits and a unit"
            )
        return Route(method, self._bridge, self._options.max_message_size, self._loop, timeout)

    def _refusal(self, status: Status, message: str) -> Refusal:
        return Refusal(failure(status, message), self._loop)

    def table_shrunk(self, connection: Connection[Peer]) -> None:
        connection.state.answers.forbid()

    def opened(self, connection: Connection[Peer]) -> None:
        self._connections.add(connection)

    def closed(self, connection: Connection[Peer]) -> None:
        self._connections.discard(connection)
        if self._empty is not None and not self._connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Look after slow peers, a few times per time-out."""
        assert self._loop is not None
        now = self._loop.time()
        for connection in list(self._connections):
            connection.check(now)
        self._sweeper = self._loop.call_later(min(5.0, self._limits.timeout / 8), self._sweep)
