"""HTTP/1.1 connections that are slow to end: who is waited for, for how long, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from conch.transport.uptake import taken, untaken
from support.certificates import Authority
from support.http_plane import Plane
from support.http_server import ServerThread
from support.http_wire import Wire, get, infer, tensor
from support.until import until

LARGE = 1_000_000
BIG = infer(
    "large",
    {"inputs": [tensor("INPUT0", "UINT8", [LARGE], size=LARGE)], "parameters": {"binary_data_output": True}},
    bytes(LARGE),
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: now[0])
    return now


def test_a_reader_whose_progress_only_the_kernel_sees_is_not_cut(clock: list[float]) -> None:
    """Our buffer shrinks in steps of megabytes; what counts is whether bytes are acknowledged."""
    wire = Wire()
    transport = wire.transport
    transport.waiting, transport.acked = 5_000_000, 0
    wire.connection.pause_writing()
    for _ in range(100):
        clock[0] += 50
        transport.acked += 1000
        wire.connection.tick(60)
    assert not transport.aborted
    clock[0] += 61
    wire.connection.tick(60)
    assert transport.aborted


def test_a_buffer_that_grows_is_no_progress(clock: list[float]) -> None:
    """A stream whose client reads nothing is cut however busily its model answers."""
    wire = Wire()
    wire.transport.waiting = 100_000
    wire.connection.pause_writing()
    for _ in range(7):
        clock[0] += 10
        wire.transport.waiting += 1000
        wire.connection.tick(60)
    assert wire.transport.aborted


def test_the_kernel_tells_what_a_client_has_taken() -> None:
    """`taken` grows with what the client reads, `untaken` is 0 when it has all."""
    plane = Plane()
    server = ServerThread(plane)
    try:
        with socket.create_connection(("127.0.0.1", server.transport.port), 60) as sock:
            sock.sendall(get("/v2/health/live"))
            sock.recv(1000)
            (connection,) = server.call(lambda: set(server.transport._listener._connections))
            before = server.call(taken, connection._transport)
            assert before > 0
            sock.sendall(BIG)
            size = 0
            while size < LARGE:
                size += len(sock.recv(1 << 20))
            until(lambda: server.call(taken, connection._transport) >= before + LARGE)
            assert server.call(untaken, connection._transport) == 0
    finally:
        server.close()


class Tls:
    """What is known of the TLS below a fake transport."""

    def __init__(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        #: Bytes in the kernel.
        self.queued = 0
        transport = cast("Any", wire.transport)
        monkeypatch.setattr(transport, "can_write_eof", lambda: False)
        monkeypatch.setattr(transport, "get_extra_info", lambda name, default=None: self)
        self.family = socket.AF_INET
        monkeypatch.setattr("fcntl.ioctl", lambda fd, call, room: self.queued.to_bytes(4, "little"))

    def fileno(self) -> int:
        return 99

    def getsockopt(self, *args: object) -> bytes:
        raise OSError


def test_a_client_of_tls_that_never_says_goodbye_is_cut(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its goodbye is waited for while it still takes what was sent, and for a moment longer."""
    wire = Wire()
    tls = Tls(wire, monkeypatch)
    tls.queued = 1
    wire.feed(get("/v2/health/live", "GET", "Connection: close"))
    assert wire.transport.closed
    for _ in range(10):
        clock[0] += 100
        wire.connection.tick(60)
    assert not wire.transport.aborted
    tls.queued = 0
    clock[0] += 1
    wire.connection.tick(60)
    assert not wire.transport.aborted
    clock[0] += 2
    wire.connection.tick(60)
    assert wire.transport.aborted


def test_a_server_that_stops_waits_for_what_tls_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel holds is in flight. One look at an empty kernel is not enough: more may come from uvloop."""
    wire = Wire()
    tls = Tls(wire, monkeypatch)
    tls.queued = 5
    wire.feed(get("/v2/health/live", "GET", "Connection: close"))
    assert wire.server.inflight() == 1
    tls.queued = 0
    assert [wire.server.inflight() for _ in range(3)] == [1, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_connection_that_ends_is_freed_at_once(secure: bool, tmp_path: Path) -> None:
    """Nothing of it waits for the collector, which is tuned to come rarely; whatever it was doing."""
    options: dict[str, Any] = {}
    context: ssl.SSLContext | None = None
    if secure:
        authority = Authority(tmp_path)
        authority.issue("server")
        files = {"server_cert": str(tmp_path / "server.pem"), "server_key": str(tmp_path / "server.key")}
        options = {"use_ssl": True, **files}
        context = ssl.create_default_context(cafile=str(authority.root))
    server = ServerThread(Plane(), **options)
    gc.collect()
    before = living()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for data in (b"", get("/v2/health/live"), BIG[: LARGE // 2], BIG, b"GET / x\r\n\r\n"):
            sock = socket.create_connection(("127.0.0.1", server.transport.port), 60)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname="localhost")
            sock.sendall(data)
            until(lambda: server.call(server.transport.connections) == 1)
            if len(data) == LARGE // 2:
                until(lambda: len(living()) == len(before) + 3)
            elif data:
                sock.recv(100)
            sock.close()
            until(lambda: server.call(server.transport.connections) == 0)
        until(lambda: living() == before)
    finally:
        if collecting:
            gc.enable()
        server.close()


def living() -> Sequence[str]:
    """What connections are made of, by name."""
    names = {"conch.transport.http1.Connection", "conch.transport.filler.Filler", "conch.transport.bodies.SizedBody"}
    found = [f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()]
    return sorted([name for name in found if name in names])


def test_what_is_no_socket_has_its_buffer_alone() -> None:
    """A transport that is no socket has no kernel to ask."""

    class Pipe(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return 7

    assert (taken(Pipe()), untaken(Pipe())) == (-7, 7)
