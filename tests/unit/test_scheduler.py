"""How requests reach instances: one wake-up per tick, free instances come for batches, alarms for delays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from conch.observe.stats import ModelStats
from conch.schedule.batcher import QueueBatcher, QueuePolicy
from conch.schedule.queue import QueueScheduler
from conch.schedule.runner import LoopRunner, ThreadRunner
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from support.requests import Recorder, make_form, make_request

MS = 1_000_000


class Loop:
    """A loop that the test turns: posted calls run in `tick`, timers when the test moves the clock."""

    def __init__(self) -> None:
        self.now = 0
        self.posted: list[Callable[[], object]] = []
        self.timers: list[Timer] = []

    def post(self, call: Callable[[], object]) -> None:
        self.posted.append(call)

    def later(self, seconds: float, call: Callable[[], object]) -> Timer:
        timer = Timer(self.now + round(seconds * 1e9), call)
        self.timers.append(timer)
        return timer

    def clock(self) -> int:
        return self.now

    def tick(self) -> int:
        calls, self.posted = self.posted, []
        for call in calls:
            call()
        return len(calls)

    def settle(self) -> None:
        while self.tick():
            pass

    def advance(self, ns: int) -> None:
        self.now += ns
        due = [timer for timer in self.timers if timer.at <= self.now and not timer.cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.call()
        for _ in range(3):
            self.tick()


class Timer:
    def __init__(self, at: int, call: Callable[[], object]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Held:
    """A loop instance that keeps each batch until the test finishes it."""

    def __init__(self) -> None:
        self.batches: list[Sequence[InferRequest]] = []
        self.idle: list[Callable[[], None]] = []

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        self.batches.append(batch)
        self.idle.append(idle)

    def finish(self) -> None:
        for request in self.batches[-1]:
            request.sink.reply(request, InferResponse([]), True)
        self.idle.pop()()

    def close(self) -> None: ...


def make_scheduler(instances: int = 1, **batching: object) -> tuple[Loop, QueueScheduler, list[Held]]:
    loop = Loop()
    options = {"max_rows": 8} | batching
    scheduler = QueueScheduler(QueueBatcher(**options), ModelStats(), loop.post, loop.later, loop.clock)  # type: ignore[arg-type]
    held = [Held() for _ in range(instances)]
    for instance in held:
        scheduler.attach(LoopRunner(instance, scheduler.take, loop.post))
    return loop, scheduler, held


def submit(scheduler: QueueScheduler, count: int) -> list[InferRequest]:
    requests = [make_request() for _ in range(count)]
    for request in requests:
        scheduler.submit(request)
    return requests


def test_requests_of_one_tick_form_one_batch() -> None:
    """However many requests arrive in a tick, the loop is asked once and they run together."""
    loop, scheduler, (held,) = make_scheduler()
    requests = submit(scheduler, 5)
    assert loop.tick() == 1
    assert held.batches == [requests]


def test_busy_instance_finds_the_next_batch_when_idle() -> None:
    """What arrives while an instance works is its next batch."""
    loop, scheduler, (held,) = make_scheduler()
    submit(scheduler, 1)
    loop.tick()
    waiting = submit(scheduler, 3)
    loop.tick()
    assert scheduler.pending() == 3
    held.finish()
    loop.settle()
    assert held.batches[-1] == waiting


def test_what_arrives_while_answers_are_written_joins_the_next_batch() -> None:
    """An instance that becomes idle starts its next batch only after the sockets were looked at once more."""
    loop, scheduler, (held,) = make_scheduler()
    submit(scheduler, 1)
    loop.tick()
    waiting = submit(scheduler, 1)
    loop.tick()
    held.finish()
    loop.tick()
    waiting += submit(scheduler, 2)
    loop.settle()
    assert held.batches[-1] == waiting


def test_inflight_counts_waiting_and_running() -> None:
    """`inflight` is zero only when every request taken over is settled."""
    loop, scheduler, (held,) = make_scheduler()
    submit(scheduler, 9)
    loop.tick()
    assert scheduler.inflight() == 9
    held.finish()
    loop.settle()
    assert scheduler.inflight() == 1
    held.finish()
    assert scheduler.inflight() == 0


def test_a_stopped_scheduler_refuses_and_still_answers() -> None:
    """After `stop`, new requests are refused in Triton's words and old ones run."""
    loop, scheduler, (held,) = make_scheduler()
    submit(scheduler, 1)
    scheduler.stop()
    with pytest.raises(InferError) as refusal:
        scheduler.submit(make_request(id="x"))
    assert refusal.value.code is Code.UNAVAILABLE
    assert refusal.value.message == (
        "[request id: x] Server is stopping, scheduler for model has stopped accepting new inference requests"
    )
    loop.tick()
    assert len(held.batches) == 1


def test_queue_delay_ends_by_alarm() -> None:
    """A batch below the preferred size starts when its delay is over although nothing else arrives."""
    loop, scheduler, (held,) = make_scheduler(preferred=[4], delay_ns=20 * MS)
    requests = submit(scheduler, 2)
    loop.tick()
    loop.tick()
    assert held.batches == []
    loop.advance(19 * MS)
    assert held.batches == []
    loop.advance(1 * MS)
    assert held.batches == [requests]


def test_expired_request_is_answered_while_all_instances_are_busy() -> None:
    """A timeout fires on time, not at the next batch."""
    loop, scheduler, (held,) = make_scheduler(policy=QueuePolicy(timeout_ns=10 * MS))
    submit(scheduler, 1)
    loop.tick()
    sink = Recorder()
    late = make_request(sink=sink)
    scheduler.submit(late)
    loop.tick()
    loop.advance(11 * MS)
    assert [(request, error.message) for request, error in sink.errors] == [(late, "Request timeout expired")]
    assert len(held.batches) == 1


def test_the_clients_deadline_ends_the_wait_on_time() -> None:
    """A request whose client has stopped waiting leaves the queue then, without a queue policy and without a batch."""
    loop, scheduler, (held,) = make_scheduler()
    submit(scheduler, 1)
    loop.tick()
    sink = Recorder()
    late, later = make_request(sink=sink), make_request(sink=sink)
    late.expires_ns, later.expires_ns = 10 * MS, 20 * MS
    for request in (later, late):
        scheduler.submit(request)
    loop.tick()
    loop.advance(10 * MS)
    assert [(request, error.message) for request, error in sink.errors] == [(late, "Request timeout expired")]
    loop.advance(10 * MS)
    assert [request for request, _ in sink.errors] == [late, later]
    assert (len(held.batches), scheduler.pending()) == (1, 0)


def test_an_expired_request_is_refused_by_the_first_who_looks() -> None:
    """A deadline that has passed before an instance is free: the request does not run."""
    loop, scheduler, (held,) = make_scheduler()
    sink = Recorder()
    request = make_request(sink=sink)
    request.expires_ns = 5
    loop.now = 5
    scheduler.submit(request)
    loop.settle()
    assert (held.batches, [error.code for _, error in sink.errors]) == ([], [Code.UNAVAILABLE])


def test_withdrawn_requests_leave_in_one_go() -> None:
    """Wherever they stand, in the tick in which they are withdrawn, with CANCELLED, without an instance's help."""
    loop, scheduler, (held,) = make_scheduler(max_rows=1)
    submit(scheduler, 1)
    loop.tick()
    requests = submit(scheduler, 5)
    loop.tick()
    for request in (requests[1], requests[3], requests[1]):
        scheduler.withdraw(request)
    assert loop.tick() == 1
    gone = [request for request in requests if request.sink.errors]  # type: ignore[attr-defined]
    assert gone == [requests[1], requests[3]]
    assert [error.code for request in gone for _, error in request.sink.errors] == [Code.CANCELLED] * 2  # type: ignore[attr-defined]
    assert scheduler.pending() == 3
    for _ in range(4):
        held.finish()
        loop.settle()
    assert held.batches[1:] == [[requests[0]], [requests[2]], [requests[4]]]


def test_withdrawing_a_running_or_settled_request_does_nothing_to_it() -> None:
    """It is only marked, for whom it concerns."""
    loop, scheduler, (held,) = make_scheduler()
    (request,) = submit(scheduler, 1)
    loop.tick()
    scheduler.withdraw(request)
    loop.settle()
    assert request.cancelled
    held.finish()
    scheduler.withdraw(request)
    loop.settle()
    assert request.sink.finals() == [request]  # type: ignore[attr-defined]


def test_inflight_counts_requests_that_are_open_beyond_their_batch() -> None:
    """An instance of a decoupled model is idle again while its requests are still being answered."""

    class Streaming(Held):
        left = 0

        def open(self) -> int:
            return self.left

    loop = Loop()
    scheduler = QueueScheduler(QueueBatcher(8), ModelStats(), loop.post, loop.later, loop.clock)
    streaming = Streaming()
    scheduler.attach(LoopRunner(streaming, scheduler.take, loop.post))
    submit(scheduler, 2)
    loop.tick()
    streaming.left = 2
    streaming.idle.pop()()
    loop.settle()
    assert scheduler.inflight() == 2
    streaming.left = 0
    assert scheduler.inflight() == 0


def test_two_instances_share_the_work() -> None:
    """Each free instance takes a batch of its own."""
    loop, scheduler, held = make_scheduler(instances=2, max_rows=4)
    submit(scheduler, 8)
    loop.tick()
    assert sorted(len(instance.batches) for instance in held) == [1, 1]


def test_instance_done_within_start_does_not_recurse() -> None:
    """An inline instance drains a long queue in a loop, not by recursion."""

    class Inline:
        count = 0

        def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
            Inline.count += len(batch)
            idle()

        def close(self) -> None: ...

    loop = Loop()
    scheduler = QueueScheduler(QueueBatcher(1), ModelStats(), loop.post, loop.later, loop.clock)
    scheduler.attach(LoopRunner(Inline(), scheduler.take, loop.post))
    submit(scheduler, 5000)
    loop.tick()
    assert Inline.count == 5000


def test_thread_runner_answers_everything_and_ends() -> None:
    """A thread instance gets every request, from several submitting threads, and its thread ends on close."""

    class Echo:
        def run(self, batch: Sequence[InferRequest]) -> None:
            for request in batch:
                request.sink.reply(request, InferResponse([]), True)

        def close(self) -> None: ...

    scheduler = QueueScheduler(QueueBatcher(4), ModelStats(), lambda call: call(), lambda _s, _c: Timer(0, print))
    for number in range(2):
        scheduler.attach(ThreadRunner(Echo(), scheduler.take, f"echo_{number}"))
    sink = Recorder()
    form = make_form()

    def send() -> None:
        for _ in range(200):
            scheduler.submit(make_request(form, sink=sink))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.wait(800)
    scheduler.close()
    assert len({id(request) for request in sink.finals()}) == 800
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("echo_")]
