"""What one HTTP infer request costs in our own code: framing, decoding, an identity model, encoding, framing.

Run `python bench/micro/http_codec.py`. Bytes go straight into the connection and answers into a list: no sockets, no
kernel. Prints the best of several rounds, in microseconds per request.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from conch.config.server import HttpOptions
from conch.transport.bridge import Bridge
from conch.transport.http import HttpTransport
from conch.transport.http1 import Connection
from support.http_plane import Plane  # type: ignore[import-not-found,unused-ignore]

ROUNDS = 9


class Wire:
    """A transport that forgets what it is given but for the last answer."""

    def __init__(self) -> None:
        self.last: bytes = b""
        self.written = 0

    def write(self, data: bytes) -> None:
        self.last = data
        self.written += 1

    def writelines(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    def is_closing(self) -> bool:
        return False


def binary_request(size: int, ident: str = "") -> bytes:
    head: dict[str, object] = {"id": ident} if ident else {}
    head["inputs"] = [
        {"name": "INPUT0", "shape": [1, size], "datatype": "FP32", "parameters": {"binary_data_size": 4 * size}}
    ]
    head["outputs"] = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    text = json.dumps(head, separators=(",", ":")).encode()
    data = struct.pack(f"<{size}f", *range(size))
    return (
        (
            b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: localhost:8000\r\nAccept: */*\r\n"
            b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(text), len(text) + len(data))
        )
        + text
        + data
    )


def json_request(size: int) -> bytes:
    numbers = [i * 0.37 for i in range(size)]
    body = {"inputs": [{"name": "INPUT0", "shape": [1, size], "datatype": "FP32", "data": numbers}]}
    text = json.dumps(body).encode()
    return (
        b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: localhost:8000\r\nAccept: */*\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
    ) + text


def measure(name: str, requests: list[bytes], connection: Connection, wire: Wire, repeat: int) -> None:
    receive: Callable[[bytes], None] = connection.data_received
    for request in requests:
        receive(request)
        if not wire.last.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{name}: {wire.last[:300]!r}")
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(repeat):
            for request in requests:
                receive(request)
        best = min(best, (time.perf_counter() - start) / (repeat * len(requests)))
    print(f"{name:34} {best * 1e6:8.2f} us")


async def main() -> None:
    plane = Plane()
    transport = HttpTransport(HttpOptions(), plane, plane, Bridge(asyncio.get_running_loop()))
    wire = Wire()
    connection = Connection(transport._listener)
    connection.connection_made(cast("asyncio.Transport", wire))
    idents = [binary_request(16, str(100_000 + i)) for i in range(500)]
    measure("binary [16] FP32", [binary_request(16)], connection, wire, 20_000)
    measure("binary [16] FP32, other id each", idents, connection, wire, 40)
    measure("JSON [16] FP32", [json_request(16)], connection, wire, 20_000)
    measure("binary [16] FP32, 16 pipelined", [binary_request(16) * 16], connection, wire, 1_000)


if __name__ == "__main__":
    asyncio.run(main())
