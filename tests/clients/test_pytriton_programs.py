"""Programs in PyTriton's way run when `pytriton` is `conch.pytriton` in their imports."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as grpc_client
from tritonclient import http as http_client

from conch.pytriton import Request
from conch.pytriton.decorators import (
    ConstantPadder,
    batch,
    fill_optionals,
    first_value,
    group_by_keys,
    group_by_values,
    pad_batch,
    sample,
    triton_context,
)
from conch.pytriton.exceptions import (
    PyTritonBadParameterError,
    PyTritonInvalidOperationError,
    PyTritonRuntimeError,
    PyTritonUnrecoverableError,
    PyTritonValidationError,
)
from conch.pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from conch.pytriton.program import CallableProgram
from conch.pytriton.triton import Triton, TritonConfig
from conch.types.error import InferError
from support.program import running
from support.server import free_ports

FLOAT = Tensor(dtype=np.float32, shape=(-1,))

PROGRAM = """
import sys
import numpy as np
from conch.pytriton.decorators import batch
from conch.pytriton.model_config import ModelConfig, Tensor
from conch.pytriton.triton import Triton, TritonConfig

weights = np.arange(6, dtype=np.float32).reshape(2, 3)


@batch
def infer_fn(**inputs: np.ndarray):
    (features,) = inputs.values()
    return [features @ weights]


with Triton(config=TritonConfig(http_port=int(sys.argv[1]), allow_grpc=False, allow_metrics=False)) as triton:
    triton.bind(
        model_name="Linear",
        infer_func=infer_fn,
        inputs=[Tensor(dtype=np.float32, shape=(-1,))],
        outputs=[Tensor(dtype=np.float32, shape=(-1,))],
        config=ModelConfig(max_batch_size=128),
    )
    triton.serve()
print("ended")
"""


def config(**more: Any) -> TritonConfig:
    http, grpc = free_ports(2)
    return TritonConfig(
        http_port=http, grpc_port=grpc, http_address="127.0.0.1", grpc_address="127.0.0.1", allow_metrics=False, **more
    )


def ask(triton: Triton, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    given = []
    for name, array in inputs.items():
        kind = {"f": f"FP{8 * array.dtype.itemsize}", "i": f"INT{8 * array.dtype.itemsize}"}.get(array.dtype.kind)
        tensor = http_client.InferInput(name, list(array.shape), kind or "BYTES")
        tensor.set_data_from_numpy(array)
        given.append(tensor)
    with http_client.InferenceServerClient(f"127.0.0.1:{triton.http_port}") as client:
        found = client.infer(model, given)
        return {each["name"]: found.as_numpy(each["name"]) for each in found.get_response()["outputs"]}


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_a_program_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    """The quick start as a program of its own: it answers, and SIGTERM is an orderly end."""
    (port,) = free_ports(1)
    with (
        running(tmp_path, PROGRAM, port) as program,
        http_client.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        program.until(lambda: client.is_model_ready("Linear"))
        given = http_client.InferInput("INPUT_1", [2, 2], "FP32")
        given.set_data_from_numpy(floats([1, 0], [0, 1]))
        np.testing.assert_array_equal(client.infer("Linear", [given]).as_numpy("OUTPUT_1"), [[0, 1, 2], [3, 4, 5]])
        assert program.ended() == (0, "ended\n", "")


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    with Triton(config=config()) as triton:
        _bind(triton)
        triton.run()
        yield triton


class Model:
    """Methods are callables too."""

    def __init__(self, factor: float) -> None:
        self.factor = np.float32(factor)

    @batch
    def infer(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"y": x * self.factor}


@sample
def upper(text: np.ndarray, suffix: np.ndarray | None = None) -> list[np.ndarray]:
    end = b"" if suffix is None else suffix[0]
    return [np.array([each.upper() + end for each in text], dtype=object)]


@fill_optionals(scale=np.array([10.0], dtype=np.float32))
@group_by_keys
@batch
@first_value("scale")
def scaled(x: np.ndarray, scale: np.float32) -> list[np.ndarray]:
    assert np.isscalar(scale)
    return [x * scale]


@batch
@group_by_values("k")
def by_value(x: np.ndarray, k: np.ndarray) -> dict[str, np.ndarray]:
    assert len(np.unique(k)) == 1
    return {"y": x + k.astype(np.float32), "rows": np.full((len(x), 1), len(x), np.int64)}


@batch
@pad_batch
def padded(x: np.ndarray) -> list[np.ndarray]:
    return [np.full((len(x), 1), len(x), np.int64)]


def raw(requests: list[Request]) -> list[dict[str, np.ndarray]]:
    return [{"n": np.array([[len(requests), request.parameters.get("k", -1)]])[:, :1]} for request in requests]


@batch
@triton_context
def named(x: np.ndarray, triton_context: Any) -> list[np.ndarray]:
    name = triton_context.model_config.model_name.encode()
    return [np.array([[name]] * len(x), dtype=object)]


async def waits(requests: list[Request]) -> list[dict[str, np.ndarray]]:
    await asyncio.sleep(0.01)
    return [{"y": request["x"] * 2} for request in requests]


def counts(requests: list[Request]) -> Iterator[list[dict[str, np.ndarray]]]:
    for number in range(3):
        yield [{"y": request["x"] + number} for request in requests]


def _bind(triton: Triton) -> None:
    x, y = Tensor((-1,), np.float32, "x"), Tensor((-1,), np.float32, "y")
    text = Tensor((-1,), bytes, "text")
    number = Tensor((1,), np.int64, "n")
    batches = ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=1000))
    triton.bind("method", Model(3).infer, [x], [y], config=batches)
    triton.bind("several", [Model(1).infer, Model(1).infer], [x], [y], config=batches)
    suffix = Tensor((1,), bytes, "suffix", optional=True)
    triton.bind("upper", upper, [text, suffix], [Tensor((-1,), bytes)], config=ModelConfig(batching=False))
    triton.bind("scaled", scaled, [x, Tensor((1,), np.float32, "scale", optional=True)], [y], config=batches)
    rows = Tensor((1,), np.int64, "rows")
    triton.bind("by_value", by_value, [x, Tensor((1,), np.int64, "k")], [y, rows], config=batches)
    preferred = ModelConfig(max_batch_size=8, batcher=DynamicBatcher(preferred_batch_size=[4]))
    triton.bind("padded", padded, [x], [number], config=preferred)
    triton.bind("raw", raw, [x], [number], config=batches)
    triton.bind("named", named, [x], [Tensor((1,), bytes, "name")])
    triton.bind("waits", waits, [x], [y], config=batches)
    triton.bind("counts", counts, [x], [y], config=ModelConfig(decoupled=True))


def test_functions_and_methods_answer_batches(triton: Triton) -> None:
    """`@batch` gives arrays with rows first; outputs by name or in order."""
    np.testing.assert_array_equal(ask(triton, "method", x=floats([1, 2], [3, 4]))["y"], [[3, 6], [9, 12]])
    np.testing.assert_array_equal(ask(triton, "several", x=floats([1]))["y"], [[1]])


def test_samples_and_texts(triton: Triton) -> None:
    """`@sample` for models that do not batch; BYTES are objects of bytes; optional inputs may be left out."""
    text = np.array([b"a", "é".encode()], dtype=object)
    assert ask(triton, "upper", text=text)["OUTPUT_1"].tolist() == [b"A", "é".encode().upper()]
    found = ask(triton, "upper", text=text[:1], suffix=np.array([b"!"], dtype=object))
    assert found["OUTPUT_1"].tolist() == [b"A!"]


def test_optional_inputs_get_their_defaults(triton: Triton) -> None:
    """`@fill_optionals`, `@group_by_keys` and `@first_value` above and below `@batch`."""
    np.testing.assert_array_equal(ask(triton, "scaled", x=floats([1, 2]))["y"], [[10, 20]])
    np.testing.assert_array_equal(ask(triton, "scaled", x=floats([1]), scale=floats([3]))["y"], [[3]])
    with pytest.raises(Exception, match="the values of input 'scale' in a batch are not equal"):
        ask(triton, "scaled", x=floats([1], [1]), scale=floats([3], [4]))


def test_rows_are_grouped_by_value(triton: Triton) -> None:
    """`@group_by_values`: rows with equal values run together and come back in order."""
    found = ask(triton, "by_value", x=floats([1], [2], [3]), k=np.array([[5], [6], [5]]))
    assert found["y"].tolist() == [[6], [8], [8]]
    assert found["rows"].tolist() == [[2], [1], [2]]


def test_batches_are_padded(triton: Triton) -> None:
    """`@pad_batch`: up to the next preferred size, and the outputs are cut again."""
    assert ask(triton, "padded", x=floats([1], [2], [3]))["n"].tolist() == [[4], [4], [4]]
    assert ask(triton, "padded", x=np.ones((5, 1), np.float32))["n"].tolist() == [[8]] * 5


def test_callables_without_decorators_get_requests(triton: Triton) -> None:
    """A list of requests with their parameters; a coroutine function; the model's config by `@triton_context`."""
    assert ask(triton, "raw", x=floats([1]))["n"].shape == (1, 1)
    np.testing.assert_array_equal(ask(triton, "waits", x=floats([2]))["y"], [[4]])
    assert ask(triton, "named", x=floats([1], [2]))["name"].tolist() == [[b"named"]] * 2


def test_decoupled_models_stream(triton: Triton) -> None:
    """A generator's values are responses."""
    found: list[Any] = []
    ended = threading.Event()

    def heard(result: Any, error: Any) -> None:
        found.append(error or result.as_numpy("y").tolist())
        if len(found) == 3:
            ended.set()

    with grpc_client.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        client.start_stream(heard)
        given = grpc_client.InferInput("x", [1, 1], "FP32")
        given.set_data_from_numpy(floats([1]))
        client.async_stream_infer("counts", [given])
        assert ended.wait(60)
        client.stop_stream()
    assert found == [[[1.0]], [[2.0]], [[3.0]]]


def test_models_can_be_bound_while_it_serves(triton: Triton) -> None:
    """A later `bind` is served at once; a name is bound once."""
    triton.bind("late", Model(5).infer, [Tensor((1,), np.float32, "x")], [Tensor((1,), np.float32, "y")])
    np.testing.assert_array_equal(ask(triton, "late", x=floats([1]))["y"], [[5]])
    with pytest.raises(PyTritonInvalidOperationError, match="'late' is bound already"):
        triton.bind("late", Model(5).infer, [FLOAT], [FLOAT])
    assert triton.is_alive()


def test_a_binding_that_cannot_be_loaded_frees_its_name(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one of that name is taken."""

    def fails(self: CallableProgram, placement: object) -> None:
        raise RuntimeError("no weights")

    tensors = [Tensor((1,), np.float32, "x")], [Tensor((1,), np.float32, "y")]
    with monkeypatch.context() as patched:
        patched.setattr(CallableProgram, "open", fails)
        with pytest.raises(InferError, match="no weights"):
            triton.bind("again", Model(6).infer, *tensors)
    triton.bind("again", Model(6).infer, *tensors)
    np.testing.assert_array_equal(ask(triton, "again", x=floats([1]))["y"], [[6]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model_name": "a/b"}, "the model's name is 'a/b', expected letters"),
        ({"model_version": 2}, "functions have the version 1 alone"),
        ({"inputs": [Tensor((1,), np.complex64)]}, "complex64.* is no tensor's type"),
        ({"outputs": [Tensor((1,), np.float32, "y")] * 2}, "names of outputs must differ"),
    ],
)
def test_bindings_that_make_no_sense_are_refused(arguments: dict[str, Any], said: str) -> None:
    """One sentence each, before anything is served."""
    usual = {"model_name": "m", "infer_func": raw, "inputs": [FLOAT], "outputs": [FLOAT]}
    with pytest.raises(PyTritonValidationError, match=said):
        Triton().bind(**{**usual, **arguments})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda requests: [], "was given 1 requests and gave 0"),
        (lambda requests: [floats([1])], "gave ndarray for a request, expected a dict"),
        (lambda requests: [{"OUTPUT_1": floats([1], [2])}], r"shape \[2, 1\], expected \[1, -1\]"),
        (lambda requests: ([{}] for _ in requests), "is not decoupled: say ModelConfig"),
        (batch(lambda **inputs: [inputs["INPUT_1"][:0]]), "another number of rows than the batch of 1"),
        (batch(lambda **inputs: [*inputs.values()] * 2), "the function gave 2 outputs, the model has 1"),
        (batch(lambda **inputs: inputs["INPUT_1"]), "expected a dict or a list of outputs, found ndarray"),
    ],
)
def test_what_callables_do_wrong_is_the_requests_error(triton: Triton, function: Any, said: str) -> None:
    """A wrong number of results, wrong kinds and shapes: the client hears which."""
    name = f"wrong{abs(hash(said))}"
    triton.bind(name, function, [FLOAT], [FLOAT])
    with pytest.raises(Exception, match=said):
        ask(triton, name, INPUT_1=floats([1]))


def test_a_model_that_cannot_go_on_ends_the_server() -> None:
    """PyTritonUnrecoverableError: the request is answered and `serve` returns."""

    def lost(requests: list[Request]) -> None:
        raise PyTritonUnrecoverableError("the device is gone")

    with Triton(config=config()) as triton:
        triton.bind("lost", lost, [FLOAT], [FLOAT])
        triton.run()
        serving = threading.Thread(target=triton.serve)
        serving.start()
        with pytest.raises(Exception, match="the device is gone"):
            ask(triton, "lost", INPUT_1=floats([1]))
        serving.join(60)
        assert not serving.is_alive()
        assert triton.stop() is False


def test_configuration_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTRITON_TRITON_CONFIG_*: what the program says wins."""
    (port,) = free_ports(1)
    monkeypatch.setenv("PYTRITON_TRITON_CONFIG_HTTP_PORT", str(port))
    monkeypatch.setenv("PYTRITON_TRITON_CONFIG_ALLOW_GRPC", "false")
    with Triton(config=TritonConfig(http_address="127.0.0.1", allow_metrics=False)) as triton:
        triton.bind("m", Model(1).infer, [Tensor((1,), np.float32, "x")], [Tensor((1,), np.float32, "y")])
        triton.run()
        assert (triton.http_port, triton.grpc_port) == (port, 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/m/ready", timeout=60) as answer:
            assert answer.status == 200


def test_decorators_need_a_bound_model() -> None:
    """Called by hand, `@first_value` says what is missing; wrong keys are refused where they are written."""
    with pytest.raises(PyTritonValidationError, match="the callable is not bound"):
        scaled([Request({"x": floats([1])})])
    with pytest.raises(PyTritonBadParameterError, match="'triton_context' is no input"):
        first_value("triton_context")
    with pytest.raises(PyTritonRuntimeError):
        raise PyTritonRuntimeError("x")


def test_outputs_of_several_batches_are_padded_alike() -> None:
    """`ConstantPadder`: equal shapes, filled with the constant; BYTES with empty ones."""
    found = ConstantPadder(7)([{"a": np.ones((1, 2))}, {"a": np.ones((2, 3)), "b": np.array([[b"x"]], dtype=object)}])
    assert found[0]["a"].tolist() == [[1, 1, 7]]
    assert found[1]["a"].shape == (2, 3)
    texts = ConstantPadder()([{"b": np.array([[b"x"]], dtype=object)}, {"b": np.array([[b"y", b"z"]], dtype=object)}])
    assert texts[0]["b"].tolist() == [[b"x", b""]]
