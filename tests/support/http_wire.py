"""Bytes straight into an HTTP/1.1 connection, without sockets, and what it writes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from conch.config.server import HttpOptions
from conch.transport.bridge import Bridge
from conch.transport.http import HttpTransport
from conch.transport.http1 import Connection
from support.deliver import deliver
from support.http_plane import Plane


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])


class FakeTransport:
    """Collects what is written. `blocked` plays a client that does not read."""

    def __init__(self) -> None:
        self.protocol: asyncio.BaseProtocol | None = None
        self.sent = bytearray()
        self.writes = 0
        self.reading = True
        self.closed = False
        self.aborted = False
        self.ended = False
        self.waiting = 0
        #: Of TCP: what the kernel says has been acknowledged; None for a transport without a socket.
        self.acked: int | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" and self.acked is not None else default

    family = socket.AF_INET

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return struct.pack("=120xQ", self.acked)[:size]

    def write(self, data: Any) -> None:
        assert not self.closed
        assert not self.ended
        self.sent += data
        self.writes += 1

    def writelines(self, parts: list[Any]) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, *, high: int) -> None:
        """As uvloop's: more than `high` bytes waiting are too many from now on."""
        if self.waiting > high and isinstance(self.protocol, asyncio.Protocol):
            self.protocol.pause_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


@dataclass(eq=False)
class Timer:
    """A call that waits for its time; `fire` makes it come."""

    loop: FakeLoop
    seconds: float
    call: Callable[[], object]

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)

    def fire(self) -> None:
        self.cancel()
        self.call()


class FakeLoop:
    """As much of an event loop as the bridge needs."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()
        #: For the end of this tick.
        self.soon: list[Callable[[], object]] = []
        self.timers: list[Timer] = []
        self.woken = threading.Event()

    def call_soon(self, call: Callable[[], object]) -> None:
        self.soon.append(call)

    def end_tick(self) -> None:
        while self.soon:
            self.soon.pop(0)()

    def call_later(self, seconds: float, call: Callable[..., object], *args: Any) -> Timer:
        self.timers.append(Timer(self, seconds, lambda: call(*args)))
        return self.timers[-1]

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        self.calls.append(call)
        self.woken.set()


class Wire:
    """One connection to a server over `plane`; `feed` gives it bytes, `replies` takes its answers apart."""

    def __init__(self, plane: Plane | None = None, options: HttpOptions | None = None) -> None:
        self.plane = plane or Plane(keep=True)
        self.loop = FakeLoop()
        bridge = Bridge(cast("asyncio.AbstractEventLoop", self.loop))
        self.server = HttpTransport(options or HttpOptions(), self.plane, self.plane, bridge)
        self.open()

    def open(self) -> None:
        self.transport = FakeTransport()
        self.connection = Connection(self.server._listener)
        self.transport.set_protocol(self.connection)
        self.connection.connection_made(cast("asyncio.Transport", self.transport))

    def feed(self, *pieces: bytes) -> Wire:
        for piece in pieces:
            deliver(lambda: None if self.transport.closed else self.transport.protocol, piece)
            self.loop.end_tick()
        return self

    def ask(self, data: bytes) -> Reply:
        """Feed one request, take its answer, if need be when threads have done their part."""
        before = len(self.transport.sent)
        self.feed(data)
        while self.connection.busy and len(self.transport.sent) == before:
            self.turn()
        (reply,) = take_apart(bytes(self.transport.sent[before:]))
        return reply

    def replies(self) -> list[Reply]:
        self.loop.end_tick()
        return take_apart(bytes(self.transport.sent))

    def turn(self) -> None:
        """Wait until another thread has woken the loop, and run what it has left there."""
        assert self.loop.woken.wait(60)
        self.loop.woken.clear()
        while self.loop.calls:
            self.loop.calls.popleft()()
        self.loop.end_tick()


def take_chunked(sent: bytes) -> tuple[Reply, list[bytes]]:
    """One chunked answer, and its chunks; those of an answer that goes on are all but the last, which is empty."""
    head, _, rest = sent.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in headers
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return Reply(int(first.split()[1]), headers, b"".join(chunks)), chunks


def take_apart(sent: bytes) -> list[Reply]:
    replies = []
    while sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Za-z ]+", first)
        assert match, first
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("Content-Length", 0))
        assert len(rest) >= length
        replies.append(Reply(int(match[1]), headers, rest[:length]))
        sent = rest[length:]
    return replies


def post(path: str, body: bytes | str | dict[str, Any], *headers: str) -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body)
    raw = body.encode() if isinstance(body, str) else body
    lines = [f"POST {path} HTTP/1.1", "Host: test", *headers, f"Content-Length: {len(raw)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def get(path: str, method: str = "GET", *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers]).encode() + b"\r\n\r\n"


def infer(model: str, head: dict[str, Any], blobs: bytes = b"", *headers: str) -> bytes:
    """An infer request; with `blobs` the binary form."""
    text = json.dumps(head).encode()
    if blobs:
        headers = (*headers, f"Inference-Header-Content-Length: {len(text)}")
    return post(f"/v2/models/{model}/infer", text + blobs, *headers)


def tensor(name: str, datatype: str, shape: list[int], data: Any = None, size: int | None = None) -> dict[str, Any]:
    described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if data is not None:
        described["data"] = data
    if size is not None:
        described["parameters"] = {"binary_data_size": size}
    return described
