"""How a whole-batch backend gathers inputs and shares out outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.batch import Batch
from conch.observe.stats import ModelStats, Reason
from conch.types.dtype import BYTES, FP32, DataType
from conch.types.error import Code, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.tensor import join_bytes
from support.requests import Recorder, make_form, make_request

X = TensorSpec("x", FP32, (2,))
SPEC = ModelSpec("m", 1, 8, (X,), (TensorSpec("y", FP32, (2,)),))


def make_batch(*rows: int, spec: ModelSpec = SPEC, **form: object) -> tuple[Batch, Recorder, ModelStats]:
    sink, stats = Recorder(), ModelStats()
    begin = np.cumsum([0, *rows])
    requests = [
        make_request(
            make_form(count, **form),
            sink=sink,
            data=(np.arange(start * 2, (start + count) * 2, dtype="f4").tobytes(),),
        )
        for start, count in zip(begin, rows, strict=False)
    ]
    return Batch(spec, requests, stats), sink, stats


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_each_request_gets_its_own_rows(rows: list[int]) -> None:
    """What is gathered from requests in order is shared out to them in the same order, row for row."""
    batch, sink, stats = make_batch(*rows)
    shape, data = batch.gather(0)
    batch.settle([(SPEC.outputs[0], shape, data)])
    assert shape == (sum(rows), 2)
    assert [bytes(response.outputs[0].data) for _, response, _ in sink.replies] == [r.data[0] for r in batch.requests]
    assert [response.outputs[0].shape for _, response, _ in sink.replies] == [(count, 2) for count in rows]
    assert (stats.inferences, stats.executions, stats.success.count) == (sum(rows), 1, len(rows))


@given(st.lists(st.lists(st.binary(max_size=9), min_size=2, max_size=2), min_size=1, max_size=5))
def test_string_outputs_are_cut_between_elements(strings: list[list[bytes]]) -> None:
    """BYTES rows differ in length: cuts fall on element boundaries."""
    spec = ModelSpec("m", 1, 8, (X,), (TensorSpec("s", BYTES, (2,)),))
    batch, sink, _ = make_batch(*[1] * len(strings), spec=spec)
    whole = join_bytes([text for row in strings for text in row])
    batch.settle([(spec.outputs[0], (len(strings), 2), whole)])
    assert [bytes(r.outputs[0].data) for _, r, _ in sink.replies] == [join_bytes(row) for row in strings]


def test_wrong_number_of_rows_fails_the_batch() -> None:
    """An output that lost the batch dimension is an error for every request, and says what was expected."""
    batch, sink, stats = make_batch(1, 2)
    batch.settle([(SPEC.outputs[0], (2, 2), bytes(16))])
    assert {error.code for _, error in sink.errors} == {Code.INTERNAL}
    assert "expected 3 rows" in sink.errors[0][1].message
    assert stats.failures[Reason.BACKEND] == 2


@pytest.mark.parametrize(("rows", "shape"), [((0, 0), (0, 2)), ((1, 2), (3, 0))])
@pytest.mark.parametrize("datatype", [BYTES, FP32], ids=str)
def test_empty_tensors_are_shared_out(rows: tuple[int, ...], shape: tuple[int, ...], datatype: DataType) -> None:
    """No rows, or rows without elements: everybody gets an empty tensor of the right shape."""
    spec = ModelSpec("m", 1, 8, (X,), (TensorSpec("y", datatype, (-1,)),))
    batch, sink, _ = make_batch(*rows, spec=spec)
    batch.settle([(spec.outputs[0], shape, b"")])
    tensors = [response.outputs[0] for _, response, _ in sink.replies]
    assert [(t.shape, bytes(t.data)) for t in tensors] == [((count, *shape[1:]), b"") for count in rows]


def test_output_whose_rank_does_not_suit_its_reshape_fails_the_batch() -> None:
    """A wrong number of dimensions is an error that says so."""
    spec = ModelSpec("m", 1, 8, (X,), ())
    batch, sink, _ = make_batch(1, spec=spec)
    batch.settle([(TensorSpec("y", FP32, (2, -1), reshape=(-1, 2)), (1, 5), bytes(20))])
    assert "expected 2 dimensions" in sink.errors[0][1].message


def test_only_requested_outputs_are_sent() -> None:
    """Outputs nobody asked for are left out."""
    batch, sink, _ = make_batch(1, outputs=("z",))
    z = TensorSpec("z", FP32, (2,))
    batch.settle([(SPEC.outputs[0], (1, 2), bytes(8)), (z, (1, 2), bytes(8))])
    assert [tensor.name for tensor in sink.replies[0][1].outputs] == ["z"]


def test_output_reshape_gives_clients_the_configs_dims() -> None:
    """With `reshape`, the backend's shape is carried over to `dims`."""
    spec = ModelSpec("m", 1, 8, (X,), (TensorSpec("y", FP32, (-1, 2), reshape=(-1,)),))
    batch, sink, _ = make_batch(1, spec=spec)
    y = TensorSpec("y", FP32, (2, -1), reshape=(-1, 2))
    batch.settle([(y, (1, 5, 2), bytes(40))])
    assert sink.replies[0][1].outputs[0].shape == (1, 2, 5)


def test_cancelled_requests_are_answered_and_left_out() -> None:
    """Work nobody waits for does not start."""
    sink, stats = Recorder(), ModelStats()
    gone, kept = make_request(sink=sink), make_request(sink=sink)
    gone.cancelled = True
    batch = Batch(SPEC, [gone, kept], stats)
    assert batch.requests == [kept]
    assert [(request, error.code) for request, error in sink.errors] == [(gone, Code.CANCELLED)]
    assert stats.failures[Reason.CANCELED] == 1


def test_failure_reaches_every_request() -> None:
    """One error, told to each request, counted as the backend's."""
    batch, sink, stats = make_batch(1, 1)
    batch.fail(internal("boom"))
    assert [error.message for _, error in sink.errors] == ["boom", "boom"]
    assert (stats.executions, stats.fail.count, stats.failures[Reason.BACKEND]) == (1, 2, 2)


def test_what_cannot_be_shared_out_fails_the_batch() -> None:
    """Whatever goes wrong (memory may run out), every request is answered and the instance's thread goes on."""
    batch, sink, stats = make_batch(1, 2)
    batch.settle([(SPEC.outputs[0], (3, 2), None)])  # type: ignore[list-item]
    assert [error.code for _, error in sink.errors] == [Code.INTERNAL] * 2
    assert sink.errors[0][1].message.startswith("the outputs of model 'm' cannot be shared out: TypeError(")
    assert stats.failures[Reason.BACKEND] == 2
