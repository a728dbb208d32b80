"""Real clients over real sockets: tritonclient (blocking and asyncio), curl, and hand-made bytes."""

from __future__ import annotations

import asyncio
import gc
import shutil
import socket
import subprocess
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from conch.config.server import MetricsOptions
from conch.frontend.metrics import MetricsTransport
from conch.types.dtype import FP32
from conch.types.error import internal
from support.http_plane import Plane, give_back, identity_spec
from support.http_server import ServerThread
from support.http_wire import get, infer, take_apart, tensor
from support.until import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.http as triton


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    plane = Plane()
    made = ServerThread(plane)
    yield made
    made.close()


@pytest.fixture
def client(server: ServerThread) -> Iterator[Any]:
    made = triton.InferenceServerClient(server.address, concurrency=4)
    yield made
    made.close()
    del made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


ARRAYS = [
    np.array([True, False]), np.arange(5, dtype=np.uint8), np.arange(5, dtype=np.int64), np.arange(5, dtype=np.uint64),
    np.linspace(0, 1, 7, dtype=np.float32), np.linspace(0, 1, 7), np.array([b"a", "é".encode(), b""], dtype=object),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: str(a.dtype))
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_arrays_come_back(client: Any, array: np.ndarray[Any, Any], binary_in: bool, binary_out: bool) -> None:
    """tritonclient gets back what it sends, in every combination of kinds."""
    datatype = triton.np_to_triton_dtype(array.dtype)
    given = triton.InferInput("INPUT0", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary_in)
    wanted = [triton.InferRequestedOutput("OUTPUT0", binary_data=binary_out)]
    result = client.infer(f"id_{datatype.lower()}", [given], outputs=wanted, request_id="7", parameters={"p": 1})
    got = result.as_numpy("OUTPUT0")
    if array.dtype == object:
        got = np.array([x if isinstance(x, bytes) else x.encode() for x in got], dtype=object)
    np.testing.assert_array_equal(got, array)
    assert result.get_response()["id"] == "7"


def test_questions(client: Any) -> None:
    """Health, metadata, statistics and the repository's calls work as tritonclient makes them."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity", "1")
    assert client.get_server_metadata() == {"name": "fake", "version": "1.2.3", "extensions": ["statistics"]}
    assert client.get_model_metadata("identity")["inputs"] == [
        {"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}
    ]
    assert client.get_model_config("identity")["max_batch_size"] == 64
    (stats,) = client.get_inference_statistics("identity")["model_stats"]
    assert stats["inference_count"] == 3
    assert list(stats["inference_stats"])[-2:] == ["cache_hit", "cache_miss"]
    assert stats["batch_stats"][0]["compute_infer"] == {"count": 0, "ns": 7}
    assert client.get_model_repository_index()[-1] == {"name": "zz"}


def test_load_and_unload(server: ServerThread, client: Any) -> None:
    """Load parameters arrive as text and bytes; a failure is told in the server's words."""
    client.load_model("identity", config='{"backend":"x"}', files={"file:1/m.bin": b"\0\1\2"})
    assert server.plane.loads[-1] == ("identity", {"config": '{"backend":"x"}', "file:1/m.bin": b"\0\1\2"})
    client.unload_model("identity", unload_dependents=True)
    assert server.plane.loads[-1] == ("identity", {"unload_dependents": "True"})
    with pytest.raises(triton.InferenceServerException, match="failed to load 'nope'") as caught:
        client.load_model("nope")
    assert caught.value.status() == "500"


def test_a_load_answers_when_its_work_ends(server: ServerThread, client: Any) -> None:
    """A load holds its own connection only, until its future ends."""
    server.plane.work = Future()
    outcome: list[Any] = []

    def load() -> None:
        other = socket.create_connection(("127.0.0.1", server.transport.port))
        other.sendall(b"POST /v2/repository/models/identity/load HTTP/1.1\r\n\r\n")
        outcome.append(other.recv(65536))
        other.close()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        assert client.is_server_live()
        assert outcome == []
        server.plane.work.set_exception(internal("boom"))
        thread.join(60)
        assert take_apart(outcome[0])[0].error == "boom"
    finally:
        server.plane.work = None


def test_errors_have_their_text_and_status(client: Any) -> None:
    """tritonclient shows the server's message and HTTP status."""
    given = triton.InferInput("INPUT0", [1], "FP32")
    given.set_data_from_numpy(np.zeros(1, np.float32))
    with pytest.raises(triton.InferenceServerException, match="'nope' is not found") as caught:
        client.infer("nope", [given])
    assert caught.value.status() == "404"


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_large_tensors(client: Any, size: int) -> None:
    """Bodies of any size come through unchanged."""
    array = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    given = triton.InferInput("INPUT0", [size], "UINT8")
    given.set_data_from_numpy(array)
    np.testing.assert_array_equal(client.infer("large", [given]).as_numpy("OUTPUT0"), array)


def test_answers_from_threads(client: Any) -> None:
    """Models that answer from other threads serve many requests at once."""
    given = triton.InferInput("INPUT0", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))
    pending = [client.async_infer("thread", [given]) for _ in range(20)]
    assert all(each.get_result().as_numpy("OUTPUT0")[0] == 1 for each in pending)


def test_aio_client(server: ServerThread) -> None:
    """tritonclient.http.aio works as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tritonclient.http.aio as aio

    async def work() -> Any:
        async with aio.InferenceServerClient(server.address) as client:
            given = aio.InferInput("INPUT0", [1, 16], "FP32")
            given.set_data_from_numpy(np.ones((1, 16), np.float32))
            results = await asyncio.gather(*[client.infer("identity", [given]) for _ in range(10)])
            return [result.as_numpy("OUTPUT0").sum() for result in results]

    assert asyncio.run(work()) == [16.0] * 10


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: ServerThread) -> None:
    """curl's own ways work: an offer of HTTP/2, `Expect: 100-continue`, chunked bodies, HTTP/1.0."""
    body = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1],"data":[1.5]}]}'
    large = body[:-1] + " " * 2_000_000 + "}"
    url = f"http://{server.address}/v2/models/id_fp32/infer"
    for extra in ([], ["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"], ["-0"], ["--http2"]):
        for data in (body, large):
            done = subprocess.run(
                ["curl", "-sS", "-m", "60", *extra, "--data-binary", "@-", url],
                input=data.encode(),
                capture_output=True,
                check=True,
            )
            assert b'"data":[1.5]' in done.stdout, (extra, done)


def talk(server: ServerThread, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.transport.port), timeout=60) as connection:
        connection.sendall(data)
        got = b""
        while part := connection.recv(65536):
            got += part
        return got


def test_a_refusal_reaches_a_client_that_is_still_sending(server: ServerThread) -> None:
    """The answer to a refused request is not lost in a reset, although its body was not read."""
    head = b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n"
    (reply,) = take_apart(talk(server, head + bytes(3_000_000)))
    assert reply.status == 400
    assert "Use --http-max-input-size to increase the limit." in reply.error


def test_a_stalled_request_gets_408() -> None:
    """A client that stops in the middle of a request is told so and disconnected."""
    server = ServerThread(Plane(), slow_sender_timeout=0.5)
    (reply,) = take_apart(talk(server, b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"))
    assert (reply.status, reply.headers["Connection"]) == (408, "close")
    server.close()


def test_leaving_cancels(server: ServerThread) -> None:
    """A client that disconnects has its request cancelled."""
    server.plane.keep = True
    arrived = threading.Event()
    server.plane.add(identity_spec("held", FP32), lambda request, spec: arrived.set())
    with socket.create_connection(("127.0.0.1", server.transport.port)) as connection:
        connection.sendall(infer("held", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}))
        assert arrived.wait(60)
    request = server.plane.requests[-1]
    until(lambda: request.cancelled)
    server.plane.keep = False


def test_drain() -> None:
    """Stopping closes idle connections at once, lets a request in flight end, and refuses new connections."""
    plane = Plane(keep=True)
    arrived = threading.Event()
    plane.add(identity_spec("held", FP32), lambda request, spec: arrived.set())
    server = ServerThread(plane)
    port = server.transport.port
    idle = socket.create_connection(("127.0.0.1", port), timeout=60)
    idle.sendall(get("/v2/health/live"))
    assert idle.recv(1000).startswith(b"HTTP/1.1 200")
    busy = socket.create_connection(("127.0.0.1", port), timeout=60)
    busy.sendall(infer("held", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}))
    assert arrived.wait(60)
    server.call(server.transport.stop_accepting)
    assert idle.recv(10) == b""
    assert (server.call(server.transport.connections), server.call(server.transport.inflight)) == (1, 1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)
    give_back(plane.requests[0], plane.requests[0].form.model)
    got = b""
    while part := busy.recv(1000):
        got += part
    assert take_apart(got)[0].headers["Connection"] == "close"
    server.close()
    idle.close()
    busy.close()


def test_no_garbage_per_request(server: ServerThread) -> None:
    """Serving a request leaves nothing for the garbage collector, answered at once or from a thread."""
    data = infer("id_fp32", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]})
    with socket.create_connection(("127.0.0.1", server.transport.port), timeout=60) as connection:
        connection.sendall(data)
        connection.recv(10_000)
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                connection.sendall(data)
                connection.recv(10_000)
            assert gc.collect() < 50
        finally:
            gc.enable()


def test_metrics_page() -> None:
    """`/metrics` is the page, any other path an empty one, and only GET is allowed."""
    options = MetricsOptions(address="127.0.0.1", port=0)
    server = ServerThread(Plane(), MetricsTransport(options, lambda: b"a 1\n"))
    close = ("Connection: close",)
    (page,) = take_apart(talk(server, get("/metrics", "GET", *close)))
    assert (page.status, page.headers["Content-Type"], page.body) == (200, "text/plain; charset=utf-8", b"a 1\n")
    assert take_apart(talk(server, get("/metrics/", "GET", *close)))[0].body == b"a 1\n"
    assert take_apart(talk(server, get("/other", "GET", *close)))[0].body == b""
    assert take_apart(talk(server, get("/metrics", "POST", *close)))[0].status == 405
    server.close()
