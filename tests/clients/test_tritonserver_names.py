"""Triton's in-process names: `conch.tritonserver` and `conch.tritonfrontend`."""

from __future__ import annotations

import asyncio
import queue
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as grpc_client

from conch import tritonserver
from conch.library import Server as LibraryServer
from conch.tritonfrontend import KServeGrpc, KServeHttp, Metrics
from conch.types.error import unavailable

CONFIG = """
backend: "identity"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
input [ { name: "s" data_type: TYPE_STRING dims: [ 1 ] optional: true } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } , { name: "t" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
SQUARE = """
backend: "square"
max_batch_size: 0
model_transaction_policy { decoupled: True }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for name, config in (("echo", CONFIG), ("many", SQUARE)):
        (path / name / "1").mkdir(parents=True)
        (path / name / "config.pbtxt").write_text(config)
    return path


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[tritonserver.Server]:
    server = tritonserver.Server(
        model_repository=repository,
        model_control_mode=tritonserver.ModelControlMode.EXPLICIT,
        startup_models=["echo", "many"],
        server_id="mine",
    )
    server.start(wait_until_ready=True, timeout=60)
    yield server
    server.stop()


def test_options_are_flags(tmp_path: Path) -> None:
    """Each of Triton's options has its place among the server's."""
    options = tritonserver.Options(
        tmp_path,
        rate_limiter_mode=tritonserver.RateLimitMode.EXEC_COUNT,
        rate_limiter_resources=[tritonserver.RateLimiterResource("R", 4), tritonserver.RateLimiterResource("S", 1, 0)],
        cache_config={"local": {"size": 1024}},
        backend_configuration={"python": {"stub-timeout-seconds": 5}, "": {}},
        host_policies={"cpu": {"cpu-cores": "0"}},
        model_load_device_limits={tritonserver.InstanceGroupKind.GPU: {0: 0.5}},
        strict_model_config=True,
        exit_timeout=7,
        model_load_thread_count=2,
    )
    made = tritonserver.Server(options).inner.options
    assert made.rate.mode == "execution_count"
    assert made.rate.resources == (("R", 4, None), ("S", 1, 0))
    assert made.cache.name == "local"
    assert made.backend["python"] == {"stub-timeout-seconds": "5"}
    assert made.host_policies["cpu"].cpu_cores == {0}
    assert made.gpu.load_limits == {0: 0.5}
    assert (made.repository.auto_complete, made.exit_timeout, made.repository.load_threads) == (False, 7.0, 2)
    with pytest.raises(tritonserver.InvalidArgumentError, match="Got x"):
        tritonserver.Server(model_repository=tmp_path, host_policies={"cpu": {"numa-node": "x"}})


def test_a_model_answers_once(server: tritonserver.Server) -> None:
    """Arrays, lists and tensors in; one final response with tensors out."""
    model = server.model("echo")
    (response,) = model.infer(
        inputs={"x": np.ones((1, 2), np.float32), "s": [["é"]]}, request_id="7", parameters={"p": 1}
    )
    assert (response.request_id, response.final, response.model.name) == ("7", True, "echo")
    np.testing.assert_array_equal(np.from_dlpack(response.outputs["y"]), [[1, 1]])
    assert response.outputs["t"].to_string_array().tolist() == [["é"]]
    assert response.outputs["t"].data_type is tritonserver.DataType.BYTES
    tensor = tritonserver.Tensor.from_dlpack(np.full((1, 2), 3, np.float32))
    assert (tensor.shape, tensor.size, tensor.data_type) == ([1, 2], 8, tritonserver.DataType.FP32)
    (response,) = model.infer(model.create_request(inputs={"x": tensor}))
    assert response.outputs["y"].to_numpy().tolist() == [[3, 3]]


def test_a_decoupled_model_answers_until_the_final_response(server: tritonserver.Server) -> None:
    """As many responses as there are, then one that is final; the same with an event loop."""
    model = server.model("many")
    assert model.transaction_properties() is tritonserver.ModelTxnPropertyFlag.DECOUPLED
    found = list(model.infer(inputs={"IN": np.array([3], np.int32)}))
    assert [each.final for each in found] == [False, False, False, True]

    async def main() -> list[bool]:
        responses = model.async_infer(inputs={"IN": np.array([2], np.int32)})
        return [each.final async for each in responses]

    assert asyncio.run(main()) == [False, False, True]
    left = model.infer(inputs={"IN": np.array([1000], np.int32)})
    next(left)
    left.cancel()
    assert list(left) == []


def test_a_queue_gets_responses_without_an_iteration(server: tritonserver.Server) -> None:
    """Who reads the queue alone gets all of them, the final one too; who iterates as well gets the same again."""
    model, inputs = server.model("many"), {"IN": np.array([3], np.int32)}
    put: queue.Queue[tritonserver.InferenceResponse] = queue.Queue()
    model.infer(inputs=inputs, response_queue=put)
    assert [put.get(timeout=60).final for _ in range(4)] == [False, False, False, True]
    again = list(model.infer(inputs=inputs, response_queue=put))
    assert [put.get(timeout=60) for _ in range(4)] == again
    left = model.infer(inputs={"IN": np.array([100_000], np.int32)}, response_queue=put)
    put.get(timeout=60)
    left.cancel()
    while not put.get(timeout=60).final:
        pass
    assert list(left) == []

    async def main() -> tuple[list[bool], list[tritonserver.InferenceResponse], list[tritonserver.InferenceResponse]]:
        mine: asyncio.Queue[tritonserver.InferenceResponse] = asyncio.Queue(2)
        model.async_infer(inputs=inputs, response_queue=mine)
        finals = [(await mine.get()).final for _ in range(4)]
        responses = model.async_infer(inputs=inputs, response_queue=mine)
        queued = [await mine.get() for _ in range(4)]
        return finals, queued, [each async for each in responses]

    finals, queued, iterated = asyncio.run(main())
    assert finals == [False, False, False, True]
    assert queued == iterated
    with pytest.raises(tritonserver.InvalidArgumentError, match=r"response_queue is an asyncio\.Queue"):
        model.infer(inputs=inputs, response_queue=asyncio.Queue())


def test_what_is_no_answer_goes_into_the_queue(tmp_path: Path) -> None:
    """An error is a final response in the queue, and is raised for who iterates."""

    def broken(x: float) -> float:
        raise ValueError("no answer")

    with LibraryServer(functions=[broken]) as inner:
        put: queue.SimpleQueue[tritonserver.InferenceResponse] = queue.SimpleQueue()
        model = tritonserver.Model(inner, "broken")
        responses = model.infer(inputs={"x": 1.0}, response_queue=put)
        response = put.get(timeout=60)
        assert response.final
        assert "no answer" in str(response.error)
        with pytest.raises(tritonserver.TritonError, match="no answer"):
            next(responses)


def test_leaving_a_server_that_does_not_end_in_time_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a with statement hides what `stop` has to say, not what happened within."""

    def late(self: LibraryServer) -> None:
        stop(self)
        raise unavailable("models did not end within 1 seconds")

    stop = LibraryServer.stop
    monkeypatch.setattr(LibraryServer, "stop", late)
    with pytest.raises(KeyError, match="mine"), tritonserver.Server(model_repository=tmp_path):
        raise KeyError("mine")


def test_errors_have_tritons_classes(server: tritonserver.Server) -> None:
    """Raised, or in the response where that is asked for."""
    with pytest.raises(tritonserver.NotFoundError, match="unknown model: 'nope'"):
        server.model("nope").infer(inputs={})
    with pytest.raises(tritonserver.InvalidArgumentError, match="expected number of inputs"):
        server.model("echo").infer(inputs={})
    with pytest.raises(tritonserver.UnsupportedError, match="register_model_repository is not supported"):
        server.register_model_repository("/x")
    assert issubclass(tritonserver.UnavailableError, tritonserver.TritonError)


def test_questions_about_models(server: tritonserver.Server) -> None:
    """Metadata, config, statistics, the list of models, the metrics page."""
    model = server.model("echo")
    assert model.ready()
    assert model.metadata()["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    assert model.config()["max_batch_size"] == 4
    assert model.statistics()["model_stats"][0]["name"] == "echo"
    assert model.batch_properties() is tritonserver.ModelBatchFlag.FIRST_DIM
    assert server.metadata()["name"] == "mine"
    assert server.live()
    assert ("echo", 1) in server.models(exclude_not_ready=True)
    assert 'nv_inference_count{model="echo",version="1"}' in server.metrics()


def test_models_come_and_go(server: tritonserver.Server) -> None:
    """Load with a config of the call, unload and wait for it."""
    model = server.load("echo", {"config": '{"backend": "identity", "max_batch_size": 2}'})
    assert model.config()["max_batch_size"] == 2
    server.load("echo")
    server.unload("many", wait_until_unloaded=True, timeout=60)
    assert not server.model("many").ready()
    server.load("many")


def test_ports_are_frontends(server: tritonserver.Server) -> None:
    """HTTP, gRPC and metrics over the running server, each for as long as it is open; also over `conch.Server`."""
    with (
        KServeHttp(server, KServeHttp.Options("127.0.0.1", 0)) as http,
        KServeGrpc(server, KServeGrpc.Options("127.0.0.1", 0)) as grpc,
        Metrics(server, Metrics.Options("127.0.0.1", 0)) as metrics,
    ):
        with urllib.request.urlopen(f"http://127.0.0.1:{http.port}/v2/health/ready", timeout=60) as answer:
            assert answer.status == 200
        with grpc_client.InferenceServerClient(f"127.0.0.1:{grpc.port}") as client:
            assert client.is_server_ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=60) as answer:
            assert b"nv_inference_count" in answer.read()
        port = http.port
    assert http.port == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60)
    with pytest.warns(UserWarning, match="thread_count=2 has no effect"):
        KServeHttp(server, KServeHttp.Options(thread_count=2))
    with LibraryServer(functions=[_twice]) as other, KServeHttp(other, KServeHttp.Options("127.0.0.1", 0)) as http:
        assert http.port


def _twice(x: float) -> float:
    return x * 2


def test_tensors_convert() -> None:
    """Between BYTES and texts, and to the host, where they are; elsewhere is not supported."""
    text = tritonserver.Tensor.from_string_array([["a", "é"]])
    assert text.to_bytes_array().tolist() == [[b"a", "é".encode()]]
    assert tritonserver.Tensor.from_bytes_array([b"a"]).to_string_array().tolist() == ["a"]
    number = tritonserver.Tensor.from_dlpack(np.arange(3))
    assert (number.memory_type, number.memory_type_id) == (tritonserver.MemoryType.CPU, 0)
    assert number.to_host() is number
    assert bytes(number.memory_buffer) == np.arange(3).tobytes()
    assert np.asarray(number).tolist() == [0, 1, 2]
    with pytest.raises(tritonserver.UnsupportedError):
        number.to_device("gpu:0")
    with pytest.raises(tritonserver.InvalidArgumentError, match="expected BYTES"):
        number.to_string_array()
