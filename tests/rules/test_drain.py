"""When refused clients are told to come again: the rate at which the queue drains, measured while it is not empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.observe.stats import ModelStats
from conch.schedule.batcher import QueueBatcher
from conch.schedule.drain import DrainRate
from conch.schedule.policy import QueuePolicy
from conch.schedule.queue import QueueScheduler
from conch.schedule.runner import LoopRunner
from conch.types.error import InferError
from support.requests import Recorder, make_request
from unit.test_scheduler import Held, Loop

S = 1_000_000_000


def test_before_anything_is_measured_it_is_a_second() -> None:
    """No promise is made of what is not known."""
    assert DrainRate().seconds(100, 0) == 1.0


@given(per_second=st.integers(1, 1000), batch=st.integers(1, 32), waiting=st.integers(0, 500))
def test_a_steady_rate_is_found(per_second: int, batch: int, waiting: int) -> None:
    """The time is what waits over the requests that are taken each second."""
    rate = DrainRate()
    now = S
    for _ in range(50):
        rate.took(batch, 10, now)
        now += batch * S // per_second
    assert rate.seconds(waiting, now - batch * S // per_second) == pytest.approx(
        min(3600, waiting / per_second), rel=0.01
    )


def test_idle_times_do_not_count() -> None:
    """A model that is asked once a minute is not slow."""
    rate = DrainRate()
    for minute in range(20):
        now = (minute + 1) * 60 * S
        rate.took(1, 1, now)
        rate.took(1, 0, now + S // 10)
    assert rate.seconds(5, 30 * 60 * S) == pytest.approx(0.5)


def test_the_rate_follows_the_model() -> None:
    """What lies long back is forgotten."""
    rate = DrainRate()
    now = S
    for step in (S // 100, S):
        for _ in range(40):
            rate.took(1, 5, now)
            now += step
    assert rate.seconds(1, now - S) == pytest.approx(1.0, rel=0.05)


def test_a_batch_that_hangs_counts_while_it_does() -> None:
    """The longer nothing is taken, the later clients are told to come."""
    rate = DrainRate()
    for tenth in range(10, 30):
        rate.took(1, 5, tenth * S // 10)
    assert rate.seconds(1, 100 * S) > 10 * rate.seconds(1, 3 * S)


def test_refused_requests_are_told_when() -> None:
    """A queue that is full, and a time-out, say when what waits will have been taken; a stop says nothing."""
    loop = Loop()
    held = Held()
    batcher = QueueBatcher(1, policy=QueuePolicy(max_size=4, timeout_ns=3 * S))
    scheduler = QueueScheduler(batcher, ModelStats(), loop.post, loop.later, loop.clock, rate=DrainRate())
    scheduler.attach(LoopRunner(held, scheduler.take, loop.post))
    sink = Recorder()

    def fill() -> float:
        while True:
            try:
                scheduler.submit(make_request(sink=sink))
            except InferError as error:
                return error.retry_after_s
            loop.settle()

    assert fill() == 1.0
    for _ in range(3):
        loop.now += S // 2
        held.finish()
        loop.settle()
        last = fill()
    assert last == pytest.approx(5 * 0.5)
    loop.advance(3 * S)
    loop.settle()
    assert len(sink.errors) == 4
    assert all(error.retry_after_s > 0 for _, error in sink.errors)
    scheduler.stop()
    with pytest.raises(InferError) as refusal:
        scheduler.submit(make_request())
    assert refusal.value.retry_after_s == 0.0
