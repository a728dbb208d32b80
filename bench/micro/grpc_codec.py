"""What one small gRPC request costs the server without sockets and without a model.

    python bench/micro/grpc_codec.py [--requests 320000] [--profile]

Frames as a gRPC client sends them go straight into the protocol object, 16 requests per read; the model, an identity
of 16 FP32, answers at once. Prints microseconds per request for the codec alone and for the whole way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from conch.config.server import GrpcOptions
from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc import GrpcCodec
from conch.transport import http2_frames as h2
from conch.transport.grpc import GrpcTransport
from support.plane import RecordingControl, echo_plane

PER_READ = 16
#: A gRPC client's header block once both sides know it: all fields from the tables.
FIELDS = (
    (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
    (b":authority", b"127.0.0.1:8001"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-python/1.70.0 grpc-c/45.0.0 (linux; chttp2)"),
    (b"te", b"trailers"),
)


class Wire(asyncio.Transport):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.writes = 0

    def write(self, data: Any) -> None:
        self.bytes += len(data)
        self.writes += 1

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def message(id: str = "") -> bytes:
    request = pb.ModelInferRequest(model_name="identity", id=id)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(struct.pack("<16f", *range(16)))
    return request.SerializeToString()


def first_block() -> bytes:
    fields = b"".join([b"\x40" + bytes([len(n)]) + n + bytes([len(v)]) + v for n, v in FIELDS])
    return b"\x83\x86" + fields


#: The five fields in the order in which they entered the table.
NEXT_BLOCK = b"\x83\x86" + bytes([0x80 | index for index in (66, 65, 64, 63, 62)])


def request(stream: int, block: bytes, body: bytes) -> bytes:
    framed = struct.pack(">BI", 0, len(body)) + body
    return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block) + h2.frame(h2.DATA, h2.END_STREAM, stream, framed)


class NoSink:
    def reply(self, *_: object) -> None: ...
    def fail(self, *_: object) -> None: ...


def codec(count: int) -> float:
    data, _ = echo_plane()
    grpc_codec, sink, body = GrpcCodec(data), NoSink(), message("7")
    found = grpc_codec.decode_infer(body, sink, 0)
    start = time.perf_counter()
    for _ in range(count):
        grpc_codec.decode_infer(body, sink, 0)
    print(f"decode  {(time.perf_counter() - start) / count * 1e6:6.2f} us")
    from conch.types.dtype import FP32
    from conch.types.response import InferResponse
    from conch.types.tensor import Tensor

    response = InferResponse([Tensor("OUTPUT0", FP32, (1, 16), bytes(64))])
    start = time.perf_counter()
    for _ in range(count):
        grpc_codec.encode_infer(found, response)
    print(f"encode  {(time.perf_counter() - start) / count * 1e6:6.2f} us")
    return 0.0


def whole(count: int, profile: bool) -> None:
    loop = asyncio.new_event_loop()
    data, _ = echo_plane()
    transport = GrpcTransport(GrpcOptions(), data, RecordingControl())
    transport.attach(loop)
    connection, wire = transport.connection(), Wire()
    connection.connection_made(wire)
    bodies = [message(str(number)) for number in range(PER_READ)]
    connection.data_received(h2.PREFACE + h2.settings({}) + request(1, first_block(), bodies[0]))
    reads = []
    stream = 3
    for _ in range(count // PER_READ):
        read = b"".join([request(stream + 2 * n, NEXT_BLOCK, bodies[n]) for n in range(PER_READ)])
        reads.append(h2.window_update(0, 16 * 200) + read)
        stream += 2 * PER_READ
    gc.collect()
    gc.freeze()
    profiler = None
    if profile:
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
    before, start = wire.bytes, time.perf_counter()
    for read in reads:
        connection.data_received(read)
    took = time.perf_counter() - start
    if profiler is not None:
        import pstats

        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(20)
    assert not connection.closing
    assert not connection.streams
    print(f"whole   {took / count * 1e6:6.2f} us   ({(wire.bytes - before) / count:.0f} bytes out per request)")
    print(f"garbage {gc.collect()} objects in cycles")
    loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=320_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    codec(options.requests)
    whole(options.requests // PER_READ * PER_READ, options.profile)


if __name__ == "__main__":
    main()
