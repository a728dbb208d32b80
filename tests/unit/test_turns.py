"""Instances that wait for their turn, run on some CPUs, or leave a scheduler that goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import pytest

from conch.observe.stats import ModelStats
from conch.schedule.batcher import QueueBatcher
from conch.schedule.queue import QueueScheduler
from conch.schedule.rate import Demand, Resource
from conch.schedule.runner import LoopRunner, ThreadRunner
from conch.schedule.turns import Turns, limited, pinned
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from support.requests import Recorder, make_request

ONE = Demand({Resource("a", None): 1})


class Held:
    """A loop instance that keeps each batch until the test finishes it."""

    def __init__(self) -> None:
        self.batches: list[Sequence[InferRequest]] = []
        self.idle: list[Callable[[], None]] = []
        self.closed = 0
        self.left_open = 0

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        self.batches.append(batch)
        self.idle.append(idle)

    def open(self) -> int:
        return self.left_open

    def finish(self) -> None:
        for request in self.batches[-1]:
            request.sink.reply(request, InferResponse([]), True)
        self.idle.pop()()

    def close(self) -> None:
        self.closed += 1


class Running:
    """A thread instance that says how many run at once, and where."""

    def __init__(self, inside: list[int], fail: bool = False) -> None:
        self.inside = inside
        self.most = 0
        self.fail = fail
        self.cores: set[int] = set()
        self.closed = 0

    def run(self, batch: Sequence[InferRequest]) -> None:
        self.inside.append(1)
        self.most = max(self.most, len(self.inside))
        self.cores = os.sched_getaffinity(0)
        self.inside.pop()
        for request in batch:
            request.sink.reply(request, InferResponse([]), True)
        if self.fail:
            raise RuntimeError("an instance must not raise")

    def close(self) -> None:
        self.closed += 1


def test_loop_instances_take_turns() -> None:
    """A batch waits while another instance holds what it needs, and begins when that is idle."""
    posted: list[Callable[[], object]] = []
    turns = Turns()
    inner = Held(), Held()
    first, second = (
        limited(each, turns, ticket, posted.append) for each, ticket in zip(inner, turns.join([ONE, ONE]), strict=True)
    )
    idle: list[str] = []
    first.start([make_request()], lambda: idle.append("first"))  # type: ignore[union-attr]
    second.start([make_request()], lambda: idle.append("second"))  # type: ignore[union-attr]
    assert (len(inner[0].batches), len(inner[1].batches), posted) == (1, 0, [])
    inner[0].finish()
    (begin,) = posted
    assert idle == ["first"]
    begin()
    inner[1].finish()
    assert idle == ["first", "second"]


def test_an_instance_that_is_closed_gives_back_what_it_holds() -> None:
    """Once, whatever it did: the others go on."""
    posted: list[Callable[[], object]] = []
    turns = Turns()
    inner = Held(), Held()
    first, second = (
        limited(each, turns, ticket, posted.append) for each, ticket in zip(inner, turns.join([ONE, ONE]), strict=True)
    )
    first.start([make_request()], lambda: None)  # type: ignore[union-attr]
    second.start([make_request()], lambda: None)  # type: ignore[union-attr]
    first.close()
    first.close()
    assert len(posted) == 1
    posted[0]()
    inner[0].finish()
    assert len(inner[1].batches) == 1
    assert turns._limiter._used == {Resource("a", None): 1}


@pytest.mark.parametrize("fail", [False, True])
def test_thread_instances_take_turns(fail: bool) -> None:
    """Of many threads one is inside at a time, also when instances raise."""
    turns = Turns()
    inside: list[int] = []
    inner = [Running(inside, fail) for _ in range(4)]
    instances = [
        limited(each, turns, ticket, lambda call: None)
        for each, ticket in zip(inner, turns.join([ONE] * 4), strict=True)
    ]

    def work(instance: object) -> None:
        for _ in range(200):
            try:
                instance.run([make_request()])  # type: ignore[attr-defined]
            except RuntimeError:
                assert fail

    threads = [threading.Thread(target=work, args=(each,)) for each in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.most for each in inner] == [1, 1, 1, 1]
    assert turns._limiter._used == {Resource("a", None): 0}
    for each in instances:
        each.close()
    assert [each.closed for each in inner] == [1, 1, 1, 1]


def test_streaming_instances_stay_streaming() -> None:
    """Requests that a limited instance has not finished answering count as in flight."""
    turns = Turns()
    (ticket,) = turns.join([ONE])
    inner = Held()
    inner.left_open = 3
    runner = LoopRunner(limited(inner, turns, ticket, lambda call: None), lambda _: [], lambda call: None)  # type: ignore[arg-type]
    assert runner.open() == 3


def test_threads_run_where_their_policy_says() -> None:
    """A pinned instance pins the thread that runs it, and no other."""
    core = min(os.sched_getaffinity(0))
    inner = Running([])
    sink = Recorder()
    scheduler = QueueScheduler(QueueBatcher(max_rows=1), ModelStats(), lambda call: call(), lambda *_: None)  # type: ignore[arg-type, return-value]
    scheduler.attach(ThreadRunner(pinned(inner, frozenset({core})), scheduler.take, "m"))  # type: ignore[arg-type]
    here = os.sched_getaffinity(0)
    scheduler.submit(make_request(sink=sink))
    sink.wait(1)
    scheduler.close()
    assert inner.cores == {core}
    assert os.sched_getaffinity(0) == here


class Breaking:
    """An instance that does what none may do, once."""

    def __init__(self) -> None:
        self.broken = False

    def run(self, batch: Sequence[InferRequest]) -> None:
        if not self.broken:
            self.broken = True
            raise SystemExit(3)
        for request in batch:
            request.sink.reply(request, InferResponse([]), True)

    def close(self) -> None: ...


def test_a_thread_survives_what_its_instance_must_not_do(caplog: pytest.LogCaptureFixture) -> None:
    """The next request is answered, and the log says what happened."""
    sink = Recorder()
    scheduler = QueueScheduler(QueueBatcher(max_rows=1), ModelStats(), lambda call: call(), lambda *_: None)  # type: ignore[arg-type, return-value]
    scheduler.attach(ThreadRunner(Breaking(), scheduler.take, "m"))
    scheduler.submit(make_request())
    scheduler.submit(make_request(sink=sink))
    sink.wait(1)
    scheduler.close()
    assert "an instance failed outside its model" in caplog.text


def test_threads_run_also_where_their_cpus_are_gone(caplog: pytest.LogCaptureFixture) -> None:
    """CPUs may be taken away after the start: requests are answered, and the log says so once."""
    sink = Recorder()
    scheduler = QueueScheduler(QueueBatcher(max_rows=1), ModelStats(), lambda call: call(), lambda *_: None)  # type: ignore[arg-type, return-value]
    scheduler.attach(ThreadRunner(pinned(Running([]), frozenset({4095})), scheduler.take, "m"))  # type: ignore[arg-type]
    for count in (1, 2):
        scheduler.submit(make_request(sink=sink))
        sink.wait(count)
    scheduler.close()
    assert [record.getMessage() for record in caplog.records] == [
        "an instance cannot be kept to CPUs [4095]: Invalid argument"
    ]


class Elastic:
    """A scheduler over instances that the test adds and takes away; the loop is turned by hand."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], object]] = []
        self.scheduler = QueueScheduler(
            QueueBatcher(max_rows=1),
            ModelStats(),
            self.posted.append,
            lambda *_: None,  # type: ignore[arg-type, return-value]
        )
        self.scheduler.drive = lambda instance, name: LoopRunner(instance, self.scheduler.take, self.posted.append)  # type: ignore[arg-type]

    def hire(self) -> Held:
        held = Held()
        self.scheduler.hire(held, "m")
        return held

    def dismiss(self, held: Held) -> threading.Thread:
        """Begins; the thread ends when the instance has left."""
        before = len(self.posted)
        thread = threading.Thread(target=self.scheduler.dismiss, args=(held,))
        thread.start()
        while len(self.posted) == before:
            """The thread has not posted yet."""
        return thread

    def settle(self) -> None:
        while self.posted:
            self.posted.pop(0)()

    def submit(self) -> InferRequest:
        request = make_request()
        self.scheduler.submit(request)
        return request


def test_an_idle_instance_leaves_at_once() -> None:
    """And is never given anything again."""
    house = Elastic()
    stays, leaves = house.hire(), house.hire()
    house.settle()
    thread = house.dismiss(leaves)
    house.settle()
    thread.join()
    house.submit()
    house.submit()
    house.settle()
    assert (len(stays.batches), len(leaves.batches)) == (1, 0)
    stays.finish()
    house.settle()
    assert len(stays.batches) == 2


def test_a_busy_instance_finishes_first() -> None:
    """Its batch is answered, what waits is for the others, and nothing in flight is forgotten."""
    house = Elastic()
    stays, leaves = house.hire(), house.hire()
    house.settle()
    house.submit(), house.submit()
    house.settle()
    waiting = house.submit()
    thread = house.dismiss(leaves)
    house.settle()
    assert thread.is_alive()
    assert house.scheduler.inflight() == 3
    leaves.finish()
    house.settle()
    thread.join()
    assert len(leaves.batches) == 1
    stays.finish()
    house.settle()
    assert stays.batches[-1] == [waiting]


def test_work_for_an_instance_that_leaves_is_done_by_others() -> None:
    """A runner that comes for work after it was told to leave goes, and another one is woken in its place."""
    house = Elastic()
    stays, leaves = house.hire(), house.hire()
    house.settle()
    house.submit(), house.submit()
    house.settle()
    thread = house.dismiss(leaves)
    house.settle()
    stays.finish()
    house.settle()
    waiting = house.submit()
    leaves.finish()
    house.settle()
    thread.join(20)
    assert not thread.is_alive()
    assert stays.batches[-1] == [waiting]


def test_an_instance_waits_for_its_streams() -> None:
    """Requests of decoupled models that are still being answered keep their instance."""
    house = Elastic()
    house.hire()
    leaves = house.hire()
    house.settle()
    leaves.left_open = 1
    thread = house.dismiss(leaves)
    house.settle()
    assert house.scheduler.inflight() == 1
    leaves.left_open = 0
    thread.join(20)
    assert not thread.is_alive()
    assert house.scheduler.inflight() == 0


def test_a_thread_that_leaves_is_not_idle() -> None:
    """The runner of an idle thread instance that is dismissed is not woken again: work goes to those that are left."""
    house = Elastic()
    house.scheduler.drive = lambda instance, name: ThreadRunner(instance, house.scheduler.take, name)  # type: ignore[arg-type]
    stays, leaves = Running([]), Running([])
    house.scheduler.hire(stays, "a")  # type: ignore[arg-type]
    house.scheduler.hire(leaves, "b")  # type: ignore[arg-type]
    house.settle()
    thread = house.dismiss(leaves)  # type: ignore[arg-type]
    house.settle()
    thread.join(20)
    assert not thread.is_alive()
    for _ in range(3):
        request = house.submit()
        house.settle()
        request.sink.wait(1)  # type: ignore[attr-defined]
    house.scheduler.close()
