"""The gRPC listener: GRPCInferenceService and the standard health service over our own HTTP/2."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable
from typing import Final

from conch.config.server import GrpcOptions
from conch.memory.regions import Regions
from conch.protocol.v2.grpc_status import Status
from conch.protocol.v2.restrict import GRPC_PREFIX, Restrictions, method_category
from conch.service.api import ControlPlane, DataPlane, SettingsPlane
from conch.transport.aside import Aside
from conch.transport.bridge import Bridge
from conch.transport.grpc_call import Method, Peer, Refusal, Route, Said
from conch.transport.grpc_forward import forwarded
from conch.transport.grpc_headers import failure, field, http_failure, parse_timeout
from conch.transport.grpc_messages import ENCODINGS, choose_compression
from conch.transport.grpc_methods import ALWAYS, INFERENCE, Methods
from conch.transport.grpc_stream import DRAINING, Conversation, Stream, StreamRoute
from conch.transport.http2 import Connection
from conch.transport.http2_frames import ErrorCode
from conch.transport.http2_headers import Header
from conch.transport.http2_limits import Limits
from conch.transport.http2_upkeep import UpkeepRules
from conch.transport.listener import BACKLOG, listen
from conch.transport.tls import Certificates, negotiated, server_arguments

_log = logging.getLogger("conch")

_CLOSE_SECONDS: Final = 1.0


class GrpcTransport:
    """Implements `transport.api.Transport` and `http2.Application`. Made on the loop's thread or before the loop."""

    title = "GRPCInferenceService"

    def __init__(
        self,
        options: GrpcOptions,
        data: DataPlane,
        control: ControlPlane,
        bridge: Bridge | None = None,
        settings: SettingsPlane | None = None,
        regions: Regions | None = None,
    ) -> None:
        """`bridge`: that of the loop, where several transports share one."""
        self.port = 0
        self._options = options
        self._data = data
        self._control = control
        self._bridge = bridge
        self._settings = settings
        self._regions = regions or Regions(allowed=False)
        self._limits = Limits(
            max_concurrent_streams=options.max_concurrent_streams,
            timeout=options.slow_sender_timeout,
            upkeep=_upkeep(options),
        )
        self._tls = Certificates(options.tls, "h2") if options.tls is not None else None
        self._restricted = Restrictions(options.restricted, "protocol", GRPC_PREFIX)
        self._methods: dict[str, Method] = {}
        self._streams: dict[str, Callable[[Stream], Conversation]] = {}
        pattern = options.header_forward_pattern
        self._forward = re.compile(pattern, re.IGNORECASE) if pattern else None
        self._connections: set[Connection[Peer]] = set()
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._aside: Aside | None = None
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    # -- transport.api.Transport

    async def start(self) -> None:
        loop = self.attach(asyncio.get_running_loop())
        listener = listen(self._options.address, self._options.port, reuse_port=self._options.reuse_port)
        self.port = listener.getsockname()[1]
        more = server_arguments(self._tls, listener, self._options.slow_sender_timeout)
        self._server = await loop.create_server(self.connection, sock=listener, backlog=BACKLOG, **more)
        if self._tls is not None:
            self._tls.watch()
        self._sweep()

    def stop_accepting(self) -> None:
        self._draining = True
        for connection in self._connections:
            # What was made of known headers no longer holds.
            connection.blocks.forget()
            connection.say_goodbye()
            for stream in list(connection.streams.values()):
                if isinstance(stream, Stream):
                    stream.drain()

    def connections(self) -> int:
        return len(self._connections)

    def inflight(self) -> int:
        """Calls without an answer, and connections whose peers have not taken all that was written."""
        return sum([len(connection.streams) or connection.owed() for connection in self._connections])

    async def close(self) -> None:
        self._draining = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._tls is not None:
            self._tls.close()
        if self._server is not None:
            self._server.close()
        if self._aside is not None:
            self._aside.close()
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
        self._aside = Aside(self._bridge, "grpc-aside")
        methods = Methods(self._data, self._control, self._bridge, self._settings, self._regions)
        self._methods, self._streams = methods.table(), methods.streams()
        return loop

    def connection(self) -> Connection[Peer]:
        """A new peer's protocol object."""
        assert self._loop is not None
        assert self._bridge is not None
        return Connection(self, self._bridge, self._limits, self._loop.time, Peer(self._data, self._regions))

    # -- http2.Application

    def route(  # noqa: PLR0911  one rule after the other
        self, headers: list[Header], oversized: bool
    ) -> Route | StreamRoute | Refusal:
        assert self._bridge is not None
        assert self._aside is not None
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
            return self._refusal(Status.UNAVAILABLE, DRAINING)
        start = self._streams.get(path)
        if method is None and start is None:
            return self._refusal(Status.UNIMPLEMENTED, f"there is no method {path}")
        restricted = self._restricted.check(method_category(path), lambda name: _text(headers, name))
        if restricted is not None:
            return self._refusal(Status.UNAVAILABLE, restricted.message)
        said = self._said(headers, path)
        if isinstance(said, Refusal):
            return said
        limit = self._options.max_message_size
        if start is not None:
            return StreamRoute(start, limit, self._options.max_response_pool, said, self._aside)
        assert method is not None
        return Route(method, self._bridge, limit, said, self._aside)

    def _said(self, headers: list[Header], path: str) -> Said | Refusal:
        assert self._loop is not None
        encoding = field(headers, b"grpc-encoding")
        if encoding == b"identity":
            encoding = b""
        if encoding and encoding not in ENCODINGS.split(b","):
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
        if path not in INFERENCE:
            return Said(self._loop, timeout, encoding)
        return Said(
            self._loop,
            timeout,
            encoding,
            choose_compression(self._options.compression_level, field(headers, b"grpc-accept-encoding")),
            forwarded(self._forward, headers) if self._forward is not None else None,
            field(headers, b"triton_grpc_error") == b"true",
            field(headers, b"traceparent").decode("ascii", "replace"),
            b",".join([value for name, value in headers if name == b"tracestate"]).decode("ascii", "replace"),
        )

    def _refusal(self, status: Status, message: str) -> Refusal:
        return Refusal(failure(status, message), self._loop)

    def table_shrunk(self, connection: Connection[Peer]) -> None:
        connection.state.answers.forbid()

    def opened(self, connection: Connection[Peer]) -> None:
        self._connections.add(connection)
        if self._tls is not None and negotiated(connection.sender.transport) != "h2":
            # RFC 9113 3.2: over TLS, HTTP/2 is spoken when both have agreed on it.
            connection.shut(ErrorCode.INADEQUATE_SECURITY, "the client did not offer h2 by ALPN")

    def closed(self, connection: Connection[Peer]) -> None:
        self._connections.discard(connection)
        if self._empty is not None and not self._connections:
            self._empty.set()

    def _sweep(self) -> None:
        """Look after slow peers, a few times per time-out."""
        assert self._loop is not None
        now = self._loop.time()
        for connection in list(self._connections):
            try:
                connection.check(now)
            except Exception:  # noqa: BLE001  one bad connection must not end the care for the others
                _log.exception("a gRPC connection could not be looked after")
                connection.abort()
        tick = min(self._limits.upkeep.tick(), self._limits.timeout / 8)
        self._sweeper = self._loop.call_later(tick, self._sweep)


def _upkeep(options: GrpcOptions) -> UpkeepRules:
    return UpkeepRules(
        ping_after=options.keepalive_time_ms / 1e3,
        ping_timeout=options.keepalive_timeout_ms / 1e3,
        ping_without_calls=options.keepalive_permit_without_calls,
        max_pings_without_data=options.max_pings_without_data,
        min_ping_interval=options.min_recv_ping_interval_ms / 1e3,
        max_ping_strikes=options.max_ping_strikes,
        max_age=options.max_connection_age_ms / 1e3 or math.inf,
        max_age_grace=options.max_connection_age_grace_ms / 1e3 or math.inf,
    )


def _text(headers: list[Header], name: str) -> str | None:
    """A field's last value as text; None when it is absent."""
    key = name.encode()
    found = [value for each, value in headers if each == key]
    return found[-1].decode("utf-8", "surrogateescape") if found else None
