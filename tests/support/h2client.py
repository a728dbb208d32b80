"""HTTP/2 peers without sockets: a recording transport, and a server connection to feed bytes to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from typing import Any

from hpack import Decoder

from conch.config.server import GrpcOptions
from conch.pb import grpc_service_pb2 as pb
from conch.transport import http2_frames as h2
from conch.transport.grpc import GrpcTransport
from conch.transport.http2_headers import literal
from support.deliver import deliver
from support.plane import RecordingControl, echo_plane

INFER = b"/inference.GRPCInferenceService/ModelInfer"
LIVE = b"/inference.GRPCInferenceService/ServerLive"


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.writes = 0
        self.closed = self.aborted = self.reading_paused = False
        self.protocol: asyncio.BaseProtocol | None = None
        #: What the buffer is said to hold.
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.data += data
        self.writes += 1

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_reading(self) -> bool:
        return not self.reading_paused

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def block(path: bytes = LIVE, *extra: tuple[bytes, bytes], base: Iterable[tuple[bytes, bytes]] | None = None) -> bytes:
    """A header block of literals that touch no table."""
    if base is None:
        base = (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )  # fmt: skip
    return b"".join([literal(name, value) for name, value in (*base, *extra)])


def headers(stream: int, fields: bytes | None = None, end: bool = False) -> bytes:
    flags = h2.END_HEADERS | (h2.END_STREAM if end else 0)
    return h2.frame(h2.HEADERS, flags, stream, block() if fields is None else fields)


def data(stream: int, payload: bytes = b"", end: bool = True) -> bytes:
    return h2.frame(h2.DATA, h2.END_STREAM if end else 0, stream, payload)


def framed(message: bytes = b"") -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def infer_message(id: str = "", values: Iterable[float] = (1.0, 2.0)) -> pb.ModelInferRequest:
    values = list(values)
    request = pb.ModelInferRequest(model_name="identity", id=id)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, len(values)])
    request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return request


def infer(stream: int, message: pb.ModelInferRequest | None = None, *extra: tuple[bytes, bytes]) -> bytes:
    raw = (infer_message() if message is None else message).SerializeToString()
    return headers(stream, block(INFER, *extra)) + data(stream, framed(raw))


class Served:
    """A greeted server connection of the gRPC transport over echo models. Its time stands still but for `skip`."""

    def __init__(self, mode: str = "inline", greeting: bytes | None = None, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._now = self.loop.time()
        self.loop.time = lambda: self._now  # type: ignore[method-assign]
        plane, self.registry = echo_plane(mode)
        self.control = RecordingControl()
        self.grpc = GrpcTransport(GrpcOptions(**options), plane, self.control)
        self.grpc.attach(self.loop)
        self.connection = self.grpc.connection()
        self.wire = Wire()
        self.wire.set_protocol(self.connection)
        self.connection.connection_made(self.wire)
        self._read = 0
        self._decoder = Decoder()
        self.messages: dict[int, bytes] = {}
        self.fields: dict[int, dict[str, str]] = {}
        self.feed(h2.PREFACE + h2.settings({}) if greeting is None else greeting)
        self.frames()

    @property
    def scheduler(self) -> Any:
        return self.registry.versions["identity"].scheduler

    def feed(self, *parts: bytes) -> None:
        """Each part is one read."""
        for part in parts:
            deliver(lambda: None if self.wire.closed else self.wire.protocol, part)
        self.turn()

    def turn(self) -> None:
        """Let the loop do what it was asked to."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def skip(self, seconds: float) -> None:
        """So much time has passed, as far as the connection and the loop's timers know; what they ask for is done."""
        self._now += seconds
        self.turn()
        self.turn()

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """What was written since the last call, as (type, flags, stream, payload); header blocks are also decoded."""
        found = []
        while len(self.wire.data) - self._read >= 9:
            word, flags, stream = h2.HEAD.unpack_from(self.wire.data, self._read)
            start = self._read + 9
            payload = bytes(self.wire.data[start : start + (word >> 8)])
            assert len(payload) == word >> 8
            self._read = start + len(payload)
            kind = word & 0xFF
            if kind == h2.HEADERS:
                fields = {str(name): str(value) for name, value in self._decoder.decode(payload)}
                self.fields.setdefault(stream, {}).update(fields)
            elif kind == h2.DATA:
                self.messages[stream] = self.messages.get(stream, b"") + payload
            found.append((kind, flags, stream, payload))
        return found

    def goaway(self) -> int | None:
        """The code of the GOAWAY that was sent; None without one."""
        codes = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in self.frames() if kind == h2.GOAWAY]
        return codes[-1] if codes else None

    def resets(self) -> dict[int, int]:
        """Stream to code of the RST_STREAM frames since the last look."""
        return {
            stream: int.from_bytes(payload, "big")
            for kind, _, stream, payload in self.frames()
            if kind == h2.RST_STREAM
        }

    def status(self, stream: int) -> tuple[int, str]:
        """grpc-status and grpc-message of a finished call."""
        self.frames()
        fields = self.fields[stream]
        return int(fields["grpc-status"]), fields.get("grpc-message", "")

    def close(self) -> None:
        self.connection.connection_lost(None)
        self.loop.close()
