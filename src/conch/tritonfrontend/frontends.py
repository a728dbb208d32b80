"""Listeners that are started and stopped by themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from conch import library, tritonserver
from conch.config.server import GrpcOptions, HttpOptions, MetricsOptions
from conch.listeners import Listeners
from conch.transport.api import Transport

_ANYWHERE = "0.0.0.0"  # noqa: S104  Triton's default


class Frontend:
    """One listener; a context manager. Errors are those of the socket (OSError)."""

    def __init__(
        self,
        server: tritonserver.Server | library.Server,
        open_listener: Callable[[Listeners], Coroutine[Any, Any, Transport]],
    ) -> None:
        self._server = server.inner if isinstance(server, tritonserver.Server) else server
        self._open = open_listener
        self._transport: Transport | None = None

    @property
    def port(self) -> int:
        """The port really bound; 0 while it is stopped."""
        return 0 if self._transport is None else self._transport.port

    def start(self) -> None:
        if self._transport is None:
            self._transport = self._server.on_listeners(self._open)

    def stop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None and self._server.live():
            self._server.on_listeners(lambda listeners: listeners.remove(transport))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class KServeHttp(Frontend):
    @dataclass
    class Options:
        address: str = _ANYWHERE
        port: int = 8000
        reuse_port: bool = False
        #: One thread serves all connections, whatever is said here.
        thread_count: int = 8
        header_forward_pattern: str = ""

    def __init__(self, server: tritonserver.Server | library.Server, options: Options | None = None) -> None:
        given = options or KServeHttp.Options()
        _unused(given, thread_count=8)
        made = HttpOptions(
            address=given.address,
            port=given.port,
            reuse_port=given.reuse_port,
            header_forward_pattern=given.header_forward_pattern,
        )
        super().__init__(server, lambda listeners: listeners.http(made))


class KServeGrpc(Frontend):
    @dataclass
    class Options:
        address: str = _ANYWHERE
        port: int = 8001
        reuse_port: bool = False
        use_ssl: bool = False
        use_ssl_mutual: bool = False
        server_cert: str = ""
        server_key: str = ""
        root_cert: str = ""
        keepalive_time: int = 7_200_000
        keepalive_timeout: int = 20_000
        keepalive_permit_without_calls: bool = False
        http2_max_pings_without_data: int = 2
        http2_min_recv_ping_interval_without_data: int = 300_000
        http2_max_ping_strikes: int = 2
        max_connection_age: int = 0
        max_connection_age_grace: int = 0
        infer_compression_level: Any = "none"
        #: One thread serves all connections, and nothing is kept for reuse, whatever is said here.
        infer_thread_count: int = 2
        infer_allocation_pool_size: int = 8
        max_response_pool_size: int = 2_147_483_647
        forward_header_pattern: str = ""

    def __init__(self, server: tritonserver.Server | library.Server, options: Options | None = None) -> None:
        given = options or KServeGrpc.Options()
        _unused(given, infer_thread_count=2, infer_allocation_pool_size=8)
        level = getattr(given.infer_compression_level, "name", given.infer_compression_level)
        made = GrpcOptions(
            address=given.address,
            port=given.port,
            reuse_port=given.reuse_port,
            use_ssl=given.use_ssl,
            use_ssl_mutual=given.use_ssl_mutual,
            server_cert=given.server_cert,
            server_key=given.server_key,
            root_cert=given.root_cert,
            keepalive_time_ms=given.keepalive_time,
            keepalive_timeout_ms=given.keepalive_timeout,
            keepalive_permit_without_calls=given.keepalive_permit_without_calls,
            max_pings_without_data=given.http2_max_pings_without_data,
            min_recv_ping_interval_ms=given.http2_min_recv_ping_interval_without_data,
            max_ping_strikes=given.http2_max_ping_strikes,
            max_connection_age_ms=given.max_connection_age,
            max_connection_age_grace_ms=given.max_connection_age_grace,
            compression_level=str(level).lower(),
            max_response_pool=given.max_response_pool_size,
            header_forward_pattern=given.forward_header_pattern,
        )
        super().__init__(server, lambda listeners: listeners.grpc(made))


class Metrics(Frontend):
    @dataclass
    class Options:
        address: str = _ANYWHERE
        port: int = 8002
        thread_count: int = 1

    def __init__(self, server: tritonserver.Server | library.Server, options: Options | None = None) -> None:
        given = options or Metrics.Options()
        _unused(given, thread_count=1)
        made = MetricsOptions(address=given.address, port=given.port)
        super().__init__(server, lambda listeners: listeners.metrics(made))


def _unused(options: Any, **defaults: int) -> None:
    for name, default in defaults.items():
        if getattr(options, name) != default:
            warnings.warn(f"{name}={getattr(options, name)} has no effect: one thread serves all", stacklevel=3)
