"""What becomes of requests to a model that sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conch.observe.stats import ModelStats, Reason
from conch.registry.sleeper import Sleeper
from conch.schedule.policy import QueuePolicy
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest
from support.requests import Recorder, make_form, make_request


class Inner:
    """A scheduler that keeps what it gets until `answer`."""

    def __init__(self) -> None:
        self.got: list[InferRequest] = []
        self.stopped = False
        self.live = 0
        self.sequential = True

    def submit(self, request: InferRequest, /) -> None:
        if self.stopped and not self.continues(request):
            raise unavailable("stopped")
        self.got.append(request)

    def withdraw(self, request: InferRequest, /) -> None:
        request.cancelled = True

    def continues(self, request: InferRequest, /) -> bool:
        return self.live > 0 and request.form.correlation_id == 7

    def sequences(self) -> int:
        return self.live

    def pending(self) -> int:
        return 0

    def inflight(self) -> int:
        return len(self.got)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.stop()


class Bed:
    """A sleeper on a loop that runs when it is told to, with a clock that stands still."""

    def __init__(self, policy: QueuePolicy | None = None) -> None:
        self.now = 1
        self.calls = 0
        self.posted: list[Callable[[], object]] = []
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.stats = ModelStats()
        self.sink = Recorder()
        self.sleeper = Sleeper(
            self.stats, policy or QueuePolicy(), self._called, self.posted.append, self._later, lambda: self.now
        )

    def _called(self) -> None:
        self.calls += 1

    def _later(self, seconds: float, call: Callable[[], object]) -> Bed:
        self.timers.append((seconds, call))
        return self

    def cancel(self) -> None:
        """Of a timer."""

    def submit(self, id: str = "", **form: object) -> InferRequest:
        request = make_request(make_form(**form), id, self.sink)  # type: ignore[arg-type]
        self.sleeper.submit(request)
        return request

    def turn(self) -> None:
        """The loop runs what was posted."""
        while self.posted:
            self.posted.pop(0)()

    def errors(self) -> list[tuple[str, Code, str]]:
        return [(request.id, error.code, error.message) for request, error in self.sink.errors]


def test_requests_wait_and_go_on_in_order() -> None:
    """One call for all that wait; when the model is awake they come to it in their order, before later ones."""
    bed, inner = Bed(), Inner()
    for each in "abc":
        bed.submit(each)
    assert (bed.calls, bed.sleeper.pending(), bed.sleeper.inflight()) == (1, 3, 3)
    bed.sleeper.open_gate(inner)
    bed.submit("d")
    bed.turn()
    bed.submit("e")
    assert [request.id for request in inner.got] == list("abcde")
    assert bed.sleeper.inflight() == 5


def test_the_time_asleep_counts_as_time_in_the_queue() -> None:
    """A request was queued when it came, not when the model was awake."""
    bed, inner = Bed(), Inner()
    bed.submit()
    bed.now = 500
    bed.sleeper.open_gate(inner)
    bed.turn()
    assert inner.got[0].queued_ns == 1


def test_an_awake_model_refuses_in_its_own_words() -> None:
    """What its scheduler raises is the client's to hear."""
    bed, inner = Bed(), Inner()
    bed.sleeper.open_gate(inner)
    bed.turn()
    inner.stop()
    with pytest.raises(InferError, match="stopped"):
        bed.submit()
    assert bed.calls == 0


def test_a_request_that_meets_a_closing_gate_waits() -> None:
    """Between the look at the gate and the scheduler the gate may be closed: nothing is refused for that."""
    bed, inner = Bed(), Inner()
    bed.sleeper.open_gate(inner)
    bed.turn()
    refuse = inner.submit

    def late(request: InferRequest, /) -> None:
        bed.sleeper.close_gate()
        assert bed.sleeper.leave() is None
        refuse(request)

    inner.submit = late  # type: ignore[method-assign]
    bed.submit("a")
    assert (bed.sleeper.pending(), bed.calls) == (1, 1)


def test_a_request_that_meets_a_gate_which_opens_and_closes_waits() -> None:
    """It sees the open gate, and before it is through, the model has been put to sleep."""
    bed, inner = Bed(), Inner()
    bed.sleeper.open_gate(inner)
    bed.turn()
    bed.sleeper.close_gate()
    assert bed.sleeper.leave() is None
    looks = iter([None, inner])

    class Flickering(Sleeper):
        """Its gate is open at the second look alone."""

        @property
        def _inner(self) -> object:  # type: ignore[override]
            return next(looks, None)

    bed.sleeper.__class__ = Flickering
    bed.submit("late")
    assert bed.sleeper.pending() == 1
    assert bed.sink.errors == []


def test_what_is_behind_a_closed_gate_is_answered() -> None:
    """The scheduler is let go only when nothing is in flight there; those who come meanwhile wait for the next."""
    bed, first, second = Bed(), Inner(), Inner()
    bed.sleeper.open_gate(first)
    bed.turn()
    bed.submit("a")
    bed.sleeper.close_gate()
    bed.submit("b")
    assert bed.sleeper.busy()
    assert bed.sleeper.leave() is first
    first.got.clear()
    assert not bed.sleeper.busy()
    assert bed.sleeper.leave() is None
    bed.sleeper.open_gate(second)
    bed.turn()
    assert [request.id for request in second.got] == ["b"]


def test_a_gate_that_closes_before_all_are_in_calls_again() -> None:
    """Nobody who waits is forgotten."""
    bed, inner = Bed(), Inner()
    bed.submit("a")
    bed.sleeper.open_gate(inner)
    bed.sleeper.close_gate()
    bed.turn()
    assert (inner.got, bed.calls) == ([], 2)


def test_sequences_go_on_behind_a_closed_gate() -> None:
    """A model with a sequence under way is busy, and its requests are let through."""
    bed, inner = Bed(), Inner()
    bed.sleeper.open_gate(inner)
    bed.turn()
    inner.live = 1
    assert bed.sleeper.busy()
    bed.sleeper.close_gate()
    bed.submit("mine", correlation_id=7)
    bed.submit("other", correlation_id=8)
    assert [request.id for request in inner.got] == ["mine"]
    assert bed.sleeper.pending() == 1


def test_the_queue_is_bounded() -> None:
    """By the model's own policy, in Triton's words."""
    bed = Bed(QueuePolicy(max_size=2))
    bed.submit("a")
    bed.submit("b")
    with pytest.raises(InferError, match="Exceeds maximum queue size"):
        bed.submit("c")
    assert bed.stats.failures[Reason.REJECTED] == 1


def test_deadlines_hold_while_a_model_sleeps() -> None:
    """The queue policy's and the client's, whichever comes first."""
    bed = Bed(QueuePolicy(timeout_ns=1000))
    bed.submit("a")
    bed.now = 10
    bed.turn()
    ((_, ring),) = bed.timers
    bed.now = 2000
    ring()
    assert bed.errors() == [("a", Code.UNAVAILABLE, "Request timeout expired")]
    assert bed.sleeper.inflight() == 0


def test_who_is_withdrawn_leaves() -> None:
    """In the same turn of the loop, with CANCELLED; the others stay."""
    bed = Bed()
    first = bed.submit("a")
    bed.submit("b")
    bed.sleeper.withdraw(first)
    bed.turn()
    assert bed.errors() == [("a", Code.CANCELLED, "")]
    assert bed.sleeper.pending() == 1
    assert bed.stats.failures[Reason.CANCELED] == 1


def test_a_load_that_fails_is_told_to_all_and_not_tried_at_once_again() -> None:
    """Whoever waits gets the error, and so does whoever comes within the next seconds, with the time to come again."""
    bed = Bed()
    bed.submit("a")
    bed.sleeper.fail(unavailable("broken"), 2.0)
    assert bed.errors() == [("a", Code.UNAVAILABLE, "broken")]
    with pytest.raises(InferError, match="broken") as caught:
        bed.submit("b")
    assert caught.value.retry_after_s == 2.0
    assert (bed.calls, bed.sleeper.inflight()) == (1, 0)
    bed.now += 2_000_000_000
    bed.submit("c")
    assert bed.calls == 2


def test_a_stopped_model_answers_who_waits_and_nobody_else() -> None:
    """Those taken over are still let in; then its scheduler is stopped too."""
    bed, inner = Bed(), Inner()
    bed.submit("a")
    bed.sleeper.stop()
    with pytest.raises(InferError, match="Server is stopping"):
        bed.submit("b")
    bed.sleeper.open_gate(inner)
    bed.turn()
    assert [request.id for request in inner.got] == ["a"]
    assert inner.stopped


def test_a_time_out_begins_once() -> None:
    """What is left of it when the model is awake is all that its queue grants; a later batch is not bound by it."""
    bed, inner = Bed(QueuePolicy(timeout_ns=1000)), Inner()
    granted: list[int] = []
    take = inner.submit

    def noted(request: InferRequest, /) -> None:
        granted.append(request.expires_ns)
        take(request)

    inner.submit = noted  # type: ignore[method-assign]
    bed.submit()
    bed.now = 900
    bed.sleeper.open_gate(inner)
    bed.turn()
    assert granted == [1001]
    assert inner.got[0].expires_ns == 0
