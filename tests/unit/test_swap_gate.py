"""A new version proves itself with the old one's requests, with models that are functions."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.swap_gate import PARAMETER
from conch.observe.stats import WARMUP, ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.gate import Gatekeeper
from conch.registry.lifecycle import Key
from conch.registry.served import ServedVersion
from conch.schedule.api import Version
from conch.schedule.witness import Witness, witness_of
from conch.types.dtype import FP32
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec
from conch.types.request import InferRequest, InputHead, RequestForm, RequestHead
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.fake_models import FakeLoaded
from support.requests import Recorder
from support.schedulers import HoldingScheduler

Answer = Callable[[float], float]


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class FunctionScheduler(HoldingScheduler):
    """Answers at once with `Y`, the function of `X`; that takes `cost` nanoseconds."""

    def __init__(self, answer: Answer, clock: Clock, cost: int = 1000) -> None:
        super().__init__()
        self.answer = answer
        self.clock = clock
        self.cost = cost
        self.models: list[object] = []

    def submit(self, request: InferRequest, /) -> None:
        self.models.append(request.form.model)
        self.clock.now += self.cost
        try:
            value = self.answer(struct.unpack("<f", request.data[0])[0])
        except InferError as error:
            request.sink.fail(request, error)
            return
        request.sink.reply(request, InferResponse([Tensor("Y", FP32, (1,), struct.pack("<f", value))]), True)


class Trial:
    """An old version that has been asked, and a new one; `gate` is what the config of both says."""

    def __init__(self, old: Answer, new: Answer, *, cost: int = 1000, asked: int = 10, **gate: object) -> None:
        self.clock = Clock()
        self.config = ModelConfig(name="m")
        self.config.parameters[PARAMETER].string_value = json.dumps(gate)
        self.old, self.new = self._version(old, 1000), self._version(new, cost)
        for number in range(asked):
            self.ask(self.old, float(number), f"r{number}")

    def _version(self, answer: Answer, cost: int) -> ServedVersion:
        return ServedVersion(
            ModelSpec("m", 1, 0, (), ()),
            self.config,
            stats=ModelStats(),
            scheduler=Witness(FunctionScheduler(answer, self.clock, cost), 64, 1000),
            loaded=FakeLoaded(),  # type: ignore[arg-type]
            key=Key("", b"", "", ""),
            release=lambda: None,
        )

    def ask(self, version: ServedVersion, value: float, id: str) -> None:
        form = prepare(version, RequestHead("m", inputs=[InputHead("X", "FP32", (1,))]))
        version.scheduler.submit(InferRequest(form, id, (bytearray(struct.pack("<f", value)),), Recorder(), 0))

    def judge(self) -> str:
        """What speaks against the new version."""
        try:
            Gatekeeper(prepare, self.clock)(self.new, self.old)
        except InferError as error:
            return error.message
        return ""


def prepare(version: Version, head: RequestHead) -> RequestForm:
    form = RequestForm(
        head, version, version.scheduler.submit, 1, 1, (0,), (0,), ((1,),), ((1,),), (4,), (1,), 1, None, None
    )
    return dataclasses.replace(form, priority=3)


def test_equal_answers_pass() -> None:
    """A version that answers within the tolerance takes over, and remembers what its predecessor was asked."""
    trial = Trial(lambda x: x, lambda x: x * 1.0005)
    assert not trial.judge()
    witness = witness_of(trial.new.scheduler)
    assert witness is not None
    assert [each.id for each in witness.recent()] == [f"r{number}" for number in reversed(range(10))]


def test_other_answers_are_told_in_full() -> None:
    """The error names the requests, the output, the place of the largest difference and both values."""
    trial = Trial(lambda x: x, lambda x: x + 1 if x >= 8 else x)
    assert trial.judge() == (
        "'m' version 1 answers 2 of 10 recent requests otherwise than version 1 that serves, 0 may be: "
        "request 1 of 10 (id 'r9'): output 'Y': 1 of 1 elements differ, most of all element 0: 10 instead of 9; "
        "request 2 of 10 (id 'r8'): output 'Y': 1 of 1 elements differ, most of all element 0: 9 instead of 8"
    )


def test_some_may_differ_where_the_gate_says_so() -> None:
    """As many mismatches as `max_mismatches` are let through, and not one more."""
    assert not Trial(lambda x: x, lambda x: x + 1 if x >= 8 else x, max_mismatches=2).judge()
    assert Trial(lambda x: x, lambda x: x + 1 if x >= 7 else x, max_mismatches=2).judge()


def test_only_the_outputs_named_are_compared() -> None:
    """An output that the gate does not name may change."""
    assert not Trial(lambda x: x, lambda x: -x, outputs=["Z"]).judge()


def test_what_fails_on_the_old_version_is_left_out_and_on_the_new_one_counts() -> None:
    """An error of the old version says nothing of the new one; one of the new version alone is a mismatch."""

    def picky(x: float) -> float:
        if x == 3:
            raise internal("not three")
        return x

    assert not Trial(picky, lambda x: x).judge()
    assert "request 7 of 10 (id 'r3'): it fails with Internal: not three" in Trial(lambda x: x, picky).judge()


@pytest.mark.parametrize(("cost", "passes"), [(1000, True), (1499, True), (1501, False)])
def test_latencies_are_compared(cost: int, passes: bool) -> None:
    """The new version's median may be `latency_factor` times the old one's; the error says both."""
    said = Trial(lambda x: x, lambda x: x, cost=cost, latency_factor=1.5).judge()
    assert bool(said) != passes
    assert passes or said == (
        "'m' version 1 takes 0.002 ms for a request, version 1 that serves takes 0.001 ms (medians of 10 recent "
        "requests), allowed are 1.5 times"
    )


def test_without_recent_requests_the_gate_is_open() -> None:
    """Nothing can be compared where nothing was asked."""
    assert not Trial(lambda x: x, lambda x: -x, asked=0).judge()


def test_the_gate_asks_in_nobody_s_name() -> None:
    """What the gate asks counts for no statistics and is not remembered as a request."""
    trial = Trial(lambda x: x, lambda x: x)
    before = witness_of(trial.old.scheduler)
    assert before is not None
    seen = before.recent()
    trial.judge()
    assert before.recent() == seen
    inner = before.inner
    assert isinstance(inner, FunctionScheduler)
    assert inner.models[10:] == [WARMUP] * 10


def test_time_bounds_the_comparison() -> None:
    """After `seconds` no more requests are asked, and what has been compared decides."""
    trial = Trial(lambda x: x, lambda x: x + 1 if x == 0 else x, cost=100_000_000, seconds=0.35)
    assert not trial.judge()
    inner = witness_of(trial.new.scheduler)
    assert inner is not None
    assert isinstance(inner.inner, FunctionScheduler)
    assert len(inner.inner.models) == 4


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 5), st.integers(1, 60))
def test_a_witness_keeps_the_last_requests_within_its_bounds(sizes: list[int], most: int, max_bytes: int) -> None:
    """It keeps the longest run of the last requests that fits both bounds; those too large alone are passed over."""
    witness = Witness(HoldingScheduler(), most, max_bytes)
    fitting = [number for number, size in enumerate(sizes) if size <= max_bytes]
    for number, size in enumerate(sizes):
        head = RequestHead("m", inputs=[InputHead("X", "FP32", (1,))])
        form = RequestForm(head, None, witness.submit, 1, 1, (0,), (0,), (), (), (size,), (1,), 1, None, None)
        witness.submit(InferRequest(form, str(number), (bytearray(size),), Recorder(), 0))
    kept = [int(each.id) for each in witness.recent()][::-1]
    total = 0
    expected: list[int] = []
    for number in reversed(fitting):
        total += sizes[number]
        if total > max_bytes or len(expected) == most:
            break
        expected.insert(0, number)
    assert kept == expected


def test_a_witness_does_not_keep_what_was_refused() -> None:
    """A request that the scheduler does not take is not remembered."""

    def refuse(x: float) -> float:
        raise AssertionError(x)

    trial = Trial(lambda x: x, lambda x: x, asked=0)
    witness = witness_of(trial.old.scheduler)
    assert witness is not None
    assert isinstance(witness.inner, FunctionScheduler)
    witness.inner.answer = refuse
    with pytest.raises(AssertionError):
        trial.ask(trial.old, 1.0, "r")
    assert witness.recent() == []


def test_a_version_that_fails_everything_is_kept_out() -> None:
    """However many mismatches may be; its latencies are not asked for, for there are none."""

    def broken(x: float) -> float:
        raise internal("no")

    said = Trial(lambda x: x, broken, max_mismatches=100, latency_factor=2).judge()
    assert said.startswith(
        "'m' version 1 fails all 10 recent requests that version 1 that serves answers: request 1 of 10 (id 'r9'): "
        "it fails with Internal: no;"
    )


def test_few_answers_have_no_median() -> None:
    """A version that answers hardly anything, and may, is not judged by how long that takes."""

    def picky(x: float) -> float:
        if x:
            raise internal("no")
        return x

    assert not Trial(lambda x: x, picky, cost=10**6, max_mismatches=9, latency_factor=2).judge()
