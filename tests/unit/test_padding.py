"""Requests of different lengths become one shape for the model and get answers of their own lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.backend.api import Instance, LoopInstance, Placement, StreamingInstance, ThreadInstance
from conch.backend.padded import PaddedModel
from conch.observe.stats import ModelStats, Reason
from conch.service import checks
from conch.types.dtype import ALL, BF16, BOOL, BYTES, FP32, INT64, DataType
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.padding import Cut, Mask, PaddedInput, Padding
from conch.types.request import InferRequest, InputHead, RequestForm, RequestHead
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor, from_numpy, to_numpy
from support.requests import Recorder

IDS = PaddedInput("ids", 0, 1, 0, (4, 8))
PADDING = Padding((IDS,), (Mask("mask", 1, 1, 0),), {"hidden": Cut(1, 0)})


def make_spec(padding: Padding = PADDING, datatype: DataType = INT64, dims: tuple[int, ...] = (-1,)) -> ModelSpec:
    inputs = (
        TensorSpec("ids", datatype, dims),
        TensorSpec("mask", INT64, (-1,), optional=True),
        TensorSpec("more", FP32, (2,), optional=True),
    )
    outputs = (TensorSpec("hidden", datatype, dims), TensorSpec("pooled", FP32, (1,)))
    return ModelSpec("m", 1, 8, inputs, outputs, padding=padding)


class Echo:
    """`hidden` is `ids`; keeps the batches it has seen. `answer` may change what is given back."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.seen: list[list[InferRequest]] = []
        self.answer: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def run(self, batch: Sequence[InferRequest]) -> None:
        self.seen.append(list(batch))
        for request in batch:
            output = Tensor("hidden", self.spec.inputs[0].datatype, request.form.shapes[0], request.data[0])
            request.sink.reply(request, InferResponse([self.answer(output)], {"n": 1}), True)

    def close(self) -> None:
        self.seen.clear()


class Loaded:
    def __init__(self, instance: Instance) -> None:
        self.made = instance

    def instance(self, placement: Placement) -> Instance:
        return self.made

    def ready(self) -> bool:
        return True

    def close(self) -> None: ...


def wrapped(instance: Instance, spec: ModelSpec, stats: ModelStats | None = None) -> Any:
    assert spec.padding is not None
    return PaddedModel(Loaded(instance), spec, spec.padding, stats or ModelStats()).instance(Placement("m_0", "CPU"))


def make_form(spec: ModelSpec, head: RequestHead) -> RequestForm:
    inputs = checks.check_inputs(spec, head)
    return RequestForm(
        head=head, model=None, submit=lambda _: None, version=1, generation=0, inputs=inputs.positions,
        order=inputs.order, shapes=inputs.shapes, backend_shapes=inputs.backend_shapes, sizes=inputs.sizes,
        counts=inputs.counts, rows=inputs.rows, batch_key=inputs.batch_key, outputs=None,
    )  # fmt: skip


def ask(spec: ModelSpec, **arrays: np.ndarray[Any, Any]) -> InferRequest:
    kinds = {each.name: each.datatype for each in spec.inputs}
    head = RequestHead("m", inputs=[InputHead(n, kinds[n].name, a.shape) for n, a in arrays.items()])
    form = make_form(spec, head)
    names = [spec.inputs[position].name for position in form.inputs]
    data = tuple([from_numpy(kinds[name], arrays[name]) for name in names])
    return InferRequest(form, "id", data, Recorder(), 1)


def ids(*values: int) -> np.ndarray[Any, Any]:
    return np.array([values], np.int64)


def arrays(spec: ModelSpec, request: InferRequest) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of a request as the instance saw it."""
    form = request.form
    return {
        spec.inputs[position].name: to_numpy(spec.inputs[position].datatype, shape, data)
        for position, shape, data in zip(form.inputs, form.shapes, request.data, strict=True)
    }


def answer(request: InferRequest) -> Tensor:
    sink = request.sink
    assert isinstance(sink, Recorder)
    ((asked, response, final),) = sink.replies
    assert asked is request
    assert final
    assert response.parameters == {"n": 1}
    return next(iter(response.outputs))


def test_requests_are_padded_to_their_bucket_and_answers_cut() -> None:
    """The model sees the bucket's size and a mask; each client gets its own length."""
    spec = make_spec()
    echo = Echo(spec)
    requests = [ask(spec, ids=ids(1, 2, 3)), ask(spec, ids=ids(7))]
    assert requests[0].form.batch_key == requests[1].form.batch_key
    wrapped(echo, spec).run(requests)
    first, second = [arrays(spec, request) for request in echo.seen[0]]
    assert (first["ids"].tolist(), first["mask"].tolist()) == ([[1, 2, 3, 0]], [[1, 1, 1, 0]])
    assert (second["ids"].tolist(), second["mask"].tolist()) == ([[7, 0, 0, 0]], [[1, 0, 0, 0]])
    assert [answer(request).shape for request in requests] == [(1, 3), (1, 1)]
    assert to_numpy(INT64, (1, 3), answer(requests[0]).data).tolist() == [[1, 2, 3]]


def test_a_batch_of_one_bucket_has_one_form() -> None:
    """Backends that work by form see one, however different the lengths were."""
    spec = make_spec()
    echo = Echo(spec)
    wrapped(echo, spec).run([ask(spec, ids=ids(1, 2, 3)), ask(spec, ids=ids(7)), ask(spec, ids=ids(1, 2, 3, 4))])
    assert len({id(request.form) for request in echo.seen[0]}) == 1


def test_masks_of_clients_are_padded_too() -> None:
    """A mask that is sent is kept; requests with and without one share a batch."""
    spec = make_spec()
    echo = Echo(spec)
    own, none = ask(spec, ids=ids(1, 2, 3), mask=ids(1, 0, 1)), ask(spec, ids=ids(7))
    assert own.form.batch_key == none.form.batch_key
    wrapped(echo, spec).run([own, none])
    assert [arrays(spec, request)["mask"].tolist() for request in echo.seen[0]] == [[[1, 0, 1, 0]], [[1, 0, 0, 0]]]


def test_a_mask_has_the_length_of_its_input() -> None:
    """A mask of another length is refused before it is queued."""
    with pytest.raises(InferError, match=r"input 'mask' has size 2 in dimension 1, expected 3, the length of .* 'ids'"):
        ask(make_spec(), ids=ids(1, 2, 3), mask=ids(1, 0))


def test_longer_than_the_largest_bucket_is_refused() -> None:
    """No bucket holds it: the error says what is the most."""
    with pytest.raises(InferError, match="input 'ids' has size 9 in dimension 1, more than 8, its largest bucket"):
        ask(make_spec(), ids=ids(*range(9)))


def test_other_optional_inputs_keep_requests_apart() -> None:
    """Only masks are made; requests with another set of the other inputs do not meet."""
    spec = make_spec()
    plain = ask(spec, ids=ids(1)).form.batch_key
    assert plain != ask(spec, ids=ids(1), more=np.zeros((1, 2), "f4")).form.batch_key
    assert plain != ask(spec, ids=ids(1, 2, 3, 4, 5)).form.batch_key


def test_without_buckets_the_longest_decides() -> None:
    """All lengths meet, and are padded no further than needed."""
    spec = make_spec(Padding((PaddedInput("ids", 0, 1, -1),)))
    echo = Echo(spec)
    wrapped(echo, spec).run([ask(spec, ids=ids(1, 2, 3)), ask(spec, ids=ids(7))])
    assert [arrays(spec, request)["ids"].tolist() for request in echo.seen[0]] == [[[1, 2, 3]], [[7, -1, -1]]]


def test_merged_buckets_are_padded_to_the_largest() -> None:
    """A batch that the batcher has mixed has the shape of its largest bucket."""
    spec = make_spec()
    echo = Echo(spec)
    requests = [ask(spec, ids=ids(1)), ask(spec, ids=ids(1, 2, 3, 4, 5))]
    wrapped(echo, spec).run(requests)
    assert [request.form.shapes[0] for request in echo.seen[0]] == [(1, 8), (1, 8)]
    assert [answer(request).shape for request in requests] == [(1, 1), (1, 5)]


def test_waste_is_counted() -> None:
    """The statistics know how many elements went in and how many of them were padding."""
    spec, stats = make_spec(), ModelStats()
    wrapped(Echo(spec), spec, stats).run([ask(spec, ids=ids(1, 2, 3)), ask(spec, ids=ids(7))])
    assert (stats.pads, stats.input_elements, stats.padding_elements) == (True, 8, 4)


def test_cancellation_passes_through() -> None:
    """The padded request is cancelled when the client's is."""
    spec = make_spec()
    echo = Echo(spec)
    request = ask(spec, ids=ids(1))
    wrapped(echo, spec).run([request])
    request.cancelled = True
    assert echo.seen[0][0].cancelled


def test_everything_else_of_a_request_passes_through() -> None:
    """Whatever a request carries besides its form, data and sink, the padded one carries too."""
    spec = make_spec()
    echo = Echo(spec)
    request = ask(spec, ids=ids(1))
    carried = sorted({*InferRequest.__slots__} - {"cancelled", "data", "form", "sink"})
    for name in carried:
        setattr(request, name, name)
    wrapped(echo, spec).run([request])
    assert [getattr(echo.seen[0][0], name) for name in carried] == carried


def test_an_output_of_another_size_is_an_error() -> None:
    """An output that does not grow with its input cannot be cut: the error says what was expected."""
    spec = make_spec()
    echo = Echo(spec)
    echo.answer = lambda tensor: Tensor(tensor.name, tensor.datatype, (1, 2), bytes(16))
    request = ask(spec, ids=ids(1))
    wrapped(echo, spec).run([request])
    sink = request.sink
    assert isinstance(sink, Recorder)
    assert "has shape [1, 2], expected 4 in dimension 1, the padded size of input 'ids'" in sink.errors[0][1].message


def test_what_cannot_be_padded_fails_its_batch() -> None:
    """An error before the instance is reached is everyone's answer, counted as a failure."""
    spec, stats = make_spec(), ModelStats()
    echo = Echo(spec)
    request = ask(spec, ids=ids(1))
    request.data = (b"",)
    wrapped(echo, spec, stats).run([request])
    assert isinstance(request.sink, Recorder)
    assert "the batch cannot be padded" in request.sink.errors[0][1].message
    assert (echo.seen, stats.failures[Reason.OTHER]) == ([], 1)


class Streams:
    """A loop instance that answers in parts."""

    def __init__(self) -> None:
        self.waiting = 3

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        for request in batch:
            part = Tensor("hidden", INT64, request.form.shapes[0], request.data[0])
            request.sink.reply(request, InferResponse([part]), False)
            request.sink.reply(request, FINAL, True)
        idle()

    def open(self) -> int:
        return self.waiting

    def close(self) -> None: ...


def test_each_kind_of_instance_stays_its_kind() -> None:
    """Runners tell instances apart by what they offer."""
    spec = make_spec()
    thread, stream = wrapped(Echo(spec), spec), wrapped(Streams(), spec)
    assert isinstance(thread, ThreadInstance)
    assert not isinstance(thread, LoopInstance)
    assert isinstance(stream, StreamingInstance)
    assert not isinstance(stream, ThreadInstance)
    assert stream.open() == 3


def test_parts_of_a_stream_are_cut() -> None:
    """Every response of a decoupled model is cut; the final one, which has nothing, stays what it is."""
    spec = make_spec()
    request = ask(spec, ids=ids(5, 6))
    idle: list[int] = []
    wrapped(Streams(), spec).start([request], lambda: idle.append(1))
    assert isinstance(request.sink, Recorder)
    part, end = request.sink.replies
    assert part[1].outputs[0].shape == (1, 2)
    assert end[1] is FINAL
    assert idle == [1]


def test_errors_reach_the_clients_sink() -> None:
    """A failing model fails the request that the client sent."""
    spec = make_spec()

    class Fails(Echo):
        def run(self, batch: Sequence[InferRequest]) -> None:
            batch[0].sink.fail(batch[0], internal("boom"))

    request = ask(spec, ids=ids(1))
    wrapped(Fails(spec), spec).run([request])
    assert isinstance(request.sink, Recorder)
    ((asked, error),) = request.sink.errors
    assert asked is request
    assert error.message == "boom"


NUMERIC = [datatype for datatype in ALL if datatype is not BYTES]


@settings(deadline=None)
@given(data=st.data())
def test_cutting_undoes_padding(data: st.DataObject) -> None:
    """For any type, rank, axis, lengths, rows and buckets, what goes in comes out, and the rest is the fill value."""
    datatype = data.draw(st.sampled_from(NUMERIC))
    rest = data.draw(st.lists(st.integers(0, 3), max_size=2))
    axis = data.draw(st.integers(1, len(rest) + 1))
    buckets = data.draw(st.sampled_from([(), (2, 5, 9)]))
    value = data.draw(st.sampled_from([0, 1]))
    dims = [-1 if n == axis - 1 else size for n, size in enumerate([*rest[: axis - 1], -1, *rest[axis - 1 :]])]
    spec = make_spec(
        Padding((PaddedInput("ids", 0, axis, value, buckets),), (), {"hidden": Cut(axis, 0)}), datatype, tuple(dims)
    )
    shapes = [
        (rows, *[length if dim == -1 else dim for dim in dims])
        for rows, length in data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), min_size=1, max_size=4))
    ]
    sent = []
    for shape in shapes:
        count = np.arange(1, int(np.prod(shape)) + 1).reshape(shape)
        sent.append((count % 2 if datatype is BOOL else count).astype(datatype.numpy))
    echo = Echo(spec)
    requests = [ask(spec, ids=array) for array in sent]
    wrapped(echo, spec).run(requests)
    fill = 0x3F80 if datatype is BF16 and value else value
    for array, request, padded in zip(sent, requests, echo.seen[0], strict=True):
        got = answer(request)
        assert got.shape == array.shape
        np.testing.assert_array_equal(to_numpy(datatype, got.shape, got.data), array)
        beyond = np.delete(arrays(spec, padded)["ids"], np.s_[: array.shape[axis]], axis=axis)
        assert (beyond == fill).all()


def test_a_form_remembers_few_of_the_sizes_it_was_padded_to() -> None:
    """Without buckets each neighbour may have a length of its own."""
    spec = make_spec(Padding((PaddedInput("ids", 0, 1, 0, ()),), (), {}))
    padded = wrapped(Echo(spec), spec)
    form = ask(spec, ids=ids(1)).form
    for length in range(2, 300):
        request = InferRequest(form, "", (ids(1).tobytes(),), Recorder(), 1)
        padded.run([request, ask(spec, ids=ids(*range(length)))])
        assert answer(request).shape[0] == 1
    (plan,) = form.memo.values()
    assert len(plan.forms) <= 64
