"""The server as a library: started in this process, asked without ports, with real models, functions and clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import BaseModel, Field
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tritonclient import grpc as grpc_client

import conch
from conch.backend.api import Placement
from conch.backend.program import Call
from conch.library.bound import Bound
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import FP32, INT32
from conch.types.error import Code
from support.onnx_models import graph
from support.until import until

IDENTITY = """
backend: "identity"
max_batch_size: 4
input [ {{ name: "x" data_type: {type} dims: [ 2 ] }} ]
output [ {{ name: "y" data_type: {type} dims: [ 2 ] }} ]
"""


class Gate:
    """A function that waits until it is let go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, x: float) -> float:
        self.entered.set()
        assert self.open.wait(60)
        return x


@conch.model(batch=conch.Batch(8))
def double(x: conch.FP32[-1, 2]) -> conch.FP32[-1, 2]:
    """Twice the numbers."""
    return x * 2


def words(text: str) -> Iterator[str]:
    yield from text.split()


async def shout(text: str) -> str:
    await asyncio.sleep(0)
    return text.upper()


async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        await asyncio.sleep(0)
        yield number


def broken(x: float) -> float:
    raise KeyError(f"no {x:g}")


@pytest.fixture(scope="module")
def server() -> Iterator[conch.Server]:
    with conch.Server(functions=[double, words, shout, count, broken]) as server:
        yield server


def homes() -> int:
    """Event loops of servers in this process."""
    return sum([thread.name == "conch" for thread in threading.enumerate()])


def add(repository: Path, name: str, datatype: str = "TYPE_FP32") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(IDENTITY.format(type=datatype))


def test_a_model_answers_arrays_lists_and_tensors(server: conch.Server) -> None:
    """Arrays keep their type; lists take the model's."""
    model = server.model("double")
    assert model.ready()
    for value in (np.ones((3, 2), np.float32), [[1, 1]] * 3):
        np.testing.assert_array_equal(model.infer({"x": value})["output"], np.full((3, 2), 2.0))


def test_tensors_of_frameworks_are_inputs(server: conch.Server) -> None:
    """What has DLPack is taken without a copy of ours; one with a gradient is detached."""
    torch = pytest.importorskip("torch")
    found = server.model("double").infer({"x": torch.ones((1, 2), requires_grad=True)})
    np.testing.assert_array_equal(found["output"], [[2.0, 2.0]])


def test_wrong_types_are_refused_as_on_the_wire(server: conch.Server) -> None:
    """An array of another type than the model's is not converted in silence."""
    with pytest.raises(conch.InferError, match="data-type is 'FP64', but model 'double' expects 'FP32'") as refused:
        server.model("double").infer({"x": np.ones((1, 2))})
    assert refused.value.code is Code.INVALID_ARG


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones((1, 2), np.complex64), "an array of complex64, which is no tensor's type"),
        ([["a", "b"]], "cannot be made a tensor of FP32"),
        ([[1.0], [1.0, 2.0]], "cannot be made a tensor of FP32"),
        (object(), "cannot be made a tensor of FP32"),
    ],
)
def test_what_is_no_tensor_is_one_sentence(server: conch.Server, value: object, said: str) -> None:
    """Values that cannot be a tensor are named with the input."""
    with pytest.raises(conch.InferError, match=f"input 'x' (is|cannot).*{said.rsplit('cannot ', maxsplit=1)[-1]}"):
        server.model("double").infer({"x": value})


class OnDevice:
    """As an array of CuPy's: it must be asked for its copy on the host."""

    __cuda_array_interface__: ClassVar[dict[str, object]] = {}

    def __init__(self, array: np.ndarray | None) -> None:
        self._array = array

    def __dlpack__(self, **_: object) -> None:
        raise BufferError("not on the host")

    def __array__(self, *_: object) -> None:
        raise TypeError("implicit conversion is not allowed")

    def get(self) -> np.ndarray:
        if self._array is None:
            raise RuntimeError("the device is gone")
        return self._array


def test_tensors_that_numpy_cannot_read(server: conch.Server) -> None:
    """Arrays on a device are fetched; what cannot be read is one sentence with the input's name."""
    model = server.model("double")
    found = model.infer({"x": OnDevice(np.ones((1, 2), np.float32))})
    np.testing.assert_array_equal(found["output"], [[2.0, 2.0]])
    with pytest.raises(conch.InferError, match=r"input 'x' is a .*OnDevice that cannot be read: the device is gone"):
        model.infer({"x": OnDevice(None)})
    torch = pytest.importorskip("torch")
    with pytest.raises(conch.InferError, match=r"input 'x' is a torch\.Tensor that cannot be read") as caught:
        model.infer({"x": torch.ones((1, 2)).to(torch.float8_e4m3fn)})
    assert caught.value.code is Code.INVALID_ARG


def test_unknown_models_and_keywords_are_named(server: conch.Server) -> None:
    """A model that is not there, an output that is not given, a keyword that is no flag."""
    with pytest.raises(conch.InferError, match="unknown model: 'nope'"):
        server.model("nope").infer({})
    assert not server.model("nope").ready()
    with pytest.raises(KeyError, match="model 'double' gave no output 'z', it gave"):
        server.model("double").infer({"x": [[1, 1]]})["z"]
    with pytest.raises(TypeError, match="no keyword 'http_prt', did you mean http_port"):
        conch.Server(functions=[double], http_prt=1)
    with pytest.raises(ValueError, match="metrics-port"):
        conch.Server(functions=[double], metrics_port="x")


def test_requests_overlap_and_are_batched(server: conch.Server) -> None:
    """Futures of many requests at once; what waits runs together."""
    model = server.model("double")
    before = model.statistics().model_stats[0]
    # All are asked before the server's own thread looks at any.
    asked = threading.Event()
    assert server._home is not None
    server._home.post(lambda: asked.wait(60))
    futures = [model.submit({"x": [[number, 0]]}) for number in range(200)]
    asked.set()
    assert [future.result(60)["output"][0, 0] for future in futures] == [2.0 * number for number in range(200)]
    until(lambda: model.statistics().model_stats[0].inference_count - before.inference_count == 200)
    assert model.statistics().model_stats[0].execution_count - before.execution_count < 200


def test_streams_come_piece_by_piece(server: conch.Server) -> None:
    """A generator's values in order; leaving early ends the request, and the model goes on with others."""
    model = server.model("words")
    assert [each["output"].item() for each in model.stream({"text": "a b c"})] == [b"a", b"b", b"c"]
    long = " ".join(map(str, range(10_000)))
    for each in model.stream({"text": long}):
        assert each["output"].item() == b"0"
        break
    assert [each["output"].item() for each in model.stream({"text": "d"})] == [b"d"]
    with pytest.raises(conch.InferError, match=r"model 'words' is decoupled"):
        model.infer({"text": "a"})


def test_a_stream_that_nobody_reads_waits(server: conch.Server) -> None:
    """Of a hundred thousand values only some are made before the reader takes them, and all come in order."""
    stream = server.model("count").stream({"to": 20_000})
    first = next(stream)
    assert first["output"].item() == 0
    assert [each["output"].item() for each in stream] == list(range(1, 20_000))


def test_the_programs_own_loop_can_wait(server: conch.Server) -> None:
    """`infer_async` and `stream_async` beside a running event loop; coroutine functions overlap."""

    async def main() -> tuple[list[bytes], list[int]]:
        answers = await asyncio.gather(*[server.model("shout").infer_async({"text": f"x{n}"}) for n in range(50)])
        numbers = [each["output"].item() async for each in server.model("count").stream_async({"to": 100})]
        return [each["output"].item() for each in answers], numbers

    texts, numbers = asyncio.run(main())
    assert texts == [f"X{n}".encode() for n in range(50)]
    assert numbers == list(range(100))


def test_what_a_function_raises_is_the_requests_error(server: conch.Server, capfd: pytest.CaptureFixture[str]) -> None:
    """With file and line; the server goes on."""
    with pytest.raises(conch.InferError, match=r"KeyError: 'no 7' .test_library.py:\d+."):
        server.model("broken").infer({"x": 7.0})
    assert "no 7" in capfd.readouterr().err
    assert server.ready()


def test_a_request_can_be_given_up() -> None:
    """After its time-out a request is withdrawn: one that waits never runs, and the model is free for others."""
    gate = Gate()

    def slow(x: float) -> float:
        return gate(x)

    with conch.Server(functions=[slow]) as server:
        model = server.model("slow")
        first = model.submit({"x": 1.0})
        assert gate.entered.wait(60)
        with pytest.raises(TimeoutError):
            model.infer({"x": 2.0}, timeout=0.05)
        gate.open.set()
        assert first.result(60)["output"].item() == 1.0
        assert model.infer({"x": 3.0})["output"].item() == 3.0
        # A function's thread counts when it has answered.
        until(lambda: model.statistics().model_stats[0].inference_count == 2)


def test_a_stream_that_is_forgotten_is_withdrawn() -> None:
    """Also one that nobody has begun to read, and while the server's own thread is busy: what waits never runs."""
    gate = Gate()
    free = threading.Event()

    def slow(x: float) -> float:
        return gate(x)

    async def forget(model: conch.Model) -> None:
        model.stream_async({"x": 3.0})
        closed = model.stream_async({"x": 4.0})
        await closed.aclose()
        assert [each async for each in closed] == []

    with conch.Server(functions=[slow]) as server:
        model = server.model("slow")
        first = model.submit({"x": 1.0})
        assert gate.entered.wait(60)
        assert server._home is not None
        server._home.post(lambda: free.wait(60))
        model.stream({"x": 2.0})
        kept = model.stream({"x": 2.5})
        kept.close()
        assert list(kept) == []
        asyncio.run(forget(model))
        gate.open.set()
        assert first.result(60)["output"].item() == 1.0
        free.set()
        assert [each["output"].item() for each in model.stream({"x": 5.0})] == [5.0]
        until(lambda: model.statistics().model_stats[0].inference_count >= 2)
        assert model.statistics().model_stats[0].inference_count == 2


def test_a_real_model_is_served_reloaded_and_agrees(tmp_path: Path) -> None:
    """Digits by logistic regression through ONNX: classes agree with scikit-learn, batched, also after a reload."""
    skl2onnx = pytest.importorskip("skl2onnx")
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    trained = LogisticRegression(max_iter=1000).fit(images / 16, labels)
    (tmp_path / "digits" / "1").mkdir(parents=True)
    made = skl2onnx.to_onnx(trained, images[:1] / 16, options={"zipmap": False})
    onnx.save(made, tmp_path / "digits" / "1" / "model.onnx")
    with conch.Server(tmp_path) as server:
        model = server.model("digits")
        futures = [model.submit({"X": images[n : n + 4] / 16}, outputs=["label"]) for n in range(0, 64, 4)]
        found = np.concatenate([future.result(60)["label"].reshape(-1) for future in futures])
        np.testing.assert_array_equal(found, trained.predict(images[:64] / 16))
        server.load("digits", config={**json.loads(_config(model)), "max_batch_size": 16})
        assert model.config().max_batch_size == 16
        probabilities = model.infer({"X": images[:16] / 16})["probabilities"]
        np.testing.assert_allclose(probabilities, trained.predict_proba(images[:16] / 16), atol=1e-4)


def _config(model: conch.Model) -> str:
    from conch.config.json import to_json

    return to_json(model.config()).decode()


def test_models_come_and_go(tmp_path: Path) -> None:
    """Load, unload and the index, in the mode that is a library's unless something else is said."""
    add(tmp_path, "one")
    with conch.Server(tmp_path) as server:
        assert [(each.name, each.state) for each in server.index()] == [("one", "READY")]
        add(tmp_path, "two")
        server.load("two").infer({"x": [[1, 2]]})
        server.unload("one")
        assert not server.model("one").ready()
        with pytest.raises(conch.InferError, match="failed to load 'three'"):
            server.load("three")
        assert server.add(words) == "words"
        assert server.model("words").ready()
    with conch.Server(tmp_path, model_control_mode="explicit", load_model=["two"]) as server:
        assert [each.name for each in server.index(ready_only=True)] == ["two"]
    with conch.Server(tmp_path, model_control_mode="none") as server, pytest.raises(conch.InferError, match="explicit"):
        server.unload("one")


def test_models_that_do_not_load_are_named(tmp_path: Path) -> None:
    """`start` raises with the model and the reason, and leaves nothing running."""
    add(tmp_path, "good")
    add(tmp_path, "bad")
    (tmp_path / "bad" / "config.pbtxt").write_text("no config")
    before = homes()
    with pytest.raises(conch.InferError, match="failed to load all models: bad: "):
        conch.Server(tmp_path).start()
    assert homes() == before
    with conch.Server(tmp_path, exit_on_error=False) as server:
        assert server.model("good").ready()


def test_bytes_and_half_floats_go_both_ways(tmp_path: Path) -> None:
    """BYTES are `bytes` with zero bytes kept, BF16 comes back as FP32."""
    add(tmp_path, "bytes", "TYPE_STRING")
    add(tmp_path, "half", "TYPE_BF16")
    with conch.Server(tmp_path) as server:
        found = server.model("bytes").infer({"x": [["é", b"\0x\0"]]})["y"]
        assert found.tolist() == [["é".encode(), b"\0x\0"]]
        half = server.model("half").infer({"x": [[1.5, -2.0]]})["y"]
        assert half.dtype == np.float32
        assert half.tolist() == [[1.5, -2.0]]
        for ragged in ([["a"], ["b", "c"]], [["a", ["b"]]]):
            with pytest.raises(conch.InferError, match="a tensor of BYTES: its lists have different lengths"):
                server.model("bytes").infer({"x": ragged})
        torch = pytest.importorskip("torch")
        for tensor in (torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16, requires_grad=grad) for grad in (True, False)):
            assert server.model("half").infer({"x": tensor})["y"].tolist() == [[1.5, -2.0]]


def test_ports_are_opened_when_asked_for() -> None:
    """None without a word; HTTP, gRPC and metrics each by their port."""
    with conch.Server(functions=[double]) as server:
        assert (server.http_port, server.grpc_port, server.metrics_port) == (0, 0, 0)
        assert 'nv_inference_count{model="double",version="1"} 0' in server.metrics()
    with conch.Server(functions=[double], http_port=0, grpc_port=0, metrics_port=0) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()
        client = grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        given = grpc_client.InferInput("x", [1, 2], "FP32")
        given.set_data_from_numpy(np.ones((1, 2), np.float32))
        np.testing.assert_array_equal(client.infer("double", [given]).as_numpy("output"), [[2.0, 2.0]])
        client.close()

        def page() -> bytes:
            connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read()
            connection.close()
            return text

        until(lambda: b'nv_inference_count{model="double",version="1"} 1' in page())


def test_a_server_is_started_and_stopped_once() -> None:
    """Before the start and after the end there is one sentence; to stop twice does no harm."""
    server = conch.Server(functions=[double])
    with pytest.raises(conch.InferError, match="the server does not run"):
        server.model("double")
    assert not server.live()
    server.start()
    with pytest.raises(RuntimeError, match="started already"):
        server.start()
    model = server.model("double")
    server.stop()
    server.stop()
    assert not server.ready()
    with pytest.raises(conch.InferError):
        model.infer({"x": [[1, 1]]})


def test_several_servers_in_one_process_do_not_meet() -> None:
    """Each has its own models, loop and statistics."""
    with conch.Server(functions=[double]) as one, conch.Server(functions=[words]) as two:
        assert [each.name for each in one.index()] == ["double"]
        assert [each.name for each in two.index()] == ["words"]


def test_the_log_is_the_programs_unless_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is written by itself; with a keyword the server's own lines go to the file, and can be changed."""
    with conch.Server(functions=[double]):
        pass
    file = tmp_path / "log"
    with conch.Server(functions=[double], log_file=file, log_verbose=1) as server:
        assert server.log().verbose == 1
        assert server.log(verbose=0, info=False).info is False
    assert "successfully loaded 'double'" in file.read_text()


def test_importing_conch_is_cheap() -> None:
    """`import conch` loads nothing of the server, nor of what it needs."""
    code = "import sys, conch; print([m for m in sys.modules if m.startswith('conch.') or m in ('numpy', 'uvloop')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_program_may_end_without_stopping(tmp_path: Path) -> None:
    """A program that forgets its server ends by itself, without an error."""
    code = "import conch\ndef f(x: float) -> float: return x\nconch.Server(functions=[f]).start()\nprint('done')"
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "program.py"], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_pydantic_checks_what_functions_get() -> None:
    """A model's fields and constraints of single values: what does not fit is the client's error."""

    class Question(BaseModel):
        text: str = Field(min_length=2, description="What is asked.")
        top: int = Field(default=1, ge=1)

    globals()["Question"] = Question

    def ask(question: Question) -> str:
        return question.text * question.top

    def price(area: Annotated[float, Field(gt=0)]) -> float:
        """Guess a price.

        Args:
            area: Square metres.
        """
        return area * 2

    with conch.Server(functions=[ask, price]) as server:
        assert server.model("ask").infer({"text": "ab", "top": 2})["output"].item() == b"abab"
        assert server.model("price").infer({"area": 2.0})["output"].item() == 4.0
        for model, inputs, said in (
            ("ask", {"text": "a"}, "at least 2 characters"),
            ("price", {"area": -1.0}, "greater than 0"),
        ):
            with pytest.raises(conch.InferError, match=said) as refused:
                server.model(model).infer(inputs)
            assert refused.value.code is Code.INVALID_ARG
        parameters = server.model("price").config().parameters
        assert parameters["description"].string_value == "Guess a price."
        assert parameters["description.area"].string_value == "Square metres."
        assert server.model("ask").config().parameters["description.text"].string_value == "What is asked."


class Wrong:
    """A program whose answers are not what its config says."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.answer = answer

    def open(self, placement: Placement) -> Wrong:
        return self

    def run(self, calls: list[Call]) -> None:
        for call in calls:
            if self.answer:
                call.reply(self.answer)  # type: ignore[arg-type]

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, "model 'm' gave no answer"),
        ({"z": np.ones(2)}, "model 'm' gave an output 'z', its outputs are 'y'"),
        ({"y": np.ones(3, np.float32)}, r"gave output 'y' with shape \[3\], expected \[2\]"),
        ({"y": np.array(["a", "b"])}, "gave output 'y' as an array of <U1, expected FP32"),
    ],
)
def test_answers_that_do_not_fit_the_config_are_errors(answer: dict[str, object], said: str) -> None:
    """No answer, an unknown output, a wrong shape, a wrong type: the request hears which."""
    config = ModelConfig(name="m")
    config.input.add(name="x", data_type=INT32.number, dims=[1])
    config.output.add(name="y", data_type=FP32.number, dims=[2])
    with conch.Server(functions=[Bound(config, Wrong(answer))]) as server, pytest.raises(conch.InferError, match=said):
        server.model("m").infer({"x": 1})


def test_two_functions_of_one_name_are_refused() -> None:
    """Names are the models' names."""
    with pytest.raises(ValueError, match="two functions for model 'double'"):
        conch.Server(functions=[double, double])


class Broken(Wrong):
    """Does not even load."""

    def open(self, placement: Placement) -> Wrong:
        raise RuntimeError("no weights")


def test_a_function_that_cannot_be_loaded_frees_its_name() -> None:
    """Added to a server that runs; the next one of that name is taken."""
    config = ModelConfig(name="m")
    config.input.add(name="x", data_type=INT32.number, dims=[1])
    config.output.add(name="y", data_type=FP32.number, dims=[2])
    answer = {"y": np.ones(2, np.float32)}
    with conch.Server() as server:
        with pytest.raises(conch.InferError, match="no weights"):
            server.add(Bound(config, Broken({})))
        assert [each.name for each in server.index()] == []
        assert server.add(Bound(config, Wrong(answer))) == "m"
        assert server.model("m").infer({"x": 1})["y"].tolist() == [1, 1]
        with pytest.raises(ValueError, match="two functions for model 'm'"):
            server.add(Bound(config, Wrong(answer)))
        assert server.model("m").ready()


def test_ensembles_cross_functions_and_files(tmp_path: Path) -> None:
    """A function of the program is a step like any other model."""
    (tmp_path / "plus" / "1").mkdir(parents=True)
    tensor = {"x": (FP32, ("batch", 2))}, {"y": (FP32, ("batch", 2))}
    made = graph([helper.make_node("Add", ["x", "one"], ["y"])], *tensor, {"one": np.float32(1)})
    onnx.save(made, tmp_path / "plus" / "1" / "model.onnx")
    (tmp_path / "both" / "1").mkdir(parents=True)
    (tmp_path / "both" / "config.pbtxt").write_text(
        'platform: "ensemble" max_batch_size: 4\n'
        'input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }\n'
        "ensemble_scheduling {\n"
        ' step { model_name: "plus" model_version: -1 input_map { key: "x" value: "x" }'
        ' output_map { key: "y" value: "m" } }\n'
        ' step { model_name: "double" model_version: -1 input_map { key: "x" value: "m" }'
        ' output_map { key: "output" value: "y" } }\n}\n'
    )
    with conch.Server(tmp_path, functions=[double]) as server:
        np.testing.assert_array_equal(server.model("both").infer({"x": [[1, 2]]})["y"], [[4.0, 6.0]])
