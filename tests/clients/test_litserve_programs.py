"""Programs in LitServe's way run when `litserve` is `conch.litserve` in their imports."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

import conch.litserve as ls
from conch.types.error import InferError
from support.program import running
from support.server import free_ports

PROGRAM = """
import sys
import conch.litserve as ls


class SquareAPI(ls.LitAPI):
    def setup(self, device):
        self.square = lambda x: x**2
        self.cube = lambda x: x**3

    def decode_request(self, request):
        return request["input"]

    def predict(self, x):
        return self.square(x) + self.cube(x)

    def encode_response(self, output):
        return {"output": output}


if __name__ == "__main__":
    server = ls.LitServer(SquareAPI(), accelerator="auto")
    server.run(host="127.0.0.1", port=int(sys.argv[1]))
    print("ended")
"""


class Question(BaseModel):
    n: int


class Square(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.power = 2

    def decode_request(self, request: Any) -> float:
        return request["input"]

    def predict(self, x: float) -> float:
        if x == 13:
            raise ls.HTTPException(418, "unlucky", {"X-Why": "thirteen"})
        if x in (204, 304):
            raise ls.HTTPException(int(x), "nothing to say", {"X-Why": "thirteen"})
        return x**self.power

    def encode_response(self, output: float) -> Any:
        return {"output": output}


class Batched(ls.LitAPI):
    """What is decoded is an array, so `batch` stacks."""

    def setup(self, device: str) -> None: ...

    def decode_request(self, request: Any) -> np.ndarray:
        if request["input"] is None:
            raise ls.HTTPException(400, object())
        return np.asarray(request["input"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.full((len(x), 1), len(x))], axis=1)

    def encode_response(self, output: np.ndarray) -> Any:
        return {"output": output[:-1], "rows": int(output[-1])}


class Streamed(ls.LitAPI):
    def setup(self, device: str) -> None: ...

    def decode_request(self, request: Question) -> int:
        return request.n

    def predict(self, n: int) -> Iterator[int]:
        for number in range(n):
            if number == 7:
                raise ValueError("seven")
            yield number

    def encode_response(self, outputs: Iterator[int]) -> Iterator[Any]:
        for output in outputs:
            yield {"n": output}


class StreamedBatch(ls.LitAPI):
    def setup(self, device: str) -> None: ...

    def predict(self, inputs: list[Any]) -> Iterator[list[str]]:
        for number in range(2):
            yield [f"{each['name']}{number} " for each in inputs]

    def encode_response(self, outputs: Iterator[list[str]]) -> Iterator[list[str]]:
        yield from outputs


class Overlapping(ls.LitAPI):
    async def setup_all(self) -> None: ...

    def setup(self, device: str) -> None:
        self.open = 0

    async def decode_request(self, request: Any, context: dict[str, Any]) -> Any:
        context["said"] = request["input"]
        return request["input"]

    async def predict(self, x: Any, context: dict[str, Any]) -> Any:
        self.open += 1
        for _ in range(6000):
            if self.open >= 3:
                break
            await asyncio.sleep(0.01)
        return [x, self.open >= 3]

    async def encode_response(self, output: Any, context: dict[str, Any]) -> Any:
        return {"output": output, "said": context["said"]}


class OverlappingStream(ls.LitAPI):
    def setup(self, device: str) -> None: ...

    async def predict(self, x: Any) -> AsyncIterator[str]:
        for each in x["text"].split():
            await asyncio.sleep(0)
            yield each

    async def encode_response(self, outputs: AsyncIterator[str]) -> AsyncIterator[str]:
        async for each in outputs:
            yield each.upper()


class Raw(ls.LitAPI):
    """Forms and files in; a response object out."""

    def setup(self, device: str) -> None: ...

    def predict(self, form: Any) -> Any:
        file = form.get("file")
        return form["name"], (file.filename, file.content_type, file.file.read().decode()) if file else None

    def encode_response(self, output: Any) -> Any:
        if output[1] is None:
            return SimpleNamespace(body=output[0].encode(), status_code=201, media_type="text/plain")
        return list(output)


@pytest.fixture(scope="module")
def server() -> Iterator[ls.LitServer]:
    apis = [
        Square(),
        # A full batch goes at once: nothing here waits so long.
        Batched(max_batch_size=4, batch_timeout=60, api_path="/batched"),
        Streamed(stream=True, api_path="/streamed"),
        StreamedBatch(stream=True, max_batch_size=2, batch_timeout=60, api_path="/streamed_batch"),
        Overlapping(enable_async=True, api_path="/overlapping"),
        OverlappingStream(enable_async=True, stream=True, api_path="/overlapping_stream"),
        Raw(api_path="/raw"),
    ]
    server = ls.LitServer(apis, accelerator="cpu", max_payload_size=10_000, model_metadata={"name": "tests"})
    server.start("127.0.0.1", 0)
    yield server
    server.stop()


def ask(
    server: ls.LitServer, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, str, bytes]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data, head)
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Content-Type", ""), error.read()


def test_a_program_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    """The quick start as a program of its own: it answers, and SIGTERM is an orderly end."""
    (port,) = free_ports(1)
    with running(tmp_path, PROGRAM, port) as program:
        program.until(lambda: ask(at(port), "/health")[0] == 200)
        found = ask(at(port), "/predict", {"input": 4})
        assert (found[0], json.loads(found[2])) == (200, {"output": 80})
        assert program.ended() == (0, "ended\n", "")


def at(port: int) -> Any:
    """Of a server in another process."""
    return SimpleNamespace(port=port)


def test_requests_are_decoded_predicted_and_encoded(server: ls.LitServer) -> None:
    """JSON in, JSON out; an exception with a status is that status, any other is 500."""
    assert ask(server, "/predict", {"input": 4}) == (200, "application/json", b'{"output":16}')
    assert ask(server, "/predict", {"input": 13}) == (418, "application/json", b'{"detail":"unlucky"}')
    assert ask(server, "/predict", {"wrong": 1}) == (500, "application/json", b'{"detail":"Internal Server Error"}')
    status, _, body = ask(server, "/predict", b"{")
    assert status == 422
    assert json.loads(body)["detail"][0]["type"] == "json_invalid"


def test_requests_run_in_batches(server: ls.LitServer) -> None:
    """Arrays are stacked and parted again; each client gets its own."""
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: ask(server, "/batched", {"input": [n, 1]}), range(4)))
    answers = [json.loads(body) for _, _, body in found]
    assert [each["output"] for each in answers] == [[float(n), 1.0] for n in range(4)]
    assert max(each["rows"] for each in answers) > 1


def test_one_bad_request_of_a_batch_fails_alone(server: ls.LitServer) -> None:
    """What cannot be decoded is that client's error; the others of the batch are answered."""
    with ThreadPoolExecutor(4) as threads:
        bodies = [{"input": [1, 1]}, {"wrong": 1}, {"input": None}, {"input": [2, 1]}]
        found = list(threads.map(lambda body: ask(server, "/batched", body)[0], bodies))
    assert found == [200, 500, 400, 200]


def test_streams_come_piece_by_piece(server: ls.LitServer) -> None:
    """Each value is sent when it is made: lines of JSON, texts as they are; pydantic reads the request."""
    assert ask(server, "/streamed", {"n": 3})[2] == b'{"n":0}\n{"n":1}\n{"n":2}\n'
    assert ask(server, "/overlapping_stream", {"text": "a b c"})[2] == b"ABC"
    status, _, body = ask(server, "/streamed", {"n": "x"})
    assert status == 422
    assert json.loads(body)["detail"][0]["loc"] == ["body", "n"]
    # The connection is cut; whether something of the answer went out before is chance.
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(server, "/streamed", {"n": 9})
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda name: ask(server, "/streamed_batch", {"name": name})[2], "ab"))
    assert found == [b"a0 a1 ", b"b0 b1 "]


def test_coroutines_overlap(server: ls.LitServer) -> None:
    """`enable_async`: requests run side by side, and `context` lasts from one step to the next."""
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda n: json.loads(ask(server, "/overlapping", {"input": n})[2]), range(3)))
    assert found == [{"output": [n, True], "said": n} for n in range(3)]


def test_forms_and_files(server: ls.LitServer) -> None:
    """URL-encoded and multipart bodies; an object with `body` and `status_code` is the whole response."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert ask(server, "/raw", b"name=a%20b", form) == (201, "text/plain", b"a b")
    body = (
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nme\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\nContent-Type: text/plain\r\n\r\n'
        b"inside\r\n--x--\r\n"
    )
    found = ask(server, "/raw", body, {"Content-Type": "multipart/form-data; boundary=x"})
    assert (found[0], json.loads(found[2])) == (200, ["me", ["f.txt", "text/plain", "inside"]])


def test_headers_of_the_program_are_carried(server: ls.LitServer) -> None:
    """Those that an exception brings are in the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=100)
    for _ in range(2):
        connection.request("POST", "/predict", b'{"input": 13}', {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["X-Why"], answer.read()) == (418, "thirteen", b'{"detail":"unlucky"}')
    connection.close()


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_have_none(server: ls.LitServer, status: int) -> None:
    """Clients do not read one there: its bytes would begin the next answer on the connection."""
    body = b'{"input": %d}' % status
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        found = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, rest = found.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert b"X-Why: thirteen" in first
    assert b"content-length" not in first.lower()
    assert rest.startswith(b"HTTP/1.1 200 OK")


def test_a_server_runs_once_at_a_time() -> None:
    """A second start is refused and disturbs nothing; after the end it may run again, and an early stop counts."""
    server = ls.LitServer(Square(), accelerator="cpu")
    server.start("127.0.0.1", 0)
    with pytest.raises(RuntimeError, match=f"the server runs already, at port {server.port}"):
        server.start("127.0.0.1", 0)
    assert ask(server, "/predict", {"input": 2})[0] == 200
    server.stop()
    server.start("127.0.0.1", 0)
    assert ask(server, "/predict", {"input": 2})[0] == 200
    server.stop()


def test_wishes_without_effect_are_named() -> None:
    """What LitServe does with them has no counterpart."""
    for name in ("fast_queue", "track_requests"):
        with pytest.warns(UserWarning, match=f"LitServer.{name}=....* has no effect"):
            ls.LitServer(Square(), accelerator="cpu", **{name: True})


def test_the_other_endpoints(server: ls.LitServer) -> None:
    """`/`, `/health`, `/info`, what is unknown, wrong methods, too large bodies."""
    assert ask(server, "/")[2] == b"litserve running"
    assert ask(server, "/health")[::2] == (200, b"ok")
    info = json.loads(ask(server, "/info")[2])
    assert info["model"] == {"name": "tests"}
    assert info["server"]["devices"] == ["cpu"]
    assert ask(server, "/nope")[0] == 404
    assert ask(server, "/predict")[0] == 405
    assert ask(server, "/predict", {"input": "x" * 20_000})[0] == 413


def test_a_key_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """LIT_SERVER_API_KEY: requests without it are refused."""
    monkeypatch.setenv("LIT_SERVER_API_KEY", "secret")
    server = ls.LitServer(Square(), accelerator="cpu")
    server.start("127.0.0.1", 0)
    try:
        assert ask(server, "/predict", {"input": 2})[0] == 401
        assert ask(server, "/predict", {"input": 2}, {"X-API-Key": "secret"})[0] == 200
    finally:
        server.stop()


def test_requests_that_wait_too_long_are_told() -> None:
    """`timeout` is the time in the queue: 504."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Square):
        def predict(self, x: float) -> float:
            entered.set()
            assert go_on.wait(60)
            return x

    server = ls.LitServer(Slow(), accelerator="cpu", timeout=2)
    server.start("127.0.0.1", 0)
    try:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(ask, server, "/predict", {"input": 1})
            # On a machine that does nothing else for two seconds it may itself be one of those.
            while not entered.wait(0.01):
                if first.done():
                    first = threads.submit(ask, server, "/predict", {"input": 1})
            assert ask(server, "/predict", {"input": 2}) == (504, "application/json", b'{"detail":"Request timed out"}')
            go_on.set()
            assert first.result(60)[0] == 200
    finally:
        go_on.set()
        server.stop()


def test_each_worker_has_a_copy_of_its_own() -> None:
    """`workers_per_device`: `setup` of each, side by side."""
    seen: set[int] = set()
    both = threading.Barrier(2, timeout=100)

    class Counted(Square):
        def setup(self, device: str) -> None:
            super().setup(device)
            seen.add(id(self))

        def predict(self, x: float) -> float:
            both.wait()
            return x

    server = ls.LitServer(Counted(), accelerator="cpu", workers_per_device=2)
    server.start("127.0.0.1", 0)
    try:
        with ThreadPoolExecutor(2) as threads:
            assert [each[0] for each in threads.map(lambda n: ask(server, "/predict", {"input": n}), range(2))] == [
                200
            ] * 2
        assert len(seen) == 2
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: ls.LitServer([]), ValueError, "needs a LitAPI"),
        (lambda: ls.LitServer(Square(), accelerator="tpu"), ValueError, "accelerator must be"),
        (lambda: ls.LitServer(Square(), devices="two"), ValueError, "devices must be 'auto', a number"),
        (lambda: ls.LitServer(Square(api_path="predict")), ValueError, "must begin with '/'"),
        (lambda: ls.LitServer([Square(), Square()]), ValueError, "several APIs have the same api_path"),
        (lambda: ls.LitServer(Square(stream=True)), ValueError, "Square.predict must yield"),
        (lambda: ls.LitServer(Square(), max_batch_size=0), ValueError, "max_batch_size must be at least 1"),
        (lambda: ls.LitServer(Square(), callbacks=[1]), InferError, r"LitServer.callbacks=....* is not supported"),
        (lambda: Square(spec=object()), InferError, r"LitAPI.spec=....* is not supported"),
    ],
)
def test_wishes_that_cannot_be_granted_are_named(make: Any, error: type[Exception], said: str) -> None:
    """What makes no sense, and what this server does not have: one sentence each."""
    with pytest.raises(error, match=said):
        make()
