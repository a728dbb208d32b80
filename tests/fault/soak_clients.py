"""The clients of the soak: honest ones, which check every answer, and others, which do what clients ought not to do."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory

import grpc

from conch.pb import grpc_service_pb2 as pb
from support.server import Server

SERVICE = "/inference.GRPCInferenceService"
TIMEOUT = 60.0
Client = Callable[[Server, random.Random, threading.Event], Iterator[None]]


class WrongAnswerError(AssertionError):
    """An honest request did not get what it asked for."""


def check(good: bool, *what: object) -> None:
    if not good:
        raise WrongAnswerError(*what)


def floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def some(chance: random.Random) -> list[float]:
    return [float(chance.randrange(1000)) for _ in range(4)]


def post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    data = response.read()
    check(response.status == 200, path, response.status, data[:300])
    return response, data


def model_of(chance: random.Random) -> str:
    return chance.choice(["echo", "identity"])


def json_body(values: list[float]) -> bytes:
    return json.dumps({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "data": values}]}).encode()


@contextmanager
def http_connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT)
    try:
        yield connection
    finally:
        connection.close()


def http_json(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """JSON, at times compressed in either direction."""
    with http_connection(server) as connection:
        while not stop.is_set():
            values, headers = some(chance), {}
            body = json_body(values)
            how = chance.randrange(4)
            if how == 1:
                body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
            if how == 2:
                body, headers = zlib.compress(body), {"Content-Encoding": "deflate", "Accept-Encoding": "gzip"}
            response, data = post(connection, f"/v2/models/{model_of(chance)}/infer", body, headers)
            if response.headers["Content-Encoding"] == "gzip":
                data = gzip.decompress(data)
            check(json.loads(data)["outputs"][0]["data"] == values, data)
            yield


def http_binary(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Binary tensors, small and large."""
    with http_connection(server) as connection:
        while not stop.is_set():
            rows = chance.choice([1, 3, 20_000]) if chance.random() < 0.1 else 1
            blob = floats(some(chance)) * rows
            tensor = {
                "name": "X",
                "datatype": "FP32",
                "shape": [rows, 4],
                "parameters": {"binary_data_size": len(blob)},
            }
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            size = {"Inference-Header-Content-Length": str(len(head))}
            model = "large" if rows > 1 else model_of(chance)
            response, data = post(connection, f"/v2/models/{model}/infer", head + blob, size)
            check(data[int(response.headers["Inference-Header-Content-Length"]) :] == blob, model, rows)
            yield


def infer_message(model: str, values: list[float], id: str = "") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, id=id)
    message.inputs.add(name="X", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(floats(values))
    return message


def repeat_message(count: int, id: str = "") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="repeat", id=id)
    message.inputs.add(name="N", datatype="INT32", shape=[1])
    message.raw_input_contents.append(struct.pack("<i", count))
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def grpc_unary(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """ModelInfer on one connection for some time, then on another; some messages are compressed."""
    while not stop.is_set():
        with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(f"{SERVICE}/ModelInfer")
            for _ in range(200):
                if stop.is_set():
                    return
                values = some(chance)
                kind = chance.choice([None, None, grpc.Compression.Gzip, grpc.Compression.Deflate])
                message = infer_message(model_of(chance), values).SerializeToString()
                reply = pb.ModelInferResponse.FromString(call(message, timeout=TIMEOUT, compression=kind))
                check(reply.raw_output_contents[0] == floats(values), reply)
                yield


def grpc_stream(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """A conversation with a decoupled model and a plain one."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
        while not stop.is_set():
            wanted = {str(n): chance.randrange(8) for n in range(4)}
            messages = [repeat_message(count, key).SerializeToString() for key, count in wanted.items()]
            messages.append(infer_message("echo", some(chance), "plain").SerializeToString())
            got = dict.fromkeys([*wanted, "plain"], 0)
            finals = 0
            for data in call(iter(messages), timeout=TIMEOUT):
                reply = pb.ModelStreamInferResponse.FromString(data)
                check(not reply.error_message, reply)
                got[reply.infer_response.id] += len(reply.infer_response.outputs)
                finals += reply.infer_response.parameters["triton_final_response"].bool_param
            check(got == {**wanted, "plain": 1}, got, wanted)
            check(finals == 5, finals)
            yield


def generate_stream(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Server-sent events, each counted."""
    with http_connection(server) as connection:
        while not stop.is_set():
            count = chance.randrange(1, 10)
            _, data = post(connection, "/v2/models/repeat/generate_stream", json.dumps({"N": count}).encode())
            events = [json.loads(line[6:])["OUT"] for line in data.decode().split("\n\n") if line]
            check(events == list(range(count)), data)
            yield


NUMBERS = itertools.count()


def shared_memory(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Registers a region, uses it in and out, unregisters it."""
    with http_connection(server) as connection:
        while not stop.is_set():
            name = f"soak_{next(NUMBERS)}"
            region = SharedMemory(create=True, size=64)
            try:
                values = floats(some(chance))
                region.buf[:16] = values
                at = "/v2/systemsharedmemory/region/" + name
                post(connection, at + "/register", json.dumps({"key": "/" + region.name, "byte_size": 64}).encode())
                where = {"shared_memory_region": name, "shared_memory_byte_size": 16}
                body = {
                    "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 4], "parameters": where}],
                    "outputs": [{"name": "Y", "parameters": {**where, "shared_memory_offset": 32}}],
                }
                post(connection, f"/v2/models/{model_of(chance)}/infer", json.dumps(body).encode())
                check(bytes(region.buf[32:48]) == values, "shared memory", name)
                post(connection, at + "/unregister", b"")
            finally:
                region.close()
                region.unlink()
            yield


def raw_http(values: list[float]) -> bytes:
    body = json_body(values)
    return b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def port_of(server: Server, chance: random.Random) -> int:
    return chance.choice([server.http_port, server.grpc_port])


def vanishing(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Sends a request, all or part of it, and is gone; at times with a reset."""
    while not stop.wait(0.01):
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.http_port), timeout=TIMEOUT) as sock:
            request = raw_http(some(chance))
            sock.sendall(request[: chance.choice([len(request), chance.randrange(len(request))])])
            if chance.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield


def cancelling(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Cancels calls and streams, or gives them deadlines that cannot be met."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        unary = channel.unary_unary(f"{SERVICE}/ModelInfer")
        stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
        while not stop.wait(0.01):
            with suppress(grpc.RpcError):
                if chance.random() < 0.5:
                    message = infer_message("slow", some(chance)).SerializeToString()
                    call = unary.future(message, timeout=chance.choice([TIMEOUT, 0.005]))
                    time.sleep(chance.random() * 0.01)
                    call.cancel()
                else:
                    replies = stream(iter([repeat_message(1000).SerializeToString()]), timeout=TIMEOUT)
                    for _ in range(chance.randrange(4)):
                        next(replies)
                    replies.cancel()
            yield


def stalling(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Sends half of something and waits, or asks for much and does not read it."""
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.http_port), timeout=TIMEOUT) as sock:
            if chance.random() < 0.5:
                request = raw_http(some(chance))
                sock.sendall(request[: chance.randrange(1, len(request))])
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                body = b'{"N": 20000}'
                head = (
                    b"POST /v2/models/repeat/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                    % len(body)
                )
                sock.sendall(head + body)
            stop.wait(chance.random() * 2)
        yield


def garbage(server: Server, chance: random.Random, stop: threading.Event) -> Iterator[None]:
    """Bytes by chance: alone, behind a good beginning, or as frames."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    while not stop.wait(0.02):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port_of(server, chance)), timeout=1) as sock:
            noise = chance.randbytes(chance.randrange(1, 2000))
            frames = b"".join(
                struct.pack(">I", len(part))[1:] + bytes([chance.randrange(12), chance.randrange(256)])
                + struct.pack(">I", chance.randrange(8)) + part
                for part in (chance.randbytes(chance.randrange(40)) for _ in range(chance.randrange(1, 20)))
            )  # fmt: skip
            sock.sendall(chance.choice([noise, preface + noise, preface + frames, raw_http(some(chance))[:-9] + noise]))
            sock.settimeout(0.05)
            with suppress(OSError):
                sock.recv(65536)
        yield


HONEST: tuple[Client, ...] = (http_json, http_binary, grpc_unary, grpc_stream, generate_stream, shared_memory)
HOSTILE: tuple[Client, ...] = (vanishing, cancelling, stalling, garbage)
