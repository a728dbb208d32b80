"""Running TorchScript: every type, form of input and output, and what goes wrong."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conch.backend import portions
from conch.backend.api import Placement
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import Code, InferError
from conch.types.tensor import Tensor, to_numpy

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'conch[torch]'")

from support.onnx_models import Served  # noqa: E402
from support.torch_models import add_sub, script, serve  # noqa: E402

ADD_SUB = """
  max_batch_size: 8
  input { name: "a" data_type: TYPE_FP32 dims: 2 }
  input { name: "b" data_type: TYPE_FP32 dims: 2 }
  output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }
  output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: 2 }"""
ONE, TWO = np.array([[5, 6]], np.float32), np.array([[1, 2]], np.float32)


def values(tensor: Tensor) -> np.ndarray[Any, Any]:
    return to_numpy(tensor.datatype, tensor.shape, tensor.data)


def ask(served: Served, **inputs: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    answer = served.run(served.request(inputs))[0]
    assert isinstance(answer, dict), answer
    return answer


def refused(served: Served, **inputs: np.ndarray[Any, Any]) -> InferError:
    answer = served.run(served.request(inputs))[0]
    assert isinstance(answer, InferError)
    return answer


class Same(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Strings(torch.nn.Module):
    def forward(self, words: list[str], x: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        return [word + "!" for word in words], x + len(words)


class Dictionary(torch.nn.Module):
    def forward(self, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": named["a"] + named["b"], "difference": named["a"] - named["b"]}


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


class Remembering(torch.nn.Module):
    """Returns its own buffer, which it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total


class Greedy(torch.nn.Module):
    """Changes its input in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


class Optional(torch.nn.Module):
    def forward(self, x: torch.Tensor, factor: torch.Tensor | None = None) -> torch.Tensor:
        return x * 10 if factor is None else x * factor


class Scalar(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


def one(datatype: DataType, batch: int = 8, dims: int = 2) -> str:
    return f"""
      max_batch_size: {batch}
      input {{ name: "x" data_type: {datatype.config_name} dims: {dims} }}
      output {{ name: "y" data_type: {datatype.config_name} dims: {dims} }}"""


def test_batches_run_in_portions_where_that_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it always does: once eight rows are known to cost something, they run as smaller runs, and all are right."""
    monkeypatch.setattr(portions, "WORTH_NS", 0)
    monkeypatch.setattr(portions, "_BETTER", 1e9)
    served = serve(tmp_path, script(add_sub()), ADD_SUB + " dynamic_batching { }")
    for turn in range(40):
        sent = [np.array([[turn, number]], np.float32) for number in range(8)]
        answers = served.run(*[served.request({"a": each, "b": each}) for each in sent])
        for answer, each in zip(answers, sent, strict=True):
            assert isinstance(answer, dict), answer
            assert values(answer["OUTPUT__0"]).tolist() == (2 * each).tolist()
    assert served.stats.inferences == 320
    assert served.stats.executions > 60


@pytest.mark.parametrize("datatype", [each for each in dtype.ALL if each is not dtype.BYTES], ids=str)
@pytest.mark.parametrize("rows", [(3,), (1, 2), (0, 2)], ids=str)
def test_every_type_comes_back_as_it_went_in(tmp_path: Path, datatype: DataType, rows: tuple[int, ...]) -> None:
    """Each request of a batch gets exactly its own rows, in every datatype that PyTorch has."""
    served = serve(tmp_path, script(Same()), one(datatype))
    count = [np.arange(2 * n).reshape(n, 2) for n in rows]
    sent = [
        each.astype(ml_dtypes.bfloat16).view(np.uint16) if datatype is dtype.BF16 else each.astype(datatype.numpy)
        for each in count
    ]
    for answer, array in zip(served.run(*[served.request({"x": each}) for each in sent]), sent, strict=True):
        assert isinstance(answer, dict), answer
        assert answer["y"].datatype is datatype
        np.testing.assert_array_equal(values(answer["y"]), array)


@pytest.mark.parametrize(
    ("first", "second"), [("a", "b"), ("INPUT__0", "INPUT__1"), ("q__0", "r__1"), ("left", "right")]
)
def test_inputs_have_the_arguments_names_or_numbers_or_their_order(tmp_path: Path, first: str, second: str) -> None:
    """Triton's three ways to name inputs lead to the same arguments."""
    text = ADD_SUB.replace('"a"', f'"{first}"').replace('"b"', f'"{second}"')
    answer = ask(serve(tmp_path, script(add_sub()), text), **{first: ONE, second: TWO})
    assert values(answer["OUTPUT__0"]).tolist() == [[6, 8]]
    assert values(answer["OUTPUT__1"]).tolist() == [[4, 4]]


def test_names_go_before_order(tmp_path: Path) -> None:
    """The order of the config does not matter where names or numbers say which argument is meant."""
    text = """max_batch_size: 8
      input { name: "INPUT__1" data_type: TYPE_FP32 dims: 2 }
      input { name: "INPUT__0" data_type: TYPE_FP32 dims: 2 }
      output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: 2 }"""
    answer = ask(serve(tmp_path, script(add_sub()), text), INPUT__0=ONE, INPUT__1=TWO)
    assert {name: values(each).tolist() for name, each in answer.items()} == {"OUTPUT__1": [[4, 4]]}


def test_only_wanted_outputs_are_answered(tmp_path: Path) -> None:
    """Each request of a batch gets the outputs that it asked for."""
    served = serve(tmp_path, script(add_sub()), ADD_SUB)
    inputs = {"a": ONE, "b": TWO}
    first, second = served.run(served.request(inputs, ("OUTPUT__1",)), served.request(inputs))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (list(first), list(second)) == (["OUTPUT__1"], ["OUTPUT__0", "OUTPUT__1"])


def test_dictionaries_go_in_and_out_by_their_keys(tmp_path: Path) -> None:
    """A forward that takes one dictionary gets the inputs under their names; one that returns one is asked by key."""
    text = ADD_SUB.replace("OUTPUT__0", "difference").replace("OUTPUT__1", "sum")
    answer = ask(serve(tmp_path, script(Dictionary().eval()), text), a=ONE, b=TWO)
    assert values(answer["sum"]).tolist() == [[6, 8]]
    assert values(answer["difference"]).tolist() == [[4, 4]]


def test_strings_are_lists_of_str(tmp_path: Path) -> None:
    """TYPE_STRING tensors of one dimension are List[str] for the model, whatever bytes are in them."""
    text = """
      input { name: "words" data_type: TYPE_STRING dims: -1 }
      input { name: "x" data_type: TYPE_INT64 dims: 1 }
      output { name: "OUTPUT__0" data_type: TYPE_STRING dims: -1 }
      output { name: "OUTPUT__1" data_type: TYPE_INT64 dims: 1 }"""
    served = serve(tmp_path, script(Strings().eval()), text)
    answer = ask(served, words=np.array([b"a", "é".encode()], dtype=object), x=np.array([40]))
    assert list(values(answer["OUTPUT__0"])) == [b"a!", "é!".encode()]
    assert values(answer["OUTPUT__1"]).tolist() == [42]


def test_batches_of_strings_have_one_per_row(tmp_path: Path) -> None:
    """With batching a string input is one element per row, and each request gets its own."""
    text = """max_batch_size: 4
      input { name: "words" data_type: TYPE_STRING dims: 1 reshape { shape: [] } }
      input { name: "x" data_type: TYPE_INT64 dims: 1 }
      output { name: "OUTPUT__0" data_type: TYPE_STRING dims: 1 reshape { shape: [] } }"""
    served = serve(tmp_path, script(Strings().eval()), text)
    words = [np.array([[b"a"], [b"b"]], dtype=object), np.array([[b"c"]], dtype=object)]
    answers = served.run(*[served.request({"words": w, "x": np.zeros((len(w), 1), np.int64)}) for w in words])
    assert [values(each["OUTPUT__0"]).tolist() for each in answers if isinstance(each, dict)] == [
        [[b"a!"], [b"b!"]],
        [[b"c!"]],
    ]


def test_optional_arguments_may_be_left_out(tmp_path: Path) -> None:
    """An argument with a default need not be an input; as an optional input a request may leave it out."""
    text = """
      input { name: "x" data_type: TYPE_FP32 dims: 2 }
      input { name: "factor" data_type: TYPE_FP32 dims: 2 optional: true }
      output { name: "y" data_type: TYPE_FP32 dims: 2 }"""
    served = serve(tmp_path, script(Optional().eval()), text)
    x = np.array([1, 2], np.float32)
    assert values(ask(served, x=x)["y"]).tolist() == [10, 20]
    assert values(ask(served, x=x, factor=np.array([2, 3], np.float32))["y"]).tolist() == [2, 6]


def test_requests_bytes_are_not_changed(tmp_path: Path) -> None:
    """A model that writes into its input gets a copy: the bytes may be another model's input too."""
    served = serve(tmp_path, script(Greedy()), one(dtype.FP32))
    sent = np.array([[1, 2]], np.float32)
    request = served.request({"x": sent})
    request.data = (bytearray(sent.tobytes()),)
    answer = served.run(request)[0]
    assert isinstance(answer, dict)
    assert values(answer["y"]).tolist() == [[2, 3]]
    assert bytes(request.data[0]) == sent.tobytes()


def test_answers_do_not_change_after_they_are_given(tmp_path: Path) -> None:
    """A model that returns what it remembers returns a copy of it."""
    served = serve(tmp_path, script(Remembering().eval()), one(dtype.FP32))
    first = ask(served, x=ONE)
    ask(served, x=ONE)
    assert values(first["y"]).tolist() == [[5, 6]]


def test_outputs_are_not_copied(tmp_path: Path) -> None:
    """A single request's output bytes are a view of the tensor's own memory."""
    assert isinstance(ask(serve(tmp_path, script(add_sub()), ADD_SUB), a=ONE, b=TWO)["OUTPUT__0"].data, memoryview)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_bytes_may_lie_anywhere(tmp_path: Path, offset: int) -> None:
    """Tensor bytes that do not begin at a multiple of their element size give the same answer."""
    served = serve(tmp_path, script(Same()), one(dtype.FP64))
    sent = np.arange(2, dtype=np.float64)[None]
    request = served.request({"x": sent})
    request.data = (memoryview(bytes(offset) + sent.tobytes())[offset:],)
    answer = served.run(request)[0]
    assert isinstance(answer, dict)
    assert values(answer["y"]).tolist() == sent.tolist()


def test_models_with_state_get_one_instance(tmp_path: Path) -> None:
    """Where a module changes its own values and the config gives no number, there is one instance, as in Triton."""
    served = serve(tmp_path, script(Counter().eval()), one(dtype.FP32))
    assert [group.count for group in served.config.instance_group] == [1]
    assert [values(ask(served, x=np.zeros((1, 2), np.float32))["y"]).tolist() for _ in range(2)] == [[[1, 1]], [[2, 2]]]


def test_threads_are_each_instances_own(tmp_path: Path) -> None:
    """INTRA_OP_THREAD_COUNT holds for the threads of one instance, without it an instance has its share of the CPUs."""
    found: dict[str, int] = {}

    class Asks:
        def __init__(self, served: Served, name: str) -> None:
            self.served, self.name = served, name

        def __call__(self) -> None:
            ask(self.served, a=ONE, b=TWO)
            found[self.name] = torch.get_num_threads()

    parameter = 'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "3" } }'
    place = Placement("m_0_0", "CPU", instances=2)
    told = serve(tmp_path / "told", script(add_sub()), ADD_SUB + parameter, placement=place)
    share = serve(tmp_path / "share", script(add_sub()), ADD_SUB, placement=place)
    for name, served in (("told", told), ("share", share)):
        thread = threading.Thread(target=Asks(served, name))
        thread.start()
        thread.join()
    assert found == {"told": 3, "share": 1}


def test_scalar_outputs_are_refused(tmp_path: Path) -> None:
    """An output without dimensions is an error with Triton's text."""
    error = refused(serve(tmp_path, script(Scalar()), one(dtype.FP32)), x=ONE)
    assert (error.code, error.message) == (Code.INVALID_ARG, "output 'y' is a scalar which is not supported.")


def test_output_types_are_compared(tmp_path: Path) -> None:
    """An output of another type than the config's is an error with Triton's text."""
    text = one(dtype.FP32).replace('"y" data_type: TYPE_FP32', '"y" data_type: TYPE_INT32')
    error = refused(serve(tmp_path, script(Same()), text), x=ONE)
    expected = "configuration expects datatype TYPE_INT32 for output 'y', model provides TYPE_FP32"
    assert (error.code, error.message) == (Code.INVALID_ARG, expected)


def test_outputs_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """An output beyond the model's results is an error with Triton's text."""
    error = refused(serve(tmp_path, script(add_sub()), ADD_SUB.replace("OUTPUT__1", "OUTPUT__2")), a=ONE, b=TWO)
    assert error.message == (
        "The output OUTPUT__2 in the model configuration refers to an output index which doesn't exist. "
        "This model has 2 outputs"
    )


def test_errors_of_the_model_reach_the_client(tmp_path: Path) -> None:
    """What the model raises is INTERNAL, with Triton's prefix, and the next request is answered."""
    text = ADD_SUB.replace('"b" data_type: TYPE_FP32 dims: 2', '"b" data_type: TYPE_FP32 dims: -1')
    served = serve(tmp_path, script(add_sub()), text)
    error = refused(served, a=ONE, b=np.zeros((1, 3), np.float32))
    assert error.code is Code.INTERNAL
    assert error.message.startswith("PyTorch execute failure: ")
    assert values(ask(served, a=ONE, b=TWO)["OUTPUT__0"]).tolist() == [[6, 8]]


class Number(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return x, 5


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    """In Triton's words."""
    text = one(dtype.FP32) + ' output { name: "z" data_type: TYPE_FP32 dims: 2 }'
    error = refused(serve(tmp_path, script(Number()), text), x=ONE)
    assert error.message == "output 'z' must be of type Tensor or List[str]."


def test_memory_of_gpus_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an instance and when a model is closed; PyTorch would keep it for models of its own."""
    emptied: list[int] = []
    served = serve(tmp_path, script(Same()), one(dtype.FP32))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    served.instance.close()
    assert emptied == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    served.instance.close()
    assert emptied == [1]
