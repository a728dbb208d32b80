"""`conch serve` with what is no repository, and models taken over from other servers, asked by real clients."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from conch.config.pbtxt import parse_text
from support.onnx_models import add_sub
from support.other_servers import estimator_folder, mean_model, word_count
from support.server import BIN, CONCH, Server, free_ports

FUNCTIONS = '''
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

import conch
from words import shout


@conch.model
def scale(x: Annotated[np.ndarray, conch.FP32(-1, 2)], factor: float = 2.0) -> conch.Array["FP32", -1, 2]:
    """Times a factor."""
    return x * factor


@dataclass
class Verdict:
    text: str
    length: int


@conch.model
def judge(text: str) -> Verdict:
    if not text:
        raise ValueError("no text")
    return Verdict(shout(text), len(text))


@conch.model(batch=conch.Batch(32, wait="20ms"))
def together(x: conch.Array["INT64", -1], word: list[str] | None = None) -> tuple[conch.INT64[-1], list[str]]:
    return np.full(len(x), len(x)) + x, [each + "!" for each in word] if word else ["-"] * len(x)


@conch.model(batch=conch.Rows(8))
def row(x: conch.Array["FP32", 2]) -> float:
    return float(x.sum())


waiting = 0


@conch.model(concurrency=4)
async def meet(n: int) -> int:
    """Answers when n calls are here."""
    global waiting
    waiting += 1
    while waiting < n:
        await asyncio.sleep(0.001)
    return waiting


@conch.model
def tokens(text: str) -> Iterator[str]:
    yield from text.split()


@conch.model
async def countdown(n: int) -> AsyncIterator[int]:
    for left in range(n, 0, -1):
        yield left
    if n > 2:
        raise RuntimeError("lift-off failed")


@conch.model
def wrong(x: int) -> str:
    return x
'''


class Target(Server):
    """`conch serve TARGET`."""

    def __init__(self, target: Path, *flags: str) -> None:
        super().__init__(target, *flags, command=CONCH)


def ask(server: Server, model: str, outputs: tuple[str, ...] = (), **inputs: Any) -> dict[str, Any]:
    """Over HTTP; arrays by name in, arrays by name out."""
    with httpclient.InferenceServerClient(server.http) as client:
        sent = []
        for name, array in inputs.items():
            kind = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}.get(array.dtype.str[1:], "BYTES")
            sent.append(httpclient.InferInput(name, list(array.shape), kind))
            sent[-1].set_data_from_numpy(array)
        wanted = [httpclient.InferRequestedOutput(name) for name in outputs]
        answer = client.infer(model, sent, outputs=wanted or None)
        return {each["name"]: answer.as_numpy(each["name"]) for each in answer.get_response()["outputs"]}


def texts(*values: str) -> Any:
    return np.array([value.encode() for value in values], dtype=object)


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("functions")
    (folder / "app.py").write_text(FUNCTIONS)
    (folder / "words.py").write_text("def shout(text):\n    return text.upper()\n")
    with Target(folder / "app.py") as server:
        yield server


def test_arrays_and_defaults(functions: Server) -> None:
    """An input with a default may be left out."""
    x = np.array([[1, 2], [3, 4]], np.float32)
    assert ask(functions, "scale", x=x)["output"].tolist() == [[2, 4], [6, 8]]
    assert ask(functions, "scale", x=x, factor=np.array([10.0]))["output"].tolist() == [[10, 20], [30, 40]]


def test_dataclasses_are_outputs_by_name(functions: Server) -> None:
    """Each field is a tensor; modules beside the file can be imported."""
    found = ask(functions, "judge", text=texts("hello"))
    assert found["text"].tolist() == [b"HELLO"]
    assert found["length"].tolist() == [5]


def test_an_exception_is_the_requests_error(functions: Server) -> None:
    """Its text names the line; the traceback is there to read, once."""
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=r"ValueError: no text \(app\.py:\d+\)"):
            ask(functions, "judge", text=texts(""))
    until(lambda: 'raise ValueError("no text")' in functions.log, True)
    assert functions.log.count('raise ValueError("no text")') == 1
    with pytest.raises(InferenceServerException, match="output 'output' is declared str, the function gave 3"):
        ask(functions, "wrong", x=np.array([3]))
    with pytest.raises(InferenceServerException, match="input 'text' is no UTF-8 text"):
        ask(functions, "judge", text=np.array([b"\xff"], dtype=object))


def test_a_batch_is_one_call(functions: Server) -> None:
    """Requests that wait run together; those that leave an input out are a call of their own."""
    word, x = texts("a", "b").reshape(2, 1), np.array([[0], [0]])

    def together() -> bool:
        with ThreadPoolExecutor(5) as pool:
            calls = [pool.submit(ask, functions, "together", x=x + number, word=word) for number in range(4)]
            without = pool.submit(ask, functions, "together", x=np.array([[7]])).result()
        assert without["output_0"].tolist() == [[8]]
        assert without["output_1"].tolist() == [[b"-"]]
        sizes = set()
        for number, call in enumerate(calls):
            found = call.result()
            sizes |= {int(each) - number for each in found["output_0"].ravel()}
            assert found["output_1"].tolist() == [[b"a!"], [b"b!"]]
        return max(sizes) > 2

    # They need not meet within 20 ms.
    until(together, True)


def test_a_function_of_rows_is_asked_row_by_row(functions: Server) -> None:
    """Clients send many rows, the function sees one."""
    x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    assert ask(functions, "row", x=x)["output"].tolist() == [[3], [7], [11]]


def test_coroutines_run_side_by_side(functions: Server) -> None:
    """Three requests that wait for each other are all answered."""
    with httpclient.InferenceServerClient(functions.http, concurrency=3) as client:
        n = httpclient.InferInput("n", [1], "INT64")
        n.set_data_from_numpy(np.array([3]))
        calls = [client.async_infer("meet", [n]) for _ in range(3)]
        assert [call.get_result().as_numpy("output").tolist() for call in calls] == [[3], [3], [3]]


def stream(server: Server, model: str, **inputs: Any) -> list[Any]:
    """The values of a decoupled model's only output, and the error where one came."""
    body = json.dumps(inputs)
    command = ["curl", "-sN", f"http://{server.http}/v2/models/{model}/generate_stream", "-d", body]
    events = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    found = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line]
    return [each.get("output", each.get("error")) for each in found]


def test_generators_stream(functions: Server) -> None:
    """A response for each value, plain or asynchronous; an exception ends the stream."""
    assert stream(functions, "tokens", text="a stream of tokens") == ["a", "stream", "of", "tokens"]
    assert stream(functions, "countdown", n=2) == [2, 1]
    *values, error = stream(functions, "countdown", n=3)
    assert values == [3, 2, 1]
    assert "RuntimeError: lift-off failed" in error


def test_the_server_says_what_it_decided(functions: Server) -> None:
    """A block for each model, whose commands work as they stand."""
    shown = "batching    requests that wait run together, up to 32 rows (max_batch_size), waiting 20 ms"
    until(lambda: "/v2/models/wrong/" in functions.log and shown in functions.log, True)
    assert "scale: Python function " in functions.log
    commands = {
        name: line for line, name in re.findall(r"^  try +(.*/v2/models/(\w+)/.*)$", functions.log, re.MULTILINE)
    }
    assert set(commands) == {"scale", "judge", "together", "row", "meet", "tokens", "countdown", "wrong"}
    for name in ("scale", "judge", "together", "row", "tokens"):
        said = subprocess.run(["bash", "-c", commands[name]], capture_output=True, text=True, check=True).stdout
        assert '"model_name"' in said, said


def test_a_lone_onnx_file(tmp_path: Path) -> None:
    """With weights beside it, another name, and the config written on request."""
    onnx.save_model(add_sub(), tmp_path / "sums.onnx")
    config = tmp_path / "config.pbtxt"
    with Target(tmp_path / "sums.onnx", "--name=sums2", f"--write-config={config}") as server:
        inputs = [np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32)]
        with httpclient.InferenceServerClient(server.http) as client:
            names = [each["name"] for each in client.get_model_metadata("sums2")["inputs"]]
        found = ask(server, "sums2", **dict(zip(names, inputs, strict=True)))
        assert [[4, 6]] in [each.tolist() for each in found.values()]
        until(lambda: "up to 4 rows (max_batch_size)" in server.log, True)
        until(lambda: "model_repository_path[0] | " in server.log, True)
        temporary = Path(re.findall(r"model_repository_path\[0\] \| (\S+)", server.log)[0])
        assert (temporary / "sums2" / "1" / "model.onnx").is_symlink()
    assert not temporary.exists()
    written = parse_text(config.read_text(), "config.pbtxt")
    assert (written.name, written.max_batch_size, written.backend) == ("sums2", 4, "onnxruntime")


@pytest.mark.parametrize(
    ("name", "content", "flags", "said"),
    [
        ("a.plan", "", (), r"a\.plan: .*backend 'tensorrt'.*pip install 'conch\[tensorrt\]'"),
        ("a.onnx", "no model", (), "is no ONNX file"),
        ("a.doc", "", (), "no kind of model is known for this file"),
        ("app.py", "import conch\n@conch.model\ndef f(x) -> int: ...\n", (), r"app\.py:2: parameter 'x' of 'f' has no"),
        ("model.py", "class TritonPythonModel: ...\n", ("--write-config=CONFIG",), "is there already"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    tmp_path: Path, name: str, content: str, flags: tuple[str, ...], said: str
) -> None:
    """On stderr, with exit code 1, before a server is started."""
    (tmp_path / name).write_text(content)
    (tmp_path / "CONFIG").write_text("")
    ports = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), free_ports(3), strict=True)]
    done = subprocess.run(
        [*CONCH, name, *flags, *ports], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert "Started" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_models_of_other_servers(tmp_path: Path) -> None:
    """`conch import`, then `conch serve`: handlers, runtimes and estimators answer as they did; so does a joblib file
    by itself, with numbers of full precision."""
    datasets = pytest.importorskip("sklearn.datasets")
    import joblib
    from sklearn.linear_model import LinearRegression, LogisticRegression

    features, classes = datasets.load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(features, classes)
    sources = [word_count(tmp_path), mean_model(tmp_path / "mean"), estimator_folder(tmp_path / "iris", model)]
    amounts, targets = datasets.load_diabetes(return_X_y=True)
    line = LinearRegression().fit(amounts, targets)
    joblib.dump(line, tmp_path / "diabetes.joblib")
    repository = tmp_path / "repository"
    subprocess.run([str(BIN / "conch"), "import", *map(str, sources), f"--into={repository}"], check=True)
    with Target(repository, str(tmp_path / "diabetes.joblib")) as server:
        body = json.dumps({"text": "dog"}).encode()
        data = np.array([[b"a cat and a dog"], [b"nothing"]], dtype=object)
        answers = [json.loads(each) for each in ask(server, "words", data=data)["output"].ravel()]
        assert answers == [{"words": 5, "known": 2, "batch": 2}, {"words": 1, "known": 0, "batch": 2}]
        with pytest.raises(InferenceServerException, match="status 413: too many words"):
            ask(server, "words", data=np.array([[b"1 2 3 4 5 6"]], dtype=object))
        with httpclient.InferenceServerClient(server.http) as client:
            raw = httpclient.InferInput("data", [1, 1], "BYTES")
            raw.set_data_from_numpy(np.array([[body]], dtype=object))
            answer = client.infer("words", [raw], parameters={"content_type": "application/json"})
            assert json.loads(answer.as_numpy("output")[0, 0])["known"] == 1

        x = np.array([[1, 3], [10, 20]], np.float32)
        found = ask(server, "mean", x=x, word=texts("hello"))
        assert found["mean"].tolist() == [21, 151]
        assert found["loud"].tolist() == [[b"HELLO"]]
        with pytest.raises(InferenceServerException, match="ValueError: no word"):
            ask(server, "mean", x=x, word=texts(""))

        rows = features[:16].astype(np.float32)
        found = ask(server, "iris", predict=rows)
        assert found["predict"].ravel().tolist() == model.predict(rows).tolist()
        np.testing.assert_allclose(found["predict_proba"], model.predict_proba(rows), rtol=1e-9)
        assert set(ask(server, "iris", ("predict",), predict=rows)) == {"predict"}

        found = ask(server, "diabetes", predict=amounts[:50])
        assert found["predict"].ravel().tolist() == line.predict(amounts[:50]).tolist()
        until(lambda: "serve only files you trust" in server.log, True)


def test_several_targets_at_once(tmp_path: Path) -> None:
    """A repository and lone models beside it are one server."""
    place = tmp_path / "repository" / "plain" / "1"
    place.mkdir(parents=True)
    onnx.save_model(add_sub(), place / "model.onnx")
    (tmp_path / "app.py").write_text("import conch\n@conch.model\ndef f(x: int) -> int:\n    return x + 1\n")
    with Target(tmp_path / "repository", str(tmp_path / "app.py")) as server:
        assert ask(server, "f", x=np.array([1]))["output"].tolist() == [2]
        with httpclient.InferenceServerClient(server.http) as client:
            assert sorted(each["name"] for each in client.get_model_repository_index()) == ["f", "plain"]


def until(what: Callable[[], object], wanted: object) -> None:
    """Ask again and again, for at most a minute."""
    deadline = time.monotonic() + 60
    found: object = None
    while time.monotonic() < deadline:
        try:
            found = what()
        except (InferenceServerException, KeyError) as error:
            found = error
        if found == wanted:
            return
        time.sleep(0.05)
    raise AssertionError(f"found {found!r}, wanted {wanted!r}")


@pytest.mark.slow
def test_saving_a_file_of_functions_changes_its_models(tmp_path: Path) -> None:
    """With --watch: the file, what it imports, its annotations, its functions; a mistake changes nothing."""
    path = tmp_path / "app.py"
    code = "import conch\nfrom steps import STEP\n@conch.model\ndef f(x: int) -> int:\n    return x + STEP\n"
    (tmp_path / "steps.py").write_text("STEP = 1\n")
    path.write_text(code)
    with Target(path, "--watch") as server:

        def answer(name: str = "f") -> Any:
            return ask(server, name, x=np.array([10]))["output"].tolist()

        until(answer, [11])
        path.write_text(code.replace("x + STEP", "x + STEP + 1.5").replace("-> int", "-> float"))
        until(answer, [12.5])
        (tmp_path / "steps.py").write_text("STEP = 10\n")
        until(answer, [21.5])
        path.write_text("def broken(:\n")
        until(lambda: f"{path}:1: SyntaxError" in server.log, True)
        assert answer() == [21.5]
        path.write_text(code.replace("def f", "def g"))
        until(lambda: answer("g"), [20])
        with httpclient.InferenceServerClient(server.http) as client:
            until(lambda: client.is_model_ready("f"), False)


def test_help_names_the_targets() -> None:
    """`conch serve --help` begins with what can be served."""
    said = subprocess.run([*CONCH, "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("@conch.model", "model-settings.json", ".mar", "--write-config", "--http-port"):
        assert word in said
