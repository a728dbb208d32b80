"""What is heavy, as Triton's clients send and ask for it, and little requests beside it."""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from support.server import Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

#: Numbers that zlib takes long over.
NUMBERS = np.random.default_rng(0).integers(0, 1000, 1_000_000).astype(np.float32)
WORDS = np.array([f"word, [{number}]".encode() for number in range(40_000)], dtype=object)
TYPES = {"numbers": ("FP32", "FP32"), "words": ("BYTES", "STRING")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("heavy")
    for name, (_, kind) in TYPES.items():
        (root / name / "1").mkdir(parents=True)
        Path(root / name / "config.pbtxt").write_text(
            'backend: "identity"\nmax_batch_size: 0\n'
            f'input {{ name: "INPUT0" data_type: TYPE_{kind} dims: [ -1 ] }}\n'
            f'output {{ name: "OUTPUT0" data_type: TYPE_{kind} dims: [ -1 ] }}\n'
        )
    with Server(root, "--grpc-infer-response-compression-level=high") as running:
        yield running


def given(module: Any, name: str, array: np.ndarray[Any, Any], **how: bool) -> Any:
    tensor = module.InferInput("INPUT0", list(array.shape), TYPES[name][0])
    tensor.set_data_from_numpy(array, **how)
    return tensor


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_grpc_answers_are_compressed_while_others_are_answered(server: Server, algorithm: str | None) -> None:
    """Large calls of tritonclient, compressed both ways, and little ones meanwhile on the same connection."""
    with triton_grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(4) as pool:

        def ask(size: int) -> bool:
            array = NUMBERS[:size]
            result = client.infer("numbers", [given(triton_grpc, "numbers", array)], compression_algorithm=algorithm)
            return np.array_equal(result.as_numpy("OUTPUT0"), array)

        assert all(pool.map(ask, [400_000, 3, 20_000, 1, 300_000, *range(1, 30)]))


def test_a_compressed_stream_keeps_its_order(server: Server) -> None:
    """Large and little answers of one stream come in the order of their requests."""
    sizes = [1, 300_000, 2, 100_000, 3, 300_000, 4]
    found: SimpleQueue[Any] = SimpleQueue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: found.put((result, error)), compression_algorithm="gzip")
        for size in sizes:
            client.async_stream_infer("numbers", [given(triton_grpc, "numbers", NUMBERS[:size])])
        answers = [found.get(timeout=60) for _ in sizes]
        client.stop_stream()
    assert [error for _, error in answers] == [None] * len(sizes)
    assert [len(result.as_numpy("OUTPUT0")) for result, _ in answers] == sizes


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("algorithm", [None, "gzip"])
@pytest.mark.parametrize(("name", "array"), [("numbers", NUMBERS), ("words", WORDS)])
def test_large_json_comes_back_as_it_went(
    server: Server, name: str, array: np.ndarray[Any, Any], algorithm: str | None, binary: bool
) -> None:
    """Numbers and strings as JSON one way and as JSON or bytes the other, compressed and not."""
    with triton_http.InferenceServerClient(server.http) as client:
        result = client.infer(
            name,
            [given(triton_http, name, array, binary_data=False)],
            outputs=[triton_http.InferRequestedOutput("OUTPUT0", binary_data=binary)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        # Of JSON the client makes text.
        wanted = array if name == "numbers" or binary else np.array([each.decode() for each in array], dtype=object)
        assert np.array_equal(result.as_numpy("OUTPUT0"), wanted)


def test_a_hundred_heavy_requests_in_one_pipeline_are_answered_in_order(server: Server) -> None:
    """Whoever sends them all at once; another client is served meanwhile."""
    texts = []
    for number in range(100):
        data = {"name": "INPUT0", "datatype": "BYTES", "shape": [6000], "data": ["word, []"] * 6000}
        body = json.dumps({"id": str(number), "inputs": [data]}).encode()
        head = f"POST /v2/models/words/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        texts.append(head.encode() + body)
    with (
        socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as sock,
        ThreadPoolExecutor(1) as pool,
        triton_http.InferenceServerClient(server.http) as other,
    ):
        sent = pool.submit(sock.sendall, b"".join(texts))
        assert other.is_server_live()
        assert len(other.infer("words", [given(triton_http, "words", WORDS[:3])]).as_numpy("OUTPUT0")) == 3
        stream = sock.makefile("rb")
        for number in range(100):
            size = 0
            while (line := stream.readline()) != b"\r\n":
                if line.startswith(b"Content-Length: "):
                    size = int(line[16:])
            answer = json.loads(stream.read(size))
            assert answer["id"] == str(number)
            assert len(answer["outputs"][0]["data"]) == 6000
        sent.result(60)
