"""Clients that others wrote, against the gRPC transport with echo models."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest

from conch.config.server import GrpcOptions
from conch.pb import grpc_service_pb2 as pb
from conch.transport.grpc import GrpcTransport
from support.grpc_server import GrpcServer
from support.h2client import INFER, framed, infer_message
from support.until import until

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module", params=["inline", "thread"])
def server(request: pytest.FixtureRequest) -> Iterator[GrpcServer]:
    with GrpcServer(request.param) as running:
        yield running


@pytest.fixture
def channel(server: GrpcServer) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as made:
        yield made


def unary(channel: grpc.Channel, name: str, response: type) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        name if name.startswith("/") else SERVICE + name,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def test_grpcio_infers(channel: grpc.Channel) -> None:
    """Small and large tensors come back whole, one after the other on one connection."""
    call = unary(channel, "ModelInfer", pb.ModelInferResponse)
    for size in (1, 16, 4000, 150_000, 1_500_000, 3):
        values = np.arange(size, dtype="<f4")
        request = pb.ModelInferRequest(model_name="identity", id=str(size))
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, size])
        request.raw_input_contents.append(values.tobytes())
        answer = call(request, timeout=60)
        assert answer.id == str(size)
        assert answer.raw_output_contents[0] == values.tobytes()


def test_grpcio_in_parallel(channel: grpc.Channel) -> None:
    """Many calls at once on one connection each get their own answer."""
    call = unary(channel, "ModelInfer", pb.ModelInferResponse)
    futures = [call.future(infer_message(str(n), [n] * (1 + n * 97 % 9000)), timeout=60) for n in range(300)]
    for n, future in enumerate(futures):
        answer = future.result()
        assert answer.id == str(n)
        assert answer.raw_output_contents[0] == struct.pack("<f", n) * (1 + n * 97 % 9000)


def test_grpcio_errors(channel: grpc.Channel) -> None:
    """Status codes and texts arrive, texts beyond ASCII too."""
    call = unary(channel, "ModelInfer", pb.ModelInferResponse)
    with pytest.raises(grpc.RpcError) as error:
        call(pb.ModelInferRequest(model_name="größe\n"), timeout=60)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert error.value.details() == "Request for unknown model: 'größe\n' is not found"
    with pytest.raises(grpc.RpcError) as error:
        unary(channel, "Nope", pb.ModelInferResponse)(infer_message(), timeout=60)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health(channel: grpc.Channel, server: GrpcServer) -> None:
    """The standard health check follows readiness."""
    from conch.pb import health_pb2

    check = unary(channel, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse)
    assert check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
    server.registry.is_ready = False
    assert check(health_pb2.HealthCheckRequest(service="any"), timeout=60).status == 2
    server.registry.is_ready = True


def test_deadlines_and_cancelling() -> None:
    """A client's deadline or cancel ends the call, marks the request, and the connection goes on."""
    with GrpcServer("hold") as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = unary(channel, "ModelInfer", pb.ModelInferResponse)

        def held() -> list[str]:
            return [request.id for request in server.scheduler.held]

        # A call whose time is over before it has left is none that the server knows.
        for timeout in (0.2, 1, 5, 20):
            with pytest.raises(grpc.RpcError) as error:
                call(infer_message("a"), timeout=timeout)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if held():
                break
        assert set(held()) == {"a"}
        future = call.future(infer_message("b"))
        until(lambda: "b" in held())
        future.cancel()
        until(lambda: all(request.cancelled for request in server.scheduler.held))
        future = call.future(infer_message("c"))
        until(lambda: "c" in held())
        server.call(server.scheduler.release)
        assert future.result(60).id == "c"


def test_drain() -> None:
    """While the server drains, new calls fail in Triton's words and those in flight are answered."""
    with GrpcServer("hold") as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = unary(channel, "ModelInfer", pb.ModelInferResponse)
        future = call.future(infer_message("a"))
        until(lambda: bool(server.scheduler.held))
        server.call(server.transport.stop_accepting)
        with pytest.raises(grpc.RpcError) as error:
            call(infer_message("b"), timeout=60)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error.value.details() == "GRPC server is shutting down and has stopped accepting new requests."
        server.call(server.scheduler.release)
        assert future.result(60).id == "a"


def test_an_address_in_use() -> None:
    """Triton's text, trailing blank included."""

    async def start(port: int) -> None:
        data, control = server.data, server.control
        await GrpcTransport(GrpcOptions(address="127.0.0.1", port=port), data, control).start()

    with GrpcServer() as server, pytest.raises(OSError, match=f"^Socket '127.0.0.1:{server.port}' already in use $"):
        asyncio.run(start(server.port))


def test_tritonclient(server: GrpcServer) -> None:
    """The official client, synchronous and with callbacks."""
    client_module = pytest.importorskip("tritonclient.grpc")
    values = np.arange(16, dtype=np.float32).reshape(1, 16)
    with client_module.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("identity")
        assert client.get_server_metadata().name == "triton"
        assert client.get_model_metadata("identity").inputs[0].shape == [-1, -1]
        assert client.get_model_config("identity").config.max_batch_size == 8
        assert client.get_inference_statistics("identity").model_stats[0].name == "identity"
        assert [model.name for model in client.get_model_repository_index().models] == ["identity", "idle"]
        client.load_model("identity", config="{}", files={"file:1/model.bin": b"\x00\xff"})
        client.unload_model("identity")
        assert server.control.calls[-2:] == [
            ("load", "identity", {"config": "{}", "file:1/model.bin": b"\x00\xff"}),
            ("unload", "identity", False),
        ]
        tensor = client_module.InferInput("INPUT0", [1, 16], "FP32")
        tensor.set_data_from_numpy(values)
        result = client.infer("identity", [tensor], request_id="7", client_timeout=60)
        assert result.get_response().id == "7"
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)
        strings = np.array([[b"a", "ö".encode()]], dtype=object)
        a, b = client_module.InferInput("A", [1, 16], "FP32"), client_module.InferInput("B", [1, 2], "BYTES")
        a.set_data_from_numpy(values)
        b.set_data_from_numpy(strings)
        for inputs in ([a, b], [b, a]):
            result = client.infer("simple", inputs, outputs=[client_module.InferRequestedOutput("OB")])
            np.testing.assert_array_equal(result.as_numpy("OB"), strings)
        with pytest.raises(client_module.InferenceServerException, match="unexpected inference output 'X'"):
            client.infer("identity", [tensor], outputs=[client_module.InferRequestedOutput("X")])


def test_tritonclient_aio(server: GrpcServer) -> None:
    """The official asyncio client."""
    aio = pytest.importorskip("tritonclient.grpc.aio")
    values = np.arange(16, dtype=np.float32).reshape(1, 16)

    async def run() -> None:
        async with aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            tensor = aio.InferInput("INPUT0", [1, 16], "FP32")
            tensor.set_data_from_numpy(values)
            results = await asyncio.gather(*[client.infer("identity", [tensor], request_id=str(n)) for n in range(50)])
            assert [result.get_response().id for result in results] == [str(n) for n in range(50)]

    asyncio.run(run())


def test_h2(server: GrpcServer) -> None:
    """The h2 library, which checks every frame that it gets, has no complaint."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    body = framed(infer_message("x", range(30_000)).SerializeToString())
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        client.initiate_connection()
        sock.sendall(client.data_to_send())
        answers: dict[int, bytearray] = {}
        left: dict[int, bytes] = {}
        ended = 0
        for _ in range(4):
            stream = client.get_next_available_stream_id()
            client.send_headers(
                stream,
                [(":method", "POST"), (":scheme", "http"), (":path", INFER.decode()), (":authority", "x"),
                 ("content-type", "application/grpc"), ("te", "trailers")],
            )  # fmt: skip
            left[stream], answers[stream] = body, bytearray()
        while ended < 4:
            for stream in list(left):
                while left[stream] and (room := client.local_flow_control_window(stream)):
                    size = min(room, client.max_outbound_frame_size, len(left[stream]))
                    client.send_data(stream, left[stream][:size], end_stream=size == len(left[stream]))
                    left[stream] = left[stream][size:]
            sock.sendall(client.data_to_send())
            for event in client.receive_data(sock.recv(65_536)):
                if isinstance(event, h2.events.DataReceived):
                    answers[event.stream_id] += event.data
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                ended += isinstance(event, h2.events.StreamEnded)
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)
            sock.sendall(client.data_to_send())
    for answer in answers.values():
        assert len(pb.ModelInferResponse.FromString(bytes(answer[5:])).raw_output_contents[0]) == 120_000


def run(*command: str, timeout: float = 100) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: GrpcServer, tmp_path: Path) -> None:
    """curl with prior knowledge gets a gRPC answer, and plain HTTP statuses where it does not speak gRPC."""
    (tmp_path / "live").write_bytes(framed())
    url = f"http://127.0.0.1:{server.port}"
    curl = ("curl", "-s", "-m", "60", "--http2-prior-knowledge")
    out = run(
        *curl, "-i", "-H", "content-type: application/grpc", "--data-binary", f"@{tmp_path / 'live'}",
        f"{url}{SERVICE}ServerLive",
    )  # fmt: skip
    assert "grpc-status: 0" in out
    assert run(*curl, "-o", "/dev/null", "-w", "%{http_code}", url) == "405"
    assert run(*curl, "-o", "/dev/null", "-w", "%{http_code}", "-d", "x" * 100_000, url) == "415"


@pytest.mark.skipif(shutil.which("h2load") is None, reason="nghttp2's clients are not installed")
def test_nghttp2(server: GrpcServer, tmp_path: Path) -> None:
    """nghttp2's clients see no protocol error, h2load not in a few thousand requests."""
    (tmp_path / "infer").write_bytes(framed(infer_message("1", range(16)).SerializeToString()))
    url = f"http://127.0.0.1:{server.port}{INFER.decode()}"
    common = ("-d", str(tmp_path / "infer"), "-H", "content-type: application/grpc", "-H", "te: trailers", url)
    verbose = run("nghttp", "-nv", *common)
    assert "grpc-status: 0" in verbose
    assert "RST_STREAM" not in verbose
    assert "5000 succeeded, 0 failed, 0 errored" in run("h2load", "-n", "5000", "-c", "3", "-m", "20", *common)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """@grpc/grpc-js, installed once below the project's cache."""
    place = ROOT / ".cache" / "node"
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    if not (place / "done").exists():
        place.mkdir(parents=True, exist_ok=True)
        try:
            run(
                "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(place),
                "@grpc/grpc-js@1", "@grpc/proto-loader@0", timeout=100,
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            pytest.skip(f"grpc-js cannot be had: {error}")
        (place / "done").touch()
    return place / "node_modules"


SCRIPT = """
const grpc = require('@grpc/grpc-js'), loader = require('@grpc/proto-loader');
const pkg = loader.loadSync('grpc_service.proto', {includeDirs: [process.argv[2]], keepCase: true});
const proto = grpc.loadPackageDefinition(pkg);
const client = new proto.inference.GRPCInferenceService(process.argv[3], grpc.credentials.createInsecure());
const infer = (id, size) => new Promise((resolve, reject) => {
  const raw = Buffer.alloc(4 * size, id);
  client.ModelInfer({model_name: 'identity', id: String(id), inputs: [{name: 'INPUT0', datatype: 'FP32',
    shape: [1, size]}], raw_input_contents: [raw]}, {deadline: Date.now() + 60000}, (error, answer) => error ?
    reject(error) : resolve(answer.id === String(id) && answer.raw_output_contents[0].equals(raw)));
});
(async () => {
  const calls = [];
  for (let id = 0; id < 100; id++) calls.push(infer(id, id % 7 === 0 ? 100000 : 16));
  const good = (await Promise.all(calls)).filter(Boolean).length;
  client.ModelInfer({model_name: 'nope'}, error => {
    console.log(JSON.stringify({good, code: error.code, details: error.details}));
    client.close();
  });
})();
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_grpc_js(server: GrpcServer, node_modules: Path, tmp_path: Path) -> None:
    """Node's gRPC client, which is written without C-core, gets its answers and its error."""
    script = node_modules.parent / f"client-{server.port}.js"
    script.write_text(SCRIPT)
    try:
        out = run("node", str(script), str(ROOT / "proto"), f"127.0.0.1:{server.port}")
    finally:
        script.unlink()
    assert out.strip() == (
        '{"good":100,"code":5,"details":"Request for unknown model: \'nope\' is not found"}'
    )  # fmt: skip


def test_many_connections(server: GrpcServer) -> None:
    """Connections come and go without a trace."""

    def once(number: int) -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
            answer: str = unary(channel, "ModelInfer", pb.ModelInferResponse)(infer_message(str(number)), timeout=60).id
            return answer

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(once, range(64))) == [str(number) for number in range(64)]
    until(lambda: server.call(server.transport.connections) == 0)
    assert server.call(server.transport.inflight) == 0
