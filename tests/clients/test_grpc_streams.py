"""Streams, compression and reflection by clients that others wrote, against the gRPC transport with echo models."""

from __future__ import annotations

import asyncio
import queue
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from support.grpc_server import GrpcServer
from support.until import until


@pytest.fixture(scope="module", params=["inline", "thread"])
def server(request: pytest.FixtureRequest) -> Iterator[GrpcServer]:
    with GrpcServer(request.param, compression_level="low") as running:
        yield running


def inputs(count: int) -> list[tritonclient.grpc.InferInput]:
    tensor = tritonclient.grpc.InferInput("N", [1], "INT32")
    tensor.set_data_from_numpy(np.array([count], np.int32))
    return [tensor]


def identity(values: list[float]) -> list[tritonclient.grpc.InferInput]:
    tensor = tritonclient.grpc.InferInput("INPUT0", [1, len(values)], "FP32")
    tensor.set_data_from_numpy(np.array([values], np.float32))
    return [tensor]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_streams(server: GrpcServer, compression: str | None) -> None:
    """start_stream: answers of all kinds arrive in order, errors too, and the stream goes on."""
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)), compression_algorithm=compression)
        for number in range(20):
            client.async_stream_infer("identity", identity([number] * 300), request_id=str(number))
        client.async_stream_infer("nope", identity([1]), request_id="bad")
        client.async_stream_infer("decoupled", inputs(100), request_id="many", enable_empty_final_response=True)
        client.stop_stream()
    results = [answers.get(timeout=60) for _ in range(122)]
    assert answers.empty()
    ordered = [(r, e) for r, e in results if e is not None or r.get_response().model_name == "identity"]
    assert [int(r.get_response().id) for r, _ in ordered[:20]] == list(range(20))
    assert ordered[7][0].as_numpy("OUTPUT0").tolist() == [[7.0] * 300]
    assert ordered[20][1].message() == "Request for unknown model: 'nope' is not found"
    many = [r for r, e in results if e is None and r.get_response().model_name == "decoupled"]
    assert [int(r.as_numpy("OUT")[0]) for r in many[:-1]] == list(range(100))
    finals = [r.get_response().parameters["triton_final_response"].bool_param for r in many]
    assert finals == [False] * 100 + [True]
    assert many[-1].as_numpy("OUT") is None


def test_the_aio_client_streams(server: GrpcServer) -> None:
    """stream_infer of the asyncio client: an iterator of requests in, one of answers out."""

    async def run() -> list[tuple[Any, Any]]:
        async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:

            async def requests() -> Any:
                for number in range(10):
                    yield {"model_name": "identity", "inputs": identity([number]), "request_id": str(number)}
                    yield {"model_name": "decoupled", "inputs": inputs(2), "request_id": f"d{number}"}

            return [each async for each in client.stream_infer(requests())]

    found = asyncio.run(run())
    assert all(error is None for _, error in found)
    ids = [result.get_response().id for result, _ in found]
    assert [each for each in ids if not each.startswith("d")] == [str(n) for n in range(10)]
    assert sorted(each for each in ids if each.startswith("d")) == sorted([f"d{n}" for n in range(10)] * 2)


def test_errors_end_a_stream_that_asked_for_it() -> None:
    """triton_grpc_error: the first error of a model is the stream's status."""
    from conch.types.error import Code, InferError

    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with GrpcServer("hold") as server, tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer("identity", identity([1]))
        until(lambda: bool(server.scheduler.held))
        request = server.scheduler.held[0]
        request.sink.fail(request, InferError(Code.UNAVAILABLE, "it broke"))
        error = answers.get(timeout=60)[1]
        assert isinstance(error, InferenceServerException)
        assert (error.status(), error.message()) == ("StatusCode.UNAVAILABLE", "it broke")
        client.stop_stream()


def test_a_cancelled_stream_cancels_its_requests() -> None:
    """stop_stream(cancel_requests=True), and a stream's time-out, reach every request on the way."""
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    with GrpcServer("hold") as server:
        for timeout in (None, 0.5, 2, 8):
            with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
                client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=timeout)
                for _ in range(3):
                    client.async_stream_infer("identity", identity([1]))
                until(lambda: len(server.scheduler.held) >= 3 or not answers.empty())
                arrived = len(server.scheduler.held) >= 3
                held, server.scheduler.held = server.scheduler.held, []
                if timeout is None:
                    client.stop_stream(cancel_requests=True)
                error = answers.get(timeout=60)[1]
                assert isinstance(error, InferenceServerException)
                code = "CANCELLED" if timeout is None else "DEADLINE_EXCEEDED"
                assert error.status() == f"StatusCode.{code}"
                until(lambda: all(request.cancelled for request in held))  # noqa: B023
                server.scheduler.held = []
            if timeout is not None and arrived:
                break
        assert arrived


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_tritonclient_compresses(server: GrpcServer, compression: str) -> None:
    """compression_algorithm for one call, sync and async."""
    values = [float(n) for n in range(5000)]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        answer = client.infer("identity", identity(values), compression_algorithm=compression)
        assert answer.as_numpy("OUTPUT0").tolist() == [values]

    async def run() -> Any:
        async with tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            return await client.infer("identity", identity(values), compression_algorithm=compression)

    assert asyncio.run(run()).as_numpy("OUTPUT0").tolist() == [values]


def test_large_messages_on_a_stream(server: GrpcServer) -> None:
    """Tensors larger than the windows go both ways."""
    answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    values = np.arange(3_000_000, dtype=np.float32)[None]
    tensor = tritonclient.grpc.InferInput("INPUT0", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for _ in range(4):
            client.async_stream_infer("identity", [tensor])
        client.stop_stream()
    for _ in range(4):
        result, error = answers.get(timeout=60)
        assert error is None
        assert np.array_equal(result.as_numpy("OUTPUT0"), values)


def test_reflection_serves_a_dynamic_client(server: GrpcServer) -> None:
    """A client that knows no message asks for descriptors, makes a request of them, and is answered."""
    from google.protobuf.message_factory import GetMessageClass

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        pool = DescriptorPool(database)
        method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
        request = GetMessageClass(method.input_type)(model_name="identity", id="r")
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<f", 2.0))
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        assert call(request, timeout=60).id == "r"


def test_health_watch(server: GrpcServer) -> None:
    """The standard client's Watch hears of changes."""
    from conch.pb import health_pb2

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == 1
        server.registry.is_ready = False
        assert next(watch).status == 2
        server.registry.is_ready = True
        assert next(watch).status == 1
        watch.cancel()
