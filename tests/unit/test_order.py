"""`preserve_ordering`: answers leave in the order in which requests were taken, whoever is done first."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from conch.observe.stats import ModelStats
from conch.schedule.batcher import QueueBatcher
from conch.schedule.order import Order
from conch.schedule.queue import QueueScheduler
from conch.schedule.runner import LoopRunner
from conch.types.dtype import FP32
from conch.types.error import InferError, internal
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor
from support.requests import Recorder, make_form, make_request
from unit.test_scheduler import Held, Loop


class Log(Recorder):
    """All calls to all sinks, in order: request id, and the response, error or end."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, object]] = []

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        self.calls.append((request.id, "end" if final else "part"))
        super().reply(request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self.calls.append((request.id, error.message))
        super().fail(request, error)


def entered(order: Order, count: int, log: Log | None = None) -> tuple[Log, list[InferRequest]]:
    log = log or Log()
    requests = [make_request(id=str(number), sink=log) for number in range(count)]
    order.enter(requests)
    return log, requests


def end(request: InferRequest) -> None:
    request.sink.reply(request, InferResponse([]), True)


def test_who_is_done_early_waits_for_those_before() -> None:
    """Nothing leaves until the first is done; then all that is done leaves at once, in order."""
    log, (a, b, c) = entered(Order(), 3)
    end(c)
    end(b)
    assert log.calls == []
    end(a)
    assert log.calls == [("0", "end"), ("1", "end"), ("2", "end")]


def test_errors_keep_their_place() -> None:
    """An error is an answer."""
    log, (a, b) = entered(Order(), 2)
    b.sink.fail(b, internal("no"))
    a.sink.fail(a, internal("not I"))
    assert log.calls == [("0", "not I"), ("1", "no")]


def test_the_first_in_line_streams() -> None:
    """A decoupled model's responses to the first request go as they come, those to later ones when it has ended."""
    log, (a, b) = entered(Order(), 2)
    b.sink.reply(b, InferResponse([]), False)
    a.sink.reply(a, InferResponse([]), False)
    assert log.calls == [("0", "part")]
    a.sink.reply(a, FINAL, True)
    assert log.calls == [("0", "part"), ("0", "end"), ("1", "part")]
    b.sink.reply(b, FINAL, True)
    assert log.calls[-1] == ("1", "end")


def test_an_answer_that_leads_to_another_keeps_the_order() -> None:
    """A sink may, when called, have a later request answered: that one waits until the call is over."""
    order = Order()
    log, (a, b, c) = entered(order, 3)
    done = log.reply

    def reply(request: InferRequest, response: InferResponse, final: bool) -> None:
        if request is a:
            end(b)
        done(request, response, final)

    log.reply = reply  # type: ignore[method-assign]
    end(c)
    end(a)
    assert [call[0] for call in log.calls] == ["0", "1", "2"]


def test_what_is_kept_is_bounded_in_number_and_bytes() -> None:
    """`full` says that no more should begin, and room is announced once there is some."""
    rooms: list[int] = []
    order = Order(max_held=2)
    order.on_room = lambda: rooms.append(1)
    _, (a, b, c) = entered(order, 3)
    end(b)
    assert not order.full
    end(c)
    assert order.full
    assert not rooms
    end(a)
    assert (order.full, rooms) == (False, [1])
    order = Order(max_bytes=16)
    _, (a, b) = entered(order, 2)
    b.sink.reply(b, InferResponse([Tensor("Y", FP32, (4,), bytes(16))]), True)
    assert order.full
    end(a)
    assert not order.full


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_any_order_of_work_gives_the_order_of_requests(done: list[int], failing: set[int]) -> None:
    """Whatever ends when and how, the ids leave ascending, each once."""
    log, requests = entered(Order(), 12)
    for number in done:
        request = requests[number]
        if number in failing:
            request.sink.fail(request, internal("no"))
        else:
            end(request)
    assert [call[0] for call in log.calls] == [str(number) for number in range(12)]


def test_answers_of_many_threads_keep_the_order() -> None:
    """Threads that answer at the same time do not overtake each other."""
    log, requests = entered(Order(), 4000)
    groups = [requests[start::4] for start in range(4)]
    threads = [threading.Thread(target=lambda group=group: [end(each) for each in group]) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call[0] for call in log.calls] == [str(number) for number in range(4000)]


def make_scheduler(order: Order, instances: int = 2) -> tuple[Loop, QueueScheduler, list[Held]]:
    loop = Loop()
    scheduler = QueueScheduler(QueueBatcher(1), ModelStats(), loop.post, loop.later, loop.clock, order=order)
    held = [Held() for _ in range(instances)]
    for instance in held:
        scheduler.attach(LoopRunner(instance, scheduler.take, loop.post))
    return loop, scheduler, held


def test_two_instances_answer_in_the_order_of_the_queue() -> None:
    """A quick instance does not overtake a slow one, and what was withdrawn from the queue holds nobody up."""
    loop, scheduler, _ = make_scheduler(Order())
    log = Log()
    requests = [make_request(id=str(number), sink=log) for number in range(5)]
    for request in requests:
        scheduler.submit(request)
    loop.tick()
    scheduler.withdraw(requests[2])
    loop.settle()
    slow, quick = sorted(_, key=lambda each: each.batches[0][0].id)
    for _round in range(3):
        quick.finish()
        loop.settle()
    assert log.calls == [("2", "")]
    slow.finish()
    loop.settle()
    assert [call[0] for call in log.calls] == ["2", "0", "1", "3", "4"]


def test_no_batch_begins_while_too_much_is_kept() -> None:
    """An instance that is ahead pauses, and goes on when the others have caught up."""
    loop, scheduler, both = make_scheduler(Order(max_held=2))
    log = Log()
    form = make_form()
    for number in range(8):
        scheduler.submit(make_request(form, id=str(number), sink=log))
    loop.settle()
    slow, quick = sorted(both, key=lambda each: each.batches[0][0].id)
    for _ in range(2):
        quick.finish()
        loop.settle()
    assert (len(quick.batches), scheduler.pending(), quick.idle) == (2, 5, [])
    slow.finish()
    loop.settle()
    assert len(quick.batches) == 3
    while scheduler.inflight():
        for instance in (slow, quick):
            if instance.idle:
                instance.finish()
        loop.settle()
    assert [call[0] for call in log.calls] == [str(number) for number in range(8)]
