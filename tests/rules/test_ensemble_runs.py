"""Any ensemble, whatever the order in which its steps answer, gives what a plain evaluation of its graph gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from conch.types.error import Code, InferError, internal
from conch.types.request import InferRequest
from conch.types.response import FINAL
from support.ensembles import FakeMember, Stage, Step, answer, member, replies, written
from support.requests import Recorder


@dataclass
class Plan:
    """A graph: `turns[model]` is how often a decoupled model answers; others are not in it."""

    inputs: list[str]
    outputs: list[str]
    steps: list[Step]
    turns: dict[str, int]

    def members(self) -> list[FakeMember]:
        return [
            member(name, list(reads), list(writes), decoupled=name in self.turns) for name, reads, writes in self.steps
        ]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Steps read tensors of one stage; outputs are of one stage; a step stands anywhere in the list."""
    inputs = [f"i{n}" for n in range(draw(st.integers(1, 3)))]
    stages = dict.fromkeys(inputs, 0)
    steps: list[Step] = []
    turns: dict[str, int] = {}
    for n in range(draw(st.integers(1, 7))):
        name = f"m{n}"
        stage = draw(st.sampled_from(sorted(set(stages.values()))))
        able = [tensor for tensor, where in stages.items() if where == stage]
        reads = {f"x{k}": draw(st.sampled_from(able)) for k in range(draw(st.integers(1, 3)))}
        writes = {f"y{k}": f"{name}y{k}" for k in range(draw(st.integers(1, 2)))}
        if draw(st.integers(0, 4)) == 0:
            turns[name] = draw(st.integers(0, 3))
            stage = n + 1
        stages.update(dict.fromkeys(writes.values(), stage))
        steps.append((name, reads, writes))
    stage = draw(st.sampled_from(sorted({where for tensor, where in stages.items() if tensor not in inputs})))
    able = [tensor for tensor, where in stages.items() if where == stage and tensor not in inputs]
    outputs = draw(st.lists(st.sampled_from(able), min_size=1, unique=True))
    return Plan(inputs, outputs, draw(st.permutations(steps)), turns)


def needed(plan: Plan) -> set[str]:
    """Names of the models that the outputs need."""
    tensors, models = set(plan.outputs), set[str]()
    for _ in plan.steps:
        for name, reads, writes in plan.steps:
            if tensors & set(writes.values()):
                models.add(name)
                tensors |= set(reads.values())
    return models


def evaluate(plan: Plan, ran: Counter[str]) -> list[tuple[bytes, ...]]:
    """Every answer that the graph gives. Counts in `ran` how often each model runs."""
    todo = [step for step in plan.steps if step[0] in needed(plan)]

    def frame(values: dict[str, bytes], seen: frozenset[str]) -> list[tuple[bytes, ...]]:
        while True:
            ready = [step for step in todo if step[0] not in seen and all(t in values for t in step[1].values())]
            if not ready:
                break
            name, reads, writes = ready[0]
            seen |= {name}
            ran[name] += 1
            text = ",".join([f"{key}={values[tensor].decode()}" for key, tensor in sorted(reads.items())])
            if name in plan.turns:
                return_later.append((name, writes, text, seen))
            else:
                values = values | {t: f"{name}.{o}({text})".encode() for o, t in writes.items()}
        return [tuple(values[name] for name in plan.outputs)] if all(name in values for name in plan.outputs) else []

    answers = []
    return_later: list[tuple[str, dict[str, str], str, frozenset[str]]] = []
    answers += frame({name: name.encode() for name in plan.inputs}, frozenset())
    while return_later:
        name, writes, text, _ = return_later.pop(0)
        for turn in range(plan.turns[name]):
            answers += frame({t: f"{name}@{turn}.{o}({text})".encode() for o, t in writes.items()}, frozenset())
    return answers


class Actors:
    """Answers the steps of one ensemble, one event at a time, in an order that `draw` chooses."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan = plan
        self.stage = stage
        self.turn: Counter[InferRequest] = Counter()
        self.ran: Counter[str] = Counter()

    def act(self, pick: int) -> None:
        waiting = self.stage.waiting()
        model, request = waiting[pick % len(waiting)]
        name = model.spec.name
        if name not in self.plan.turns:
            self.ran[name] += 1
            answer(request)
            return
        turn = self.turn[request]
        last = turn + 1 >= self.plan.turns[name]
        self.turn[request] += 1
        if turn < self.plan.turns[name]:
            values = {each.name: written(request, each.name, f"@{turn}") for each in model.spec.outputs}
            answer(request, final=False, **values)
        if last:
            self.ran[name] += 1
            model.scheduler.requests.remove(request)
            request.sink.reply(request, FINAL, True)


def recorder(request: InferRequest) -> Recorder:
    assert isinstance(request.sink, Recorder)
    return request.sink


@settings(max_examples=100, deadline=None)
@examples(plans(), st.data())
def test_any_order_of_answers_gives_the_same(plan: Plan, data: st.DataObject) -> None:
    """Each step that is needed runs once per turn with the right tensors; the answers are right; one is final."""
    stage = Stage(plan.inputs, plan.outputs, plan.steps, plan.members())
    actors = Actors(plan, stage)
    request = stage.ask()
    while stage.waiting():
        actors.act(data.draw(st.integers(0, 20)))
    expected_runs: Counter[str] = Counter()
    expected = evaluate(plan, expected_runs)
    assert recorder(request).errors == []
    assert Counter(tuple(each[name] for name in plan.outputs) for each in replies(request)) == Counter(expected)
    assert len(recorder(request).finals()) == 1
    assert actors.ran == expected_runs
    assert stage.scheduler.inflight() == 0
    assert stage.stats.success.count == 1


@settings(max_examples=100, deadline=None)
@examples(plans(), st.data())
def test_one_failure_fails_the_request_once(plan: Plan, data: st.DataObject) -> None:
    """After the first error nothing new is started, what runs is waited for, and then the request fails with it."""
    stage = Stage(plan.inputs, plan.outputs, plan.steps, plan.members())
    actors = Actors(plan, stage)
    request = stage.ask()
    failed = ""
    while waiting := stage.waiting():
        if data.draw(st.booleans()):
            model, step = waiting[data.draw(st.integers(0, 20)) % len(waiting)]
            model.scheduler.requests.remove(step)
            before = len(stage.waiting())
            failed = failed or f"in ensemble 'e', {model.spec.name} is ill"
            step.sink.fail(step, internal(f"{model.spec.name} is ill"))
            assert len(stage.waiting()) == before
        else:
            before = len(waiting)
            actors.act(data.draw(st.integers(0, 20)))
            assert not failed or len(stage.waiting()) <= before
    errors = [error.message for _, error in recorder(request).errors]
    assert errors == ([failed] if failed else [])
    assert len(recorder(request).finals()) == 1
    assert stage.scheduler.inflight() == 0
    assert stage.stats.success.count + stage.stats.fail.count == 1


@settings(max_examples=100, deadline=None)
@examples(plans(), st.data())
def test_a_cancelled_request_starts_nothing_more(plan: Plan, data: st.DataObject) -> None:
    """Running steps are withdrawn, no step is started after that, and the request ends once."""
    stage = Stage(plan.inputs, plan.outputs, plan.steps, plan.members())
    actors = Actors(plan, stage)
    request = stage.ask()
    for _ in range(data.draw(st.integers(0, 5))):
        if stage.waiting():
            actors.act(data.draw(st.integers(0, 20)))
    running = [step for _, step in stage.waiting()]
    stage.scheduler.withdraw(request)
    assert all(step.cancelled for step in running)
    started = {id(step) for step in running}
    while stage.waiting():
        actors.act(0)
        assert {id(step) for _, step in stage.waiting()} <= started
    assert len(recorder(request).finals()) == 1
    assert all(error.code is Code.CANCELLED for _, error in recorder(request).errors)


@settings(max_examples=100, deadline=None)
@examples(plans(), st.integers(1, 2), st.integers(2, 5), st.data())
def test_a_limit_holds_for_all_requests_together(plan: Plan, limit: int, count: int, data: st.DataObject) -> None:
    """With `max_inflight_requests` no step has more requests under way, and all requests are answered."""
    stage = Stage(plan.inputs, plan.outputs, plan.steps, plan.members(), limit=limit)
    actors = Actors(plan, stage)
    requests = [stage.ask() for _ in range(count)]
    while stage.waiting():
        assert all(len(each.scheduler.requests) <= limit for each in stage.members)
        actors.act(data.draw(st.integers(0, 20)))
    expected = evaluate(plan, Counter())
    for request in requests:
        assert len(recorder(request).finals()) == 1
        assert len(replies(request)) == len(expected)
    assert stage.scheduler.pending() == 0


def test_refusal_of_a_step_is_the_requests_error() -> None:
    """A step whose queue is full fails the request with the ensemble's name before the text."""
    stage = Stage(["a"], ["b"], [("m", {"x": "a"}, {"y": "b"})], [member("m", ["x"], ["y"])])
    stage.members[0].scheduler.refuses = InferError(Code.UNAVAILABLE, "Exceeds maximum queue size", "send slower")
    request = stage.ask()
    ((_, error),) = recorder(request).errors
    assert (error.code, error.message) == (Code.UNAVAILABLE, "in ensemble 'e', Exceeds maximum queue size")
    assert error.hint == "step 0, model 'm' version 1: send slower"
