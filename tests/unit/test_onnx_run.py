"""Running ONNX models on ONNX Runtime: every type, shape and combination of outputs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from google.protobuf import text_format
from onnx import helper

from conch.backend import portions
from conch.backend.api import Placement
from conch.backend.batch import Batch
from conch.observe.stats import Reason
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import Code, InferError
from conch.types.tensor import Tensor, to_numpy
from support.onnx_models import Served, add_sub, chosen, graph, identity, scaled, serve


def config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def values(tensor: Tensor) -> np.ndarray[Any, Any]:
    return to_numpy(tensor.datatype, tensor.shape, tensor.data)


def ask(served: Served, **inputs: np.ndarray[Any, Any]) -> Any:
    """The outputs of one request (or its error)."""
    return served.run(served.request(inputs))[0]


def some(datatype: DataType, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Different, exactly representable values of the type."""
    count = np.arange(1, int(np.prod(shape)) + 1, dtype=np.int64).reshape(shape)
    if datatype is dtype.BYTES:
        return np.array([f"é{n}".encode() for n in count.ravel()] or [], dtype=object).reshape(shape)
    if datatype is dtype.BF16:
        return count.astype(ml_dtypes.bfloat16).view(np.uint16)
    return (count % 2 if datatype is dtype.BOOL else count).astype(datatype.numpy)


@pytest.mark.parametrize("datatype", dtype.ALL, ids=str)
@pytest.mark.parametrize("rows", [(3,), (1, 2), (0,), (0, 2)], ids=str)
def test_every_type_comes_back_as_it_went_in(tmp_path: Path, datatype: DataType, rows: tuple[int, ...]) -> None:
    """Each request of a batch gets exactly its own rows, in every datatype, also where there are none."""
    served = serve(tmp_path, identity(datatype))
    sent = [some(datatype, (count, 2)) for count in rows]
    answers = served.run(*[served.request({"x": each}) for each in sent])
    for answer, array in zip(answers, sent, strict=True):
        assert isinstance(answer, dict), answer
        assert answer["y"].datatype is datatype
        assert answer["y"].shape == array.shape
        np.testing.assert_array_equal(values(answer["y"]), array)


def test_bf16_is_computed(tmp_path: Path) -> None:
    """BF16 inputs reach the kernels as BF16: a cast to FP32 gives the values."""
    model = graph(
        [helper.make_node("Cast", ["x"], ["y"], to=1)],
        {"x": (dtype.BF16, ["n", 2])},
        {"y": (dtype.FP32, ["n", 2])},
    )
    sent = np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16)
    answer = ask(serve(tmp_path, model), x=sent.view(np.uint16))
    assert values(answer["y"]).tolist() == [[1.5, -2.0]]


def test_only_wanted_outputs_are_answered(tmp_path: Path) -> None:
    """Each request of a batch gets the outputs that it asked for, in the config's order; without a list, all."""
    served = serve(tmp_path, add_sub())
    a, b = np.array([[5, 6]], np.float32), np.array([[1, 2]], np.float32)
    batch = [
        served.request({"a": a, "b": b}, ("difference",)),
        served.request({"a": a, "b": b}, ("difference", "sum")),
    ]
    first, second = served.run(*batch)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert list(first) == ["difference"]
    assert list(second) == ["sum", "difference"]
    assert values(first["difference"]).tolist() == [[4, 4]]
    assert values(second["sum"]).tolist() == [[6, 8]]
    assert list(ask(served, a=a, b=b)) == ["sum", "difference"]


def test_batches_run_in_portions_where_that_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it always does: once four rows are known to cost something, they run as smaller runs, and all are right."""
    monkeypatch.setattr(portions, "WORTH_NS", 0)
    monkeypatch.setattr(portions, "_BETTER", 1e9)
    served = serve(tmp_path, add_sub(), config("max_batch_size: 4 dynamic_batching { }"))
    for turn in range(80):
        sent = [np.array([[turn, number]], np.float32) for number in range(4)]
        answers = served.run(*[served.request({"a": each, "b": each}) for each in sent])
        for answer, each in zip(answers, sent, strict=True):
            assert isinstance(answer, dict), answer
            assert values(answer["sum"]).tolist() == (2 * each).tolist()
    assert served.stats.inferences == 320
    assert served.stats.executions > 100


def test_optional_input_may_be_left_out(tmp_path: Path) -> None:
    """An ONNX input with an initializer is optional in a model that does not batch."""
    text = """
      input { name: "x" data_type: TYPE_FP32 dims: 2 }
      input { name: "factor" data_type: TYPE_FP32 dims: 2 optional: true }
      output { name: "y" data_type: TYPE_FP32 dims: 2 }"""
    served = serve(tmp_path, scaled(), config(text))
    x = np.array([1, 2], np.float32)
    assert values(ask(served, x=x)["y"]).tolist() == [10, 20]
    assert values(ask(served, x=x, factor=np.array([2, 3], np.float32))["y"]).tolist() == [2, 6]


@pytest.mark.parametrize("datatype", [dtype.FP32, dtype.BYTES, dtype.BF16], ids=str)
def test_scalars_are_one_element_for_clients(tmp_path: Path, datatype: DataType) -> None:
    """A scalar input or output of a model that does not batch has shape [1] for clients."""
    sent = some(datatype, (1,))
    answer = ask(serve(tmp_path, identity(datatype, [])), x=sent)
    assert answer["y"].shape == (1,)
    assert values(answer["y"]).tolist() == sent.tolist()


def test_batched_scalars_are_reshaped(tmp_path: Path) -> None:
    """A model over [batch] is offered as [batch, 1], for a batch of requests too."""
    served = serve(tmp_path, identity(dtype.INT32, ["batch"]))
    batch = [np.array([[1], [2]], np.int32), np.array([[3]], np.int32)]
    answers = served.run(*[served.request({"x": each}) for each in batch])
    assert [values(answer["y"]).tolist() for answer in answers if isinstance(answer, dict)] == [[[1], [2]], [[3]]]


def test_sizes_left_open_may_differ_between_batches(tmp_path: Path) -> None:
    """Dimensions of any size take any size."""
    served = serve(tmp_path, identity(dtype.FP32, ["batch", "n"]))
    for size in (1, 7, 0):
        answer = ask(served, x=np.ones((2, size), np.float32))
        assert answer["y"].shape == (2, size)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_bytes_may_lie_anywhere(tmp_path: Path, offset: int) -> None:
    """Tensor bytes that do not begin at a multiple of their element size give the same answer."""
    served = serve(tmp_path, identity(dtype.FP64, ["batch", 4]))
    sent = np.arange(4, dtype=np.float64)[None]
    request = served.request({"x": sent})
    request.data = (memoryview(bytes(offset) + sent.tobytes())[offset:],)
    answer = served.run(request)[0]
    assert isinstance(answer, dict)
    assert values(answer["y"]).tolist() == sent.tolist()


def test_outputs_are_not_copied(tmp_path: Path) -> None:
    """A single request's output bytes are a view of the runtime's own memory."""
    answer = ask(serve(tmp_path, identity()), x=np.ones((1, 2), np.float32))
    assert isinstance(answer["y"].data, memoryview)


def test_instances_share_a_session(tmp_path: Path) -> None:
    """Instances that share a session may run at the same time: each batch gets its own answers."""
    served = serve(tmp_path, add_sub(("batch", 64)), placement=Placement("m_0_0", "CPU", instances=2))
    wrong: list[int] = []

    def many(base: int) -> None:
        for step in range(200):
            a = np.full((2, 64), base + step, np.float32)
            answer = ask(served, a=a, b=a)
            if not (values(answer["sum"]) == 2 * a).all():
                wrong.append(base + step)

    threads = [threading.Thread(target=many, args=(base,)) for base in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bytes_that_are_no_tensor(tmp_path: Path) -> None:
    """Bytes that do not fit their shape are that request's error; nothing escapes, nobody else is hit."""
    served = serve(tmp_path, identity(dtype.FP32))
    short, whole = [served.request({"x": np.ones((1, 2), np.float32)}) for _ in range(2)]
    short.data = (b"1234",)
    first, second = served.run(short, whole)
    assert isinstance(first, InferError)
    assert first.code is Code.INVALID_ARG
    assert isinstance(second, dict)


def test_cancelled_requests_are_left_out(tmp_path: Path) -> None:
    """A request that nobody waits for is not computed; a batch of only such requests runs nothing."""
    served = serve(tmp_path, identity())
    gone, there = [served.request({"x": np.full((1, 2), n, np.float32)}) for n in (1, 2)]
    gone.cancelled = True
    first, second = served.run(gone, there)
    assert isinstance(first, InferError)
    assert first.code is Code.CANCELLED
    assert isinstance(second, dict)
    assert values(second["y"]).tolist() == [[2, 2]]
    last = served.request({"x": np.ones((1, 2), np.float32)})
    last.cancelled = True
    served.run(last)
    assert served.stats.executions == 1


def test_a_model_error_goes_to_every_request(tmp_path: Path) -> None:
    """What the model raises becomes Triton's `onnx runtime error` for all of the batch, and is counted."""
    served = serve(tmp_path, chosen())
    batch = [served.request({"x": np.array([[n]], np.int64)}) for n in (1, 9)]
    answers = served.run(*batch)
    for answer in answers:
        assert isinstance(answer, InferError)
        assert answer.code is Code.INTERNAL
        assert answer.message.startswith("onnx runtime error 2: Non-zero status code returned while running Gather")
    assert served.stats.failures[Reason.BACKEND] == 2
    assert served.stats.executions == 1
    assert values(ask(served, x=np.array([[2]], np.int64))["y"]).tolist() == [[4, 5]]


def test_a_lost_batch_dimension_is_an_error(tmp_path: Path) -> None:
    """An output without one row per row of the batch is refused with a text that says what came."""
    model = graph(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        {"x": (dtype.FP32, ["n", 2])},
        {"y": (dtype.FP32, ["m", 2])},
    )
    served = serve(tmp_path, model)
    batch = [served.request({"x": np.ones((1, 2), np.float32)}) for _ in range(2)]
    for answer in served.run(*batch):
        assert isinstance(answer, InferError)
        assert answer.code is Code.INTERNAL
        assert "has shape [4, 2], expected 2 rows" in answer.message


def test_output_of_another_rank_than_its_reshape(tmp_path: Path) -> None:
    """An output that does not fit the config's reshape is an error of the model, not of the server."""
    text = """
      input { name: "x" data_type: TYPE_FP32 dims: 4 }
      input { name: "shape" data_type: TYPE_INT64 dims: -1 }
      output { name: "y" data_type: TYPE_FP32 dims: [ -1, -1, 1 ] reshape: { shape: [ -1, -1 ] } }"""
    model = graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (dtype.FP32, [4]), "shape": (dtype.INT64, ["rank"])},
        {"y": (dtype.FP32, ["n", "m"])},
    )
    served = serve(tmp_path, model, config(text))
    x = np.ones(4, np.float32)
    assert ask(served, x=x, shape=np.array([2, 2]))["y"].shape == (2, 2, 1)
    answer = ask(served, x=x, shape=np.array([4]))
    assert isinstance(answer, InferError)
    assert answer.code is Code.INTERNAL
    assert "has shape [4], the model configuration's reshape expects [-1, -1]" in answer.message


class TestStrings:
    def test_utf8_and_nul(self, tmp_path: Path) -> None:
        """Text of any length passes, also with NUL bytes inside and at the end."""
        served = serve(tmp_path, identity(dtype.BYTES))
        sent = np.array([[b"a\0b\0", "snow ☃".encode()], [b"", b"x" * 70_000]], dtype=object)
        assert values(ask(served, x=sent)["y"]).tolist() == sent.tolist()

    def test_binary_input_of_one_length(self, tmp_path: Path) -> None:
        """A binary string reaches the model byte for byte where all elements have one length."""
        served = serve(tmp_path, _bytes_equal(b"\xff\xd8\xff"))
        assert values(ask(served, x=np.array([[b"\xff\xd8\xff"]], object))["y"]).tolist() == [[True]]

    def test_binary_input_of_other_lengths(self, tmp_path: Path) -> None:
        """Binary strings of different lengths are refused, naming the input and the element."""
        served = serve(tmp_path, identity(dtype.BYTES))
        answer = ask(served, x=np.array([[b"ok", b"\xff\xd8\xff"]], object))
        assert isinstance(answer, InferError)
        assert answer.code is Code.INVALID_ARG
        assert answer.message.startswith("element 1 of input 'x' is not UTF-8 text")

    def test_binary_neighbours_run_alone(self, tmp_path: Path) -> None:
        """One request's binary strings do not fail the requests that share its batch."""
        served = serve(tmp_path, identity(dtype.BYTES))
        bad = served.request({"x": np.array([[b"\xff", b"\xff\xfe"]], object)})
        good = served.request({"x": np.array([[b"fine", b"too"]], object)})
        first, second = served.run(bad, good)
        assert isinstance(first, InferError)
        assert isinstance(second, dict)
        assert values(second["y"]).tolist() == [[b"fine", b"too"]]

    def test_binary_output(self, tmp_path: Path) -> None:
        """A string output that is not UTF-8 is an error that says so."""
        served = serve(tmp_path, identity(dtype.BYTES))
        answer = ask(served, x=np.array([[b"\xff\xd8", b"\xff\xd9"]], object))
        assert isinstance(answer, InferError)
        assert answer.code is Code.INTERNAL
        assert "produced a string that is not UTF-8" in answer.message


def _bytes_equal(constant: bytes) -> Any:
    """`y` says whether `x` is `constant`."""
    table = np.array([constant], dtype=object)
    model = graph(
        [helper.make_node("Equal", ["x", "c"], ["y"])], {"x": (dtype.BYTES, ["n", 1])}, {"y": (dtype.BOOL, ["n", 1])}
    )
    model.graph.initializer.append(helper.make_tensor("c", 8, [1], list(table)))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 19))
    return model


def test_memory_that_runs_out_fails_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While inputs are gathered, too: the requests are answered and the instance's thread goes on."""
    served = serve(tmp_path, identity())
    batch = [served.request({"x": np.ones((1, 2), np.float32)}) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "gather", lambda *_: [0] * sys.maxsize)
        answers = served.run(*batch)
    assert [answer.code for answer in answers if isinstance(answer, InferError)] == [Code.INTERNAL] * 2
    assert values(ask(served, x=np.ones((1, 2), np.float32))["y"]).tolist() == [[1, 1]]
