"""Generate, compression, header forwarding and deadlines as real clients use them, with real Python models."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from support.server import TRITONSERVER, Server
from support.until import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    import tritonclient.http.aio as aio

pytestmark = pytest.mark.slow

#: Says `count` times `size` letters; writes to a file what became of it.
TALKER = """
import json, os, pathlib, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.notes = pathlib.Path(args["model_repository"]) / "notes"
        self.begun = pathlib.Path(args["model_repository"]) / "begun"

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            told = json.loads(request.parameters())
            said = 0
            for number in range(told.get("count", 1)):
                if request.is_cancelled():
                    break
                text = str(number) + "x" * told.get("size", 0)
                tensor = pb_utils.Tensor("out", np.array([text], dtype=object))
                sender.send(pb_utils.InferenceResponse([tensor]))
                self.begun.touch()
                said += 1
                time.sleep(told.get("pause", 0))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self.notes.write_text(json.dumps([said, request.is_cancelled()]))
        return None
"""
TALKER_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input { name: "text" data_type: TYPE_STRING dims: 1 }
output { name: "out" data_type: TYPE_STRING dims: 1 }
"""
SEEN = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            seen = pb_utils.Tensor("seen", np.array([request.parameters()], dtype=object))
            same = pb_utils.Tensor("same", pb_utils.get_input_tensor_by_name(request, "x").as_numpy())
            answers.append(pb_utils.InferenceResponse([same, seen]))
        return answers
"""
SEEN_CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "same" data_type: TYPE_FP32 dims: -1 }
output { name: "seen" data_type: TYPE_STRING dims: 1 }
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generate")
    for name, config, code in (("talker", TALKER_CONFIG, TALKER), ("seen", SEEN_CONFIG, SEEN)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
        (root / name / "1" / "model.py").write_text(code)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, "--http-header-forward-pattern=my-.*", command=TRITONSERVER) as made:
        made.ready_seconds()
        yield made


def url(server: Server, path: str, model: str = "talker") -> str:
    return f"http://{server.http}/v2/models/{model}/{path}"


def events(text: str) -> list[str]:
    return [json.loads(line.removeprefix("data: "))["out"] for line in text.split("\n\n") if line]


def note(repository: Path) -> Any:
    """What the talker wrote when it had ended."""
    path = repository / "talker" / "notes"
    until(lambda: path.exists() and bool(path.read_text()))
    text = path.read_text()
    path.unlink()
    return json.loads(text)


def test_requests_reads_events(server: Server, repository: Path) -> None:
    """requests, line by line."""
    body = {"text": "a", "parameters": {"count": 3}}
    with requests.post(url(server, "generate_stream"), json=body, stream=True, timeout=60) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in answer.iter_lines(decode_unicode=True) if line]
    assert [json.loads(line[6:])["out"] for line in lines] == ["0", "1", "2"]
    assert note(repository) == [3, False]


def test_requests_reads_one_object(server: Server, repository: Path) -> None:
    """The same model gives one object when it says one thing, and an error when it says more."""
    one = requests.post(url(server, "generate"), json={"text": "a", "id": "7"}, timeout=60)
    assert one.json() == {"id": "7", "model_name": "talker", "model_version": "1", "out": "0"}
    note(repository)
    two = requests.post(url(server, "generate"), json={"text": "a", "count": 2}, timeout=60)
    assert two.json()["error"].startswith("generate expects model to produce exactly 1 response")
    note(repository)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("extra", [[], ["-0"], ["-H", "Connection: close"]])
def test_curl_reads_events(server: Server, repository: Path, extra: list[str]) -> None:
    """curl, with and without chunks."""
    done = subprocess.run(
        ["curl", "-sS", "-N", "-m", "60", *extra, "-d", '{"text":"a","count":2}', url(server, "generate_stream")],
        capture_output=True,
        check=True,
    )
    assert events(done.stdout.decode()) == ["0", "1"]
    note(repository)


def test_a_client_that_leaves_is_seen_by_the_model(server: Server, repository: Path) -> None:
    """The model sees is_cancelled() soon after its client has left."""
    connection = http.client.HTTPConnection(server.http, timeout=60)
    connection.request("POST", "/v2/models/talker/generate_stream", '{"text":"a","count":100000,"pause":0.001}')
    connection.getresponse().read(10)
    connection.close()
    said, cancelled = note(repository)
    assert cancelled
    assert said < 100_000


def test_a_client_that_does_not_read_holds_its_model_up(server: Server, repository: Path) -> None:
    """The model says no more than fits on the way to a client that does not read; when it reads, it gets all."""
    count, size = 400, 1 << 20
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as client:
        body = b'{"text":"a","count":%d,"size":%d}' % (count, size)
        client.sendall(
            b"POST /v2/models/talker/generate_stream HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        client.recv(1000, socket.MSG_PEEK)
        others = requests.post(url(server, "generate", "seen"), json={"x": 1.5}, timeout=60)
        assert others.json()["same"] == 1.5
        assert not (repository / "talker" / "notes").exists()
        received = 0
        while part := client.recv(1 << 20):
            received += len(part)
    assert received > count * size
    # Whether it is cancelled is asked after the last word, when the client may have left already.
    assert note(repository)[0] == count


def test_a_deadline_ends_a_stream(server: Server, repository: Path) -> None:
    """Request-Timeout is the time for all of it: the client is told, the model is cancelled."""
    body = {"text": "a", "count": 100_000, "pause": 0.001}
    begun = repository / "talker" / "begun"

    def ask(way: str) -> requests.Response:
        # A request whose time is over before the model has it proves nothing.
        for seconds in ("0.3", "2", "10"):
            begun.unlink(missing_ok=True)
            answer = requests.post(url(server, way), json=body, headers={"Request-Timeout": seconds}, timeout=60)
            if begun.exists():
                break
        assert note(repository)[1]
        return answer

    assert ask("generate_stream").text.endswith('data: {"error":"Request timeout expired"}\n\n')
    answer = ask("generate")
    assert (answer.status_code, answer.json()) == (503, {"error": "Request timeout expired"})


ARRAY = np.linspace(0, 1, 50_000, dtype=np.float32)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("asked", ["gzip", "deflate", None])
@pytest.mark.parametrize("wanted", ["gzip", "deflate", None])
def test_tritonclient_compresses(server: Server, asked: str | None, wanted: str | None, binary: bool) -> None:
    """Both algorithms, both ways, binary and JSON, large and small."""
    client = triton.InferenceServerClient(server.http)
    for array in (ARRAY, ARRAY[:3]):
        given = triton.InferInput("x", list(array.shape), "FP32")
        given.set_data_from_numpy(array, binary_data=binary)
        outputs = [triton.InferRequestedOutput("same", binary_data=binary)]
        result = client.infer(
            "seen",
            [given],
            outputs=outputs,
            request_compression_algorithm=asked,
            response_compression_algorithm=wanted,
        )
        np.testing.assert_array_equal(result.as_numpy("same"), array)
    client.close()


def test_tritonclient_aio_compresses(server: Server) -> None:
    """aiohttp offers codings of its own accord and undoes them by itself."""

    async def work() -> None:
        async with aio.InferenceServerClient(server.http) as client:
            for algorithm in ("gzip", "deflate", None):
                given = aio.InferInput("x", list(ARRAY.shape), "FP32")
                given.set_data_from_numpy(ARRAY)
                result = await client.infer(
                    "seen",
                    [given],
                    request_compression_algorithm=algorithm,
                    response_compression_algorithm=algorithm,
                )
                np.testing.assert_array_equal(result.as_numpy("same"), ARRAY)

    asyncio.run(work())


def test_requests_gets_what_it_offers_to_undo(server: Server) -> None:
    """requests accepts gzip unasked."""
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}],
        "outputs": [{"name": "same"}],
    }
    answer = requests.post(url(server, "infer", "seen"), json=body, timeout=60)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0]


def test_headers_reach_the_model(server: Server) -> None:
    """tritonclient's headers are parameters where the pattern takes them."""
    client = triton.InferenceServerClient(server.http)
    given = triton.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))
    result = client.infer("seen", [given], headers={"My-User": "me", "other": "x"}, parameters={"p": 1})
    assert json.loads(result.as_numpy("seen")[0]) == {"My-User": "me", "p": 1}
    client.close()
