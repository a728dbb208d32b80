"""The rules by which requests wait and meet, on the pure batcher: no threads, a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from conch.schedule.api import Turn
from conch.schedule.batcher import QueueBatcher, QueuePolicy
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from support.queue_histories import QueueHistory
from support.requests import make_form, make_request

MS = 1_000_000


def fill(batcher: QueueBatcher, *rows: int, key: object = None, at: int = 0) -> list[InferRequest]:
    requests = [make_request(make_form(count, key), queued_ns=at) for count in rows]
    for request in requests:
        batcher.offer(request, at)
    return requests


def test_default_scheduler_runs_each_request_alone() -> None:
    """With a maximum of one row, requests leave one at a time, even those that carry several rows."""
    batcher = QueueBatcher(max_rows=1)
    first, second = fill(batcher, 3, 1)
    assert batcher.take(0).run == [first]
    assert batcher.take(0).run == [second]


def test_batch_is_bounded_by_rows() -> None:
    """A batch takes from the front as long as the rows fit; a request is never split."""
    batcher = QueueBatcher(max_rows=8)
    a, b, c = fill(batcher, 3, 4, 2)
    assert batcher.take(0).run == [a, b]
    assert batcher.take(0).run == [c]


def test_first_request_of_another_key_closes_the_batch() -> None:
    """Only neighbours of equal shape meet: order is kept rather than the batch made larger."""
    batcher = QueueBatcher(max_rows=8)
    (a,) = fill(batcher, 1, key="x")
    (b,) = fill(batcher, 1, key="y")
    (c,) = fill(batcher, 1, key="x")
    assert [batcher.take(0).run for _ in range(3)] == [[a], [b], [c]]


def test_largest_preferred_size_wins_without_delay() -> None:
    """Without a delay the largest preferred size within reach is taken, else all there is."""
    batcher = QueueBatcher(max_rows=16, preferred=[4, 8])
    requests = fill(batcher, *[1] * 11)
    assert batcher.take(0).run == requests[:8]
    assert batcher.take(0).run == requests[8:]


def test_delay_waits_for_a_preferred_size() -> None:
    """With a delay, fewer rows than preferred wait and the batcher says until when."""
    batcher = QueueBatcher(max_rows=8, preferred=[4], delay_ns=5 * MS)
    fill(batcher, 1, 1, at=1 * MS)
    turn = batcher.take(2 * MS)
    assert (turn.run, turn.ask_at) == ([], 6 * MS)


def test_delay_ends_when_the_preferred_size_is_there() -> None:
    """A preferred size is sent at once, and exactly it."""
    batcher = QueueBatcher(max_rows=8, preferred=[4], delay_ns=5 * MS)
    requests = fill(batcher, *[1] * 6)
    assert batcher.take(1).run == requests[:4]


def test_overdue_batch_takes_everything() -> None:
    """Once the oldest request has waited the delay, all that fits is sent."""
    batcher = QueueBatcher(max_rows=8, preferred=[4], delay_ns=5 * MS)
    requests = fill(batcher, *[1] * 6)
    assert batcher.take(5 * MS).run == requests


def test_a_batch_that_cannot_grow_does_not_wait() -> None:
    """A request that does not fit behind a waiting batch sends that batch off."""
    batcher = QueueBatcher(max_rows=8, preferred=[8], delay_ns=5 * MS)
    a, _ = fill(batcher, 6, 5)
    assert batcher.take(1).run == [a]


def test_full_queue_refuses_exactly_at_its_size() -> None:
    """The request after `max_queue_size` waiting ones is refused, names its id, and is not taken."""
    batcher = QueueBatcher(max_rows=1, policy=QueuePolicy(max_size=2))
    fill(batcher, 1, 1)
    with pytest.raises(InferError) as refusal:
        batcher.offer(make_request(id="r7"), 0)
    assert (refusal.value.code, refusal.value.message) == (
        Code.UNAVAILABLE,
        "[request id: r7] Exceeds maximum queue size",
    )
    assert len(batcher) == 2


def test_expired_request_is_refused_and_not_run() -> None:
    """A request that has waited its time is refused with Triton's text, wherever it stands in the queue."""
    batcher = QueueBatcher(max_rows=8, policy=QueuePolicy(timeout_ns=10 * MS, allow_override=True))
    patient = make_request(make_form())
    hasty = make_request(make_form(timeout_us=2000))
    batcher.offer(patient, 0)
    batcher.offer(hasty, 0)
    turn = batcher.take(3 * MS)
    assert turn.run == [patient]
    assert [(r, e.message) for r, e in turn.refuse] == [(hasty, "Request timeout expired")]


def test_override_longer_than_the_default_is_not_granted() -> None:
    """A request may shorten its time in the queue, not lengthen it."""
    batcher = QueueBatcher(max_rows=8, policy=QueuePolicy(timeout_ns=10 * MS, allow_override=True))
    request = make_request(make_form(timeout_us=50_000))
    batcher.offer(request, 0)
    assert request.deadline_ns == 10 * MS


def test_cancelled_request_at_the_front_is_refused() -> None:
    """Nobody waits for it: it leaves with CANCELLED and does not count towards a batch."""
    batcher = QueueBatcher(max_rows=1)
    a, b = fill(batcher, 1, 1)
    a.cancelled = True
    turn = batcher.take(0)
    assert turn.run == [b]
    assert [(r, e.code) for r, e in turn.refuse] == [(a, Code.CANCELLED)]


class History(QueueHistory):
    """Any history of offers, takes, cancellations and waiting: nothing lost, nothing twice, order and bounds kept."""

    @initialize(
        max_rows=st.integers(1, 8),
        preferred=st.lists(st.integers(1, 8), max_size=3),
        delay=st.sampled_from([0, 0, 3, 10]),
        max_size=st.sampled_from([0, 0, 1, 5]),
        timeout=st.sampled_from([0, 0, 4, 20]),
    )
    def begin(self, max_rows: int, preferred: list[int], delay: int, max_size: int, timeout: int) -> None:
        preferred = [size for size in preferred if size <= max_rows]
        self.max_rows, self.delay = max_rows, delay
        self.begin_with(QueueBatcher(max_rows, preferred, delay, QueuePolicy(max_size, timeout, True)), max_size)

    @rule(
        target=QueueHistory.requests,
        rows=st.integers(1, 10),
        key=st.sampled_from([None, None, "a"]),
        hurry=st.integers(0, 9),
        leaves=st.sampled_from([0, 0, -3, 1, 15]),
    )
    def offer(self, rows: int, key: object, hurry: int, leaves: int) -> InferRequest:
        form = make_form(min(rows, self.max_rows), key, timeout_us=hurry)
        return self.put(make_request(form, queued_ns=self.now), leaves)

    def ran(self, turn: Turn) -> None:
        assert turn.run == self.waiting[: len(turn.run)], "first come, first served"
        rows = sum(request.form.rows for request in turn.run)
        assert rows <= self.max_rows or len(turn.run) == 1
        assert len({request.form.batch_key for request in turn.run}) <= 1
        if self.waiting and not turn.run:
            assert self.delay, "without a delay whoever asks gets what waits"
            assert turn.ask_at > self.now, "who waits is told until when"


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(rows=st.lists(st.integers(1, 4), max_size=30), max_rows=st.integers(4, 16))
def test_greedy_and_general_paths_agree(rows: list[int], max_rows: int) -> None:
    """The short cut for 'no delay, no preference' makes the batches of the general rule."""
    greedy = QueueBatcher(max_rows)
    general = QueueBatcher(max_rows)
    general._greedy = False
    for batcher in (greedy, general):
        fill(batcher, *rows)
    for _ in rows:
        assert [r.form.rows for r in greedy.take(1).run] == [r.form.rows for r in general.take(1).run]
