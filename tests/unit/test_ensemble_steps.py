"""What the steps of an ensemble are given and hear, what of it is counted, and who waits for whom."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from conch.config.ensemble_members import check_members
from conch.config.pbtxt import parse_text
from conch.config.server import TraceOptions
from conch.observe.stats import ModelStats
from conch.observe.trace import Trace, Tracer
from conch.observe.trace_file import activities
from conch.schedule.ensemble_forms import converted, next_sequel
from conch.schedule.ensemble_pace import MOST
from conch.types.error import Code, InferError
from conch.types.flow import Flow
from conch.types.request import InferRequest, RequestHead
from conch.types.response import FINAL, FailedResponse, InferResponse
from conch.types.tensor import Tensor
from support.configs import ensemble, model, step
from support.ensembles import FakeMember, Stage, answer, given, member, replies
from support.requests import Recorder


def chain(**changes: Any) -> Stage:
    """a -> m -> b -> n -> c; `decoupled` makes m so."""
    members = [member("m", ["x"], ["y"], decoupled=changes.pop("decoupled", False)), member("n", ["x"], ["y"])]
    return Stage(["a"], ["c"], [("m", {"x": "a"}, {"y": "b"}), ("n", {"x": "b"}, {"y": "c"})], members, **changes)


def running(stage: Stage) -> InferRequest:
    ((_, request),) = stage.waiting()
    return request


def error_of(request: InferRequest) -> InferError:
    assert isinstance(request.sink, Recorder)
    ((_, error),) = request.sink.errors
    return error


def said(request: InferRequest) -> list[Any]:
    assert isinstance(request.sink, Recorder)
    return [response.parameters for _, response, _ in request.sink.replies]


def test_equal_requests_share_the_forms_of_their_steps() -> None:
    """Forms are made once for each kind of tensors, so that steps of different requests make uniform batches."""
    stage = chain()
    form = stage.form(["a"])
    stage.ask(form, "1")
    stage.ask(form, "2")
    one, two = stage.members[0].scheduler.requests
    assert one.form is two.form
    assert (one.id, two.id) == ("1", "2")


def test_tensors_pass_by_reference() -> None:
    """What one step writes is what the next one reads: the same buffer."""
    stage = chain()
    stage.ask()
    value = b"a buffer"
    answer(running(stage), y=value)
    assert running(stage).data[0] is value


def test_the_same_tensor_for_two_inputs() -> None:
    """A tensor may be read by several inputs of a step, and is then given to each."""
    stage = Stage(["a"], ["b"], [("m", {"x": "a", "z": "a"}, {"y": "b"})], [member("m", ["x", "z"], ["y"])])
    stage.ask()
    assert given(running(stage)) == {"x": b"a", "z": b"a"}


def test_outputs_that_a_model_leaves_out() -> None:
    """An input fed by them is left out; an output of the ensemble is missing from its answer."""
    members = [member("m", ["x"], ["y", "z"]), member("n", ["x", "z"], ["y"])]
    steps = [("m", {"x": "a"}, {"y": "b", "z": "d"}), ("n", {"x": "b", "z": "d"}, {"y": "c"})]
    stage = Stage(["a"], ["c", "d"], steps, members)
    request = stage.ask()
    answer(running(stage), leave_out=["z"], y=b"1")
    assert given(running(stage)) == {"x": b"1"}
    answer(running(stage), y=b"2")
    assert replies(request) == [{"c": b"2"}]


def test_what_the_client_says_goes_to_every_step() -> None:
    """Parameters, those that steer included, are the steps'; the answer names the sequence."""
    stage = chain()
    parameters = {"mine": "x", "priority": 2, "sequence_id": 7, "sequence_start": True}
    form = stage.form(["a"], head=RequestHead("e", parameters=parameters), correlation_id=7, flags=1)
    request = stage.ask(form)
    assert running(stage).form.head.parameters == parameters
    answer(running(stage))
    assert running(stage).form.head.parameters == parameters
    answer(running(stage))
    assert said(request) == [{"sequence_id": 7, "sequence_start": True, "sequence_end": False}]


def test_a_response_may_name_another_sequence() -> None:
    """Steps that read its tensors, and the answer, hear of that sequence instead of the client's."""
    stage = chain()
    request = stage.ask()
    first = running(stage)
    first.form.model.scheduler.requests.clear()
    response = InferResponse([*_outputs(first.form.model)], {"sequence_id": "other", "sequence_end": True, "more": 1})
    first.sink.reply(first, response, True)
    heard = running(stage).form.head.parameters
    assert heard == {"sequence_id": "other", "sequence_start": False, "sequence_end": True}
    answer(running(stage))
    assert said(request) == [{"sequence_id": "other", "sequence_start": False, "sequence_end": True}]


def _outputs(model: FakeMember) -> list[Any]:
    return [Tensor(each.name, each.datatype, (1,), b"v") for each in model.spec.outputs]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"sequence_id": True}, "expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or "),
        ({"sequence_start": 1}, "expect parameter 'sequence_start' to be TRITONSERVER_PARAMETER_BOOL"),
        ({"sequence_end": "x"}, "expect parameter 'sequence_end' to be TRITONSERVER_PARAMETER_BOOL"),
    ],
)
def test_sequences_of_a_wrong_kind(parameters: dict[str, Any], text: str) -> None:
    """What a model says of a sequence must be of the right kind; the request fails with a text that names it."""
    with pytest.raises(InferError, match=text):
        next_sequel((0, 0), parameters)
    stage = chain()
    request = stage.ask()
    first = running(stage)
    first.form.model.scheduler.requests.clear()
    first.sink.reply(first, InferResponse(_outputs(first.form.model), parameters), True)
    assert error_of(request).message.startswith(f"in ensemble 'e', {text}")


def test_an_error_response_of_a_decoupled_step_fails_the_request() -> None:
    """The request ends when the step has, with the error of its response."""
    stage = chain(decoupled=True)
    request = stage.ask()
    first = running(stage)
    first.sink.reply(first, FailedResponse(InferError(Code.NOT_FOUND, "gone")), False)
    assert isinstance(request.sink, Recorder)
    assert request.sink.errors == []
    first.form.model.scheduler.requests.clear()
    first.sink.reply(first, FINAL, True)
    assert error_of(request).message == "in ensemble 'e', gone"
    assert error_of(request).hint == "step 0, model 'm' version 1"


def test_a_step_that_answers_nothing_is_a_deadlock() -> None:
    """No answer and nothing left to run: the request fails in Triton's words."""
    stage = chain()
    request = stage.ask(id="z")
    first = running(stage)
    first.sink.reply(first, FINAL, True)
    assert error_of(request).message == (
        "in ensemble 'e', [request id: z] unexpected deadlock, at least one output is not set while no more ensemble "
        "steps can be made"
    )


@pytest.mark.parametrize(
    ("shape", "dims", "batched", "batching", "expected"),
    [
        ((2, 3), (3,), True, True, (2, 3)),
        ((3,), (3,), False, True, (1, 3)),
        ((2, 3), (3,), False, True, (2, 3)),
        ((1, 3), (3,), True, False, (3,)),
        ((2, 3), (-1, 3), True, False, (2, 3)),
        ((2, 3), (3,), True, False, (2, 3)),
    ],
)
def test_between_models_that_batch_and_models_that_do_not(
    shape: tuple[int, ...], dims: tuple[int, ...], batched: bool, batching: bool, expected: tuple[int, ...]
) -> None:
    """A batch dimension of 1 is added or dropped where that makes the shape fit."""
    assert converted(shape, dims, batched=batched, batching=batching) == expected


def test_times_of_steps_are_the_ensembles() -> None:
    """What a step tells after the answer is added as well; a failed request's times are not."""
    stage = chain()
    stage.ask()
    for _ in range(2):
        request = running(stage)
        answer(request)
        request.meter.computed((1, 10, 100))
    stats = stage.stats
    assert [stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns] == [2, 20, 200]
    assert stats.batches[1].compute_infer.ns == 20
    assert (stats.success.count, stats.executions, stats.inferences) == (1, 1, 1)
    stage.ask()
    request = running(stage)
    request.sink.fail(request, InferError(Code.INTERNAL, "no"))
    request.meter.computed((1, 10, 100))
    assert stats.compute_infer.ns == 20
    assert stats.fail.count == 1


def test_statistics_ask_for_meters_only_where_there_are_any() -> None:
    """A model that no ensemble runs on pays nothing."""
    assert not ModelStats().metered
    assert all(each.stats.metered for each in chain().members)


class Kept:
    """Where finished traces go."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def put(self, trace: Trace) -> None:
        self.traces.append(trace)

    def retire(self, source: object) -> None: ...

    def close(self) -> None: ...


def test_steps_have_traces_below_the_ensembles() -> None:
    """A traced request has a trace for each of its steps, which names the ensemble's as its parent."""
    stage = chain()
    kept = Kept()
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=1, file="t"), kept)
    form = stage.form(["a"])
    form.model = stage
    request = InferRequest(form, "", (b"a",), Recorder(), 0)
    tracer.begin(request)
    stage.scheduler.submit(request)
    for _ in range(2):
        step_request = running(stage)
        answer(step_request)
        step_request.form.model.stats.executed([step_request], 1, 2, 3, 4)
    ensemble_trace, *steps = sorted(kept.traces, key=lambda trace: trace.id)
    assert [(trace.id, trace.parent_id, trace.model) for trace in steps] == [(2, 1, "m"), (3, 1, "n")]
    assert [name for name, _ in steps[0].times][:2] == ["REQUEST_START", "QUEUE_START"]
    assert ensemble_trace.parent_id == 0
    assert "QUEUE_START" in [name for name, _ in ensemble_trace.times]
    assert "COMPUTE_START" not in [name for name, _ in ensemble_trace.times]
    header = next(activities(steps[0]))
    assert header == {"id": 2, "model_name": "m", "model_version": 1, "parent_id": 1}


def test_a_producer_waits_for_slow_steps() -> None:
    """More than so many steps of a request under way stop its decoupled steps until half of them are done."""
    stage = chain(decoupled=True)
    request = stage.ask()
    producer = running(stage)
    assert producer.flow is not None
    for _ in range(MOST):
        answer(producer, final=False)
    assert producer.flow.full
    released: list[bool] = []
    producer.flow.wait(lambda: released.append(True))
    consumer = stage.members[1].scheduler
    while not released:
        answer(consumer.requests[0])
    assert len(consumer.requests) < MOST // 2
    assert not producer.flow.full
    assert request.flow is None


def test_a_producer_waits_for_a_slow_client() -> None:
    """A stream whose client does not read stops the decoupled steps until it does."""
    stage = chain(decoupled=True)
    client = Flow()
    request = InferRequest(stage.form(["a"]), "", (b"a",), Recorder(), 0)
    request.flow = client
    stage.scheduler.submit(request)
    producer = running(stage)
    client.full = True
    answer(producer, final=False)
    assert producer.flow is not None
    assert producer.flow.full
    client.release()
    assert not producer.flow.full


def test_batch_sizes_of_members() -> None:
    """A model that batches less than the ensemble is refused; one that does not batch may be a step."""
    config = ensemble(step({"x": "x"}, {"y": "y"}), text="max_batch_size: 4")
    with pytest.raises(InferError, match="allows maximum batch size 4, but it contains model m which only allows"):
        check_members(config, [model("max_batch_size: 2")])
    assert check_members(config, [model("max_batch_size: 4")]) == {"x": 0, "y": 0}
    plain = parse_text(
        'name: "m" input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ] '
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]',
        "config.pbtxt",
    )
    assert check_members(config, [plain]) == {"x": 0, "y": 0}


def test_answers_from_many_threads() -> None:
    """Steps of one request may end at the same moment on different threads: each request is answered once, rightly."""
    wide = [f"m{n}" for n in range(8)]
    members = [*(member(name, ["x"], ["y"]) for name in wide), member("last", wide, ["y"])]
    steps = [(name, {"x": "a"}, {"y": f"t{name}"}) for name in wide]
    stage = Stage(["a"], ["c"], [*steps, ("last", {name: f"t{name}" for name in wide}, {"y": "c"})], members)
    form = stage.form(["a"])
    requests = [stage.ask(form, str(n)) for n in range(200)]
    start = threading.Barrier(len(wide))

    def work(each: FakeMember) -> None:
        start.wait()
        while each.scheduler.requests:
            answer(each.scheduler.requests[-1])

    threads = [threading.Thread(target=work, args=(each,)) for each in members[:-1]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(members[-1].scheduler.requests) == 200
    work_off = list(members[-1].scheduler.requests)
    for request in work_off:
        assert given(request) == {name: f"{name}.y(x=a)".encode() for name in wide}
        answer(request)
    assert all(len(replies(request)) == 1 for request in requests)
    assert stage.stats.success.count == 200


def test_a_request_that_waits_for_its_turn_is_withdrawn_at_once() -> None:
    """With `max_inflight_requests` it needs no turn to be told so, and takes nobody's."""
    stage = Stage(["a"], ["b"], [("m", {"x": "a"}, {"y": "b"})], [member("m", ["x"], ["y"])], limit=1)
    first, second, third = stage.ask(id="1"), stage.ask(id="2"), stage.ask(id="3")
    second.form.withdraw(second)
    assert error_of(second).code is Code.CANCELLED
    assert (stage.scheduler.pending(), stage.scheduler.inflight()) == (1, 2)
    for name in ("1", "3"):
        assert running(stage).id == name
        answer(running(stage))
    assert [len(replies(each)) for each in (first, third)] == [1, 1]
    assert (stage.scheduler.pending(), stage.scheduler.inflight()) == (0, 0)


def test_a_request_that_has_failed_waits_for_no_turn() -> None:
    """One of its steps has failed, another has not begun: the first error is told at once."""
    stage = Stage(
        ["a"],
        ["b", "c"],
        [("m", {"x": "a"}, {"y": "b"}), ("n", {"x": "a"}, {"y": "c"})],
        [member("m", ["x"], ["y"]), member("n", ["x"], ["y"])],
        limit=1,
    )
    first = stage.ask(id="1")
    m, n = stage.members
    answer(n.scheduler.requests[0])
    second = stage.ask(id="2")
    (failing,) = n.scheduler.requests
    n.scheduler.requests.remove(failing)
    failing.sink.fail(failing, InferError(Code.INTERNAL, "no"))
    assert error_of(second).message == "in ensemble 'e', no"
    answer(m.scheduler.requests[0])
    assert len(replies(first)) == 1
    assert (stage.scheduler.pending(), stage.scheduler.inflight()) == (0, 0)
