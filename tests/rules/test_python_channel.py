"""What goes to a worker and comes back: any batch, in packets or in shared memory, loses nothing."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.backend.python import lending, message, pb_utils
from conch.backend.python.answers import LAYOUTS
from conch.backend.python.bls import Caller
from conch.backend.python.channel import DONE_HEAD, KEPT, OUTPUTS, OUTPUTS_SHIFT, Area
from conch.backend.python.execute import Executor
from conch.backend.python.message import Messages
from conch.backend.python.reply import Replies
from conch.backend.python.supervise import LONGEST, PATIENCE, STEADY, Backoff
from conch.types.dtype import BY_NAME, BYTES
from conch.types.error import InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm
from conch.types.response import InferResponse
from conch.types.tensor import from_numpy
from support.python_models import array_of, form_for
from support.requests import Recorder

KINDS = ("UINT8", "FP64", "BYTES", "BF16")
SPEC = ModelSpec(
    "m", 1, 8,
    tuple(TensorSpec(name, BY_NAME[name], (-1,)) for name in KINDS),
    tuple(TensorSpec(name, BY_NAME[name], (-1,)) for name in KINDS),
)  # fmt: skip


class Silent:
    """Stands for the calls socket."""

    verbose = False
    areas = 0
    outbox = None

    def area(self, descriptor: int) -> None:
        self.areas += 1

    def answer(self, *arguments: Any) -> None:
        raise AssertionError(arguments)


class Echo:
    """A model in this very process: gives back its inputs, and what it may know of the request."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def execute(self, requests: list[Any]) -> list[Any]:
        self.seen = [(request.request_id(), request.parameters()) for request in requests]
        return [
            pb_utils.InferenceResponse([
                tensor if tensor.triton_dtype() in {13, 14} else pb_utils.Tensor(tensor.name(), tensor.as_numpy())
                for tensor in request.inputs()
            ])
            for request in requests
        ]  # fmt: skip


class Pair:
    """Both ends of a channel, and a model between them."""

    def __init__(self, model: Any) -> None:
        self.inputs, *outputs = mine = [Area.make(4096, 4096) for _ in range(1 + OUTPUTS)]
        their_inputs, *their_outputs = theirs = [Area(os.dup(area.descriptor), 4096) for area in mine]
        self.areas = mine + theirs
        self.messages, self.replies = Messages(SPEC, self.inputs), Replies(SPEC, outputs)
        self.calls: Any = Silent()
        self.executor = Executor(model, "m_0", self.calls, their_inputs, their_outputs, Caller(self.calls))
        self.flags = 0

    def run(self, batch: list[InferRequest]) -> list[Any]:
        flags = self.replies.outputs.number << OUTPUTS_SHIFT
        packet = self.executor.execute(self.messages.batch(batch, 1, flags))
        head = DONE_HEAD.unpack_from(packet)
        self.flags = head[1]
        outcomes = self.replies.settle(packet, head, batch)
        if outcomes is not None:
            return outcomes
        found = []
        for request in batch:
            assert isinstance(request.sink, Recorder)
            ((_, response, final),) = request.sink.replies
            assert final
            found.append(response)
        return found


@contextmanager
def joined(model: Any) -> Iterator[Pair]:
    pair = Pair(model)
    try:
        yield pair
    finally:
        for area in (*pair.areas, pair.executor._inputs):
            area.close()


def request_of(form: RequestForm, seed: int, id: str = "") -> InferRequest:
    data = []
    for position, shape in zip(form.inputs, form.shapes, strict=True):
        datatype = SPEC.inputs[position].datatype
        numbers = (np.arange(int(np.prod(shape))) + seed).reshape(shape)
        if datatype is BYTES:
            numbers = np.array([b"x" * (number % 7) for number in numbers.ravel()], dtype=object).reshape(shape)
        else:
            numbers = numbers.astype(datatype.numpy)
        data.append(bytes(from_numpy(datatype, numbers)))
    return InferRequest(form, id, tuple(data), Recorder(), 0)


@st.composite
def forms(draw: st.DrawFn) -> RequestForm:
    present = tuple(sorted(draw(st.sets(st.integers(0, 3), min_size=1))))
    shapes = tuple((1, draw(st.sampled_from([0, 1, 3, 17, 5000]))) for _ in present)
    full = form_for(SPEC, (1, 1))
    sizes = tuple(-1 if position == 2 else SPEC.inputs[position].datatype.size * shape[1]
                  for position, shape in zip(present, shapes, strict=True))  # fmt: skip
    full.inputs, full.shapes, full.backend_shapes, full.sizes = present, shapes, shapes, sizes
    full.has_bytes = 2 in present
    full.outputs = draw(st.sampled_from([None, ("UINT8",), ("BYTES", "FP64")]))
    full.parameters = draw(st.sampled_from([None, {"a": 1}, {"\u00e4": "x" * 40_000}]))
    return full


@settings(max_examples=120, deadline=None)
@given(
    known=st.lists(forms(), min_size=1, max_size=4),
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "r1", "\0\u20ac"])), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ),
)
def test_any_batch_comes_back_as_it_was(known: list[RequestForm], batches: list[list[tuple[int, str]]]) -> None:
    """Shapes, elements, ids, parameters and the choice of outputs survive, whatever shares a batch."""
    model = Echo()
    with joined(model) as pair:
        for picks in batches:
            batch = [request_of(known[pick % len(known)], seed, name) for seed, (pick, name) in enumerate(picks)]
            responses = pair.run(batch)
            assert [name for name, _ in model.seen] == [request.id for request in batch]
            for request, response, (_, parameters) in zip(batch, responses, model.seen, strict=True):
                form = request.form
                assert (parameters == "{}") == (form.parameters is None)
                wanted = [SPEC.inputs[position].name for position in form.inputs
                          if form.outputs is None or SPEC.inputs[position].name in form.outputs]  # fmt: skip
                assert [output.name for output in response.outputs] == wanted
                for output in response.outputs:
                    index = form.inputs.index(KINDS.index(output.name))
                    assert output.shape == form.shapes[index]
                    assert output.datatype is BY_NAME[output.name]
                    assert bytes(output.data) == bytes(request.data[index])


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from([1, 5000, 9000]), st.integers(0, 4)), min_size=1, max_size=20))
def test_lent_answers_stay_what_they_were(steps: list[tuple[int, int]]) -> None:
    """Large answers are views of shared memory: whoever still holds one sees what it was when it came."""
    with pytest.MonkeyPatch.context() as patch, joined(Echo()) as pair:
        patch.setattr(lending, "LARGE", 40_000)
        held: list[tuple[bytes, Any]] = []
        for seed, (size, dropped) in enumerate(steps):
            form = form_for(SPEC, (1, size), inputs=(1,), shapes=((1, size),), backend_shapes=((1, size),),
                            sizes=(size * 8,), has_bytes=False)  # fmt: skip
            request = request_of(form, seed)
            (response,) = pair.run([request])
            held.append((bytes(request.data[0]), response))
            del response
            for wanted, each in held:
                assert bytes(each.outputs[0].data) == wanted
            del each, held[:dropped]


def test_an_area_is_used_again_when_nobody_reads_it() -> None:
    """What was lent and dropped is free; while all else is lent, answers are copied."""
    with joined(Echo()) as pair:
        form = form_for(SPEC, (1, 1 << 16), inputs=(1,), shapes=((1, 1 << 16),), backend_shapes=((1, 1 << 16),),
                        sizes=(8 << 16,), has_bytes=False)  # fmt: skip
        numbers, held = [], []
        for seed in range(5):
            held += pair.run([request_of(form, seed)])
            numbers.append(pair.replies.outputs.number)
        assert numbers == [1, 2, 2, 2, 2]
        del held[0]
        # A recorder and what it recorded refer to each other.
        gc.collect()
        pair.run([request_of(form, 7)])
        assert pair.replies.outputs.number == 0


def test_forms_beyond_the_limit_are_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker knows a bounded number of forms; a batch of more than that works all the same."""
    monkeypatch.setattr(message, "FORMS", 3)
    with joined(Echo()) as pair:
        known = [form_for(SPEC, (1, size)) for size in range(8)]
        for picks in ([0, 1, 2, 3, 4, 5, 6, 7], [0], [7, 0, 7], [3, 3], [1], [0, 1, 2, 3]):
            batch = [request_of(known[pick], pick) for pick in picks]
            for request, response in zip(batch, pair.run(batch), strict=True):
                assert [bytes(output.data) for output in response.outputs] == [bytes(raw) for raw in request.data]


def test_layouts_beyond_the_limit_are_told_again() -> None:
    """Shapes that never repeat do not pile up."""
    with joined(Echo()) as pair:
        for size in [*range(LAYOUTS + 20), 0, 1, LAYOUTS]:
            form = form_for(SPEC, (1, size), inputs=(0,), shapes=((1, size),), backend_shapes=((1, size),),
                            sizes=(size,), has_bytes=False)  # fmt: skip
            (response,) = pair.run([request_of(form, 0)])
            assert response.outputs[0].shape == (1, size)
        assert len(pair.replies._layouts) <= LAYOUTS


@pytest.mark.parametrize(("keep", "size", "kept"), [(True, 9, False), (True, 90_000, True), (False, 90_000, False)])
def test_memory_is_given_up_only_where_the_model_keeps_it(keep: bool, size: int, kept: bool) -> None:
    """Arrays that outlive execute stay valid because the server gets other memory; small ones are copies anyway."""

    class Keeper:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def execute(self, requests: list[Any]) -> list[Any]:
            array = requests[0].inputs()[0].as_numpy()
            if keep:
                self.kept.append(array[0, 1:])
            return [pb_utils.InferenceResponse([pb_utils.Tensor("FP64", array)])]

    with joined(Keeper()) as pair:
        form = form_for(SPEC, (1, size), inputs=(1,), shapes=((1, size),), backend_shapes=((1, size),),
                        sizes=(size * 8,), has_bytes=False)  # fmt: skip
        (response,) = pair.run([request_of(form, 5)])
        assert array_of(response.outputs[0])[0, 0] == 5
        assert bool(pair.flags & KEPT) == kept
        assert pair.calls.areas == kept


def test_responses_of_all_kinds_share_a_batch() -> None:
    """Errors, parameters and different shapes beside each other reach their own requests."""

    class Mixed:
        def execute(self, requests: list[Any]) -> list[Any]:
            return [
                pb_utils.InferenceResponse(error=pb_utils.TritonError("\ud800", pb_utils.TritonError.CANCELLED)),
                pb_utils.InferenceResponse([pb_utils.Tensor("FP64", np.ones(5000))], parameters={"a": True}),
                pb_utils.InferenceResponse([]),
            ]

    with joined(Mixed()) as pair:
        form = form_for(SPEC, (1, 1))
        error, one, none = pair.run([request_of(form, 0) for _ in range(3)])
        assert isinstance(error, InferError)
        assert error.message == "?"
        assert isinstance(one, InferResponse)
        assert (one.parameters, one.outputs[0].shape) == ({"a": True}, (5000,))
        assert isinstance(none, InferResponse)
        assert list(none.outputs) == []


@given(st.lists(st.tuples(st.sampled_from(["died", "failed", "started"]), st.floats(0, 100)), max_size=40))
def test_the_wait_before_a_restart(events: list[tuple[str, float]]) -> None:
    """It doubles up to its longest, and is short again only after a worker that lived long."""
    now = 0.0
    backoff = Backoff(now)
    last, since, failures = 0.0, 0.0, 0
    for event, passed in events:
        now += passed
        if event == "started":
            backoff.started(now)
            since, failures = now, 0
        else:
            wait = backoff.died(now) if event == "died" else backoff.failed()
            failures += event == "failed"
            if event == "died" and now - since >= STEADY:
                assert wait == 0.1
            else:
                assert wait == min(max(2 * last, 0.1), LONGEST)
            last = wait
        assert backoff.hopeless == (failures >= PATIENCE)
