"""Ragged batches: what is made of the requests' shapes, how models see them, and how answers are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper

from conch.backend.ragged import Ragged, read_ragged
from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from conch.types.tensor import Tensor, join_bytes, split_bytes, to_numpy
from support.onnx_models import Served, graph, serve
from support.requests import make_form, make_request

X = 'name: "m" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }'
XY = X + 'output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }'
SCATTERED = 'batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }'


def config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def made(kind: str, datatype: str = "INT32") -> str:
    return f'batch_input {{ kind: {kind} target_name: "n" data_type: TYPE_{datatype} source_input: "x" }}'


def ragged_of(text: str) -> Ragged:
    found = read_ragged(config(text), model_spec(config(text), 1))
    assert found is not None
    return found


def sized(*shape: int) -> InferRequest:
    count = int(np.prod(shape))
    form = make_form(
        shape[0] if shape else 1, shapes=(shape,), backend_shapes=(shape,), counts=(count,), sizes=(4 * count,)
    )
    return make_request(form, data=(np.arange(count, dtype="f4").tobytes(),))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [3, 8, 1]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [3, 11, 12]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 3, 11, 12]),
        ("BATCH_ITEM_SHAPE", [[3], [4], [4], [1]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [3, 4, 4, 1]),
    ],
)
@pytest.mark.parametrize("datatype", ["INT32", "FP32"])
def test_kinds_of_batch_input(kind: str, expected: list[Any], datatype: str) -> None:
    """Counts are one per request, item shapes one per row and without the batch dimension."""
    array = ragged_of(XY + made(kind, datatype)).make([sized(1, 3), sized(2, 4), sized(1, 1)])["n"]
    assert array.tolist() == expected
    assert array.dtype == dtype.BY_NAME[datatype].numpy


def test_flattened_item_shapes() -> None:
    """Several dimensions stand side by side, or one after another when flattened."""
    text = XY.replace("dims: [ -1 ] allow", "dims: [ -1, -1 ] allow")
    requests = [sized(2, 3, 1), sized(1, 2, 2)]
    assert ragged_of(text + made("BATCH_ITEM_SHAPE")).make(requests)["n"].tolist() == [[3, 1], [3, 1], [2, 2]]
    assert ragged_of(text + made("BATCH_ITEM_SHAPE_FLATTEN")).make(requests)["n"].tolist() == [3, 1, 3, 1, 2, 2]


def test_largest_count_as_shape() -> None:
    """The tensor is as long as the largest request; what is in it has no meaning."""
    array = ragged_of(XY + made("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE")).make([sized(1, 3), sized(2, 4)])["n"]
    assert array.shape == (8,)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=5), st.booleans())
def test_each_request_gets_what_has_its_inputs_shape(shapes: list[tuple[int, int]], strings: bool) -> None:
    """A scattered output is cut by the source input's shapes, in the order of the requests, whatever its type."""
    kind = "STRING" if strings else "FP32"
    text = XY.replace('output { name: "y" data_type: TYPE_FP32', f'output {{ name: "y" data_type: TYPE_{kind}')
    spec = model_spec(config(text + SCATTERED), 1)
    requests = [sized(*shape) for shape in shapes]
    total = sum(rows * size for rows, size in shapes)
    values = [str(n).encode() * (n % 3) for n in range(total)]
    data = join_bytes(values) if strings else np.arange(total, dtype="f4").tobytes()
    tensors = ragged_of(text + SCATTERED).scatter(spec, spec.outputs[0], requests, data)
    assert [tensor.shape for tensor in tensors] == shapes
    joined = [element for tensor in tensors for element in elements(tensor)]
    assert joined == (values if strings else list(range(total)))


def elements(tensor: Tensor) -> list[Any]:
    if tensor.datatype is dtype.BYTES:
        return split_bytes(tensor.data)
    return to_numpy(tensor.datatype, tensor.shape, tensor.data).ravel().tolist()  # type: ignore[no-any-return]


def test_output_with_other_elements_than_its_input_is_an_error() -> None:
    """Too few or too many elements cannot be shared out: the error says how many were expected."""
    spec = model_spec(config(XY + SCATTERED), 1)
    with pytest.raises(InferError, match="output 'y' of model 'm' has 4 elements, expected 3") as caught:
        ragged_of(XY + SCATTERED).scatter(spec, spec.outputs[0], [sized(1, 3)], bytes(16))
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            XY + 'batch_input { data_type: TYPE_INT32 source_input: "x" }',
            "batch input kind 'BATCH_ELEMENT_COUNT' has no 'target_name' for m",
        ),
        (
            XY.replace("max_batch_size: 8", "") + made("BATCH_ITEM_SHAPE"),
            "batch input kind 'BATCH_ITEM_SHAPE' needs a batch dimension for m",
        ),
        (
            XY.replace("allow_ragged_batch", "optional: true allow_ragged_batch") + SCATTERED,
            "batch output has the optional source input 'x' for m",
        ),
        (
            X + 'output { name: "y" data_type: TYPE_FP32 dims: [ 2, -1 ] }' + SCATTERED,
            (
                "batch output 'y' has dims [2, -1], expected sizes other than -1 beyond the 1 dimensions of its source "
                "input 'x' for m"
            ),
        ),
    ],
)
def test_what_no_batch_can_satisfy_is_refused(text: str, message: str) -> None:
    """The load fails and says what is missing."""
    with pytest.raises(InferError) as caught:
        ragged_of(text)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


def doubled() -> ModelProto:
    """`y` is twice `x`, which is one-dimensional; `seen` is `n`, a batch input."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["n"], ["seen"])]
    open_end = ["elements"]
    return graph(
        nodes,
        {"x": (dtype.FP32, open_end), "n": (dtype.INT32, ["requests"])},
        {"y": (dtype.FP32, open_end), "seen": (dtype.INT32, ["requests"])},
    )


SEEN = 'output { name: "seen" data_type: TYPE_INT32 dims: [ 1 ] reshape { shape: [ ] } }'


def doubling(directory: Path) -> Served:
    return serve(directory, doubled(), config(XY + SEEN + made("BATCH_ACCUMULATED_ELEMENT_COUNT") + SCATTERED))


def test_onnx_models_see_one_row_of_elements(tmp_path: Path) -> None:
    """Requests of different lengths run as one; each gets its own elements and its own count back."""
    served = doubling(tmp_path)
    sent = [np.arange(size, dtype="f4").reshape(1, size) for size in (3, 1, 0, 4)]
    answers = served.run(*[served.request({"x": array}) for array in sent])
    assert served.stats.executions == 1
    for answer, array, total in zip(answers, sent, (3, 4, 4, 8), strict=True):
        assert isinstance(answer, dict), answer
        assert answer["y"].shape == array.shape
        np.testing.assert_array_equal(to_numpy(dtype.FP32, array.shape, answer["y"].data), array * 2)
        assert elements(answer["seen"]) == [total]


def test_onnx_one_request_alone_is_flattened_too(tmp_path: Path) -> None:
    """A batch of one looks to the model as any other."""
    served = doubling(tmp_path)
    (answer,) = served.run(served.request({"x": np.ones((1, 5), "f4")}))
    assert isinstance(answer, dict), answer
    assert answer["y"].shape == (1, 5)
