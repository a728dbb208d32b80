"""What a model with a response cache does with single requests: who is told what, and what is counted."""

from __future__ import annotations

import logging
import mmap
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from conch.cache.api import Cache
from conch.cache.build import Remember
from conch.cache.key import Keys
from conch.cache.local import LocalCache
from conch.cache.scheduler import CachedScheduler
from conch.observe.stats import ModelStats, Reason
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.order import Order
from conch.types.dtype import FP32, UINT8
from conch.types.error import Code, InferError, internal, unavailable
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor
from support.requests import Recorder, make_form, make_request

SPEC = ModelSpec("m", 1, 8, (TensorSpec("X", FP32, (2,)),), (TensorSpec("Y", UINT8, (-1,)),))


class Held:
    """Keeps requests; refuses them with `error` where there is one."""

    def __init__(self) -> None:
        self.taken: list[InferRequest] = []
        self.error: InferError | None = None
        self.calls: list[str] = []

    def submit(self, request: InferRequest, /) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(request)

    def withdraw(self, request: InferRequest, /) -> None:
        self.calls.append("withdraw")

    def pending(self) -> int:
        return 0

    def inflight(self) -> int:
        return len(self.taken)

    def stop(self) -> None:
        self.calls.append("stop")
        self.error = unavailable("stopped")

    def close(self) -> None:
        self.calls.append("close")

    def answer(self, response: InferResponse | None = None) -> None:
        request = self.taken.pop(0)
        made = InferResponse([Tensor("Y", UINT8, (8,), request.data[0])])
        request.sink.reply(request, made if response is None else response, True)


class Forgetful:
    """A far cache that has to be told what it found."""

    def __init__(self) -> None:
        self.found: list[Callable[[Any], object]] = []

    def ask(self, key: bytes, found: Callable[[Any], object], /) -> bool:
        self.found.append(found)
        return True

    def insert(self, key: bytes, entry: object, /) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


class House:
    def __init__(self, cache: Cache | None = None, line: Order | None = None) -> None:
        self.held = Held()
        self.sink = Recorder()
        self.stats = ModelStats()
        self.posted: list[Callable[[], object]] = []
        self.scheduler = CachedScheduler(
            self.held, cache or LocalCache(1 << 20), Keys(SPEC, b""), self.stats, self.posted.append, "m", line=line
        )

    def submit(self, question: int = 0, id: str = "", **form: Any) -> InferRequest:
        request = make_request(make_form(**form), id, self.sink, (bytes([question] * 8),))
        self.scheduler.submit(request)
        return request

    def answered(self) -> list[str]:
        return [request.id for request, _, _ in self.sink.replies]

    def refused(self) -> list[tuple[str, Code]]:
        return [(request.id, error.code) for request, error in self.sink.errors]


def test_what_a_hit_counts() -> None:
    """A hit is a success with a place in the queue, no inference, and leaves the time of the last inference alone."""
    house = House()
    house.submit()
    house.held.answer()
    house.submit()
    stats = house.stats
    assert (stats.success.count, stats.queue.count, stats.cache_hit.count, stats.cache_miss.count) == (1, 1, 1, 1)
    assert (stats.inferences, stats.executions, stats.last_inference_ms) == (0, 0, 0)
    assert stats.success.ns >= stats.cache_miss.ns > 0
    assert stats.cached


def test_a_hit_ends_a_trace() -> None:
    """A traced request that is answered from the cache has a queue and an end."""
    house = House()
    house.submit()
    house.held.answer()
    noted: list[str] = []
    house.stats.traced = True
    request = make_request(make_form(), "", house.sink, (bytes(8),))
    request.trace = SimpleNamespace(at=lambda name, ns: noted.append(name), ended=lambda: noted.append("ended"))
    house.scheduler.submit(request)
    assert noted == ["QUEUE_START", "ended"]


def test_an_error_goes_to_all_who_asked_the_same() -> None:
    """The model's error is every waiting request's answer, is counted as theirs, and is not remembered."""
    house = House()
    for name in "abc":
        house.submit(id=name)
    (leader,) = house.held.taken
    house.held.taken.clear()
    leader.sink.fail(leader, internal("the model says no"))
    assert house.refused() == [(name, Code.INTERNAL) for name in "abc"]
    # The leader's failure is counted by who executed it.
    assert house.stats.failures[Reason.BACKEND] == 2
    house.submit(id="d")
    assert [request.id for request in house.held.taken] == ["d"]


@pytest.mark.parametrize("code", [Code.CANCELLED, Code.UNAVAILABLE])
def test_who_leaves_the_queue_takes_nobody_along(code: Code) -> None:
    """A leader that is cancelled or whose time ran out is followed by the one who has waited longest."""
    house = House()
    for name in "abc":
        house.submit(id=name)
    leader = house.held.taken.pop()
    leader.sink.fail(leader, InferError(code, ""))
    assert house.refused() == [("a", code)]
    assert [request.id for request in house.held.taken] == ["b"]
    house.held.answer()
    assert house.answered() == ["b", "c"]


def test_a_full_queue_refuses_all_in_turn() -> None:
    """When nobody can follow the leader, everybody is told why; nothing is left behind."""
    house = House()
    for name in "abc":
        house.submit(id=name)
    leader = house.held.taken.pop()
    house.held.error = unavailable("Exceeds maximum queue size")
    leader.sink.fail(leader, InferError(Code.CANCELLED, ""))
    assert house.refused() == [("a", Code.CANCELLED), ("b", Code.UNAVAILABLE), ("c", Code.UNAVAILABLE)]
    assert house.scheduler.inflight() == 0


def test_a_follower_leaves_alone() -> None:
    """Who is withdrawn while it waits hears CANCELLED in the next tick; the others do not notice."""
    house = House()
    house.submit(id="a")
    follower = house.submit(id="b")
    house.scheduler.withdraw(follower)
    assert (follower.cancelled, house.refused()) == (True, [])
    house.posted.pop()()
    assert house.refused() == [("b", Code.CANCELLED)]
    assert house.stats.failures[Reason.CANCELED] == 1
    house.held.answer()
    assert house.answered() == ["a"]


def test_an_answer_that_comes_first_wins() -> None:
    """A follower that is withdrawn and answered in one tick has one answer."""
    house = House()
    house.submit(id="a")
    house.scheduler.withdraw(house.submit(id="b"))
    house.held.answer()
    house.posted.pop()()
    assert (house.answered(), house.refused()) == (["a", "b"], [])


def test_priorities_do_not_wait_for_each_other() -> None:
    """A request of another priority or time-out is executed on its own; both may be answered from the cache later."""
    house = House()
    house.submit(id="a")
    house.submit(id="b", priority=1)
    house.submit(id="c", timeout_us=5)
    assert [request.id for request in house.held.taken] == ["a", "b", "c"]
    house.held.answer()
    house.submit(id="d", priority=1)
    assert house.answered() == ["a", "d"]


def test_several_answers_are_not_kept() -> None:
    """A request that is answered in pieces passes, piece by piece; who waited for it is executed."""
    house = House()
    house.submit(id="a")
    house.submit(id="b")
    request = house.held.taken.pop()
    request.sink.reply(request, InferResponse([]), False)
    request.sink.reply(request, FINAL, True)
    assert [final for _, _, final in house.sink.replies] == [False, True]
    assert [request.id for request in house.held.taken] == ["b"]
    house.held.answer()
    assert house.stats.cache_miss.count == 1


def test_what_is_too_large_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that can never be kept is given, counted as a miss, and warned of for its model once."""
    house = House(LocalCache(1024))
    big = InferResponse([Tensor("Y", UINT8, (4096,), bytes(4096))])
    for _ in range(2):
        house.submit()
        house.submit()
        house.held.answer(big)
    assert len(house.answered()) == 4
    assert house.stats.cache_miss.count == house.stats.cache_hit.count == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_stopped_scheduler_answers_nobody() -> None:
    """After `stop` what is remembered is refused like everything else; what was taken over is answered."""
    house = House()
    house.submit(id="a")
    house.held.answer()
    house.submit(1, id="b")
    house.scheduler.stop()
    with pytest.raises(InferError, match="stopped"):
        house.submit(id="c")
    house.held.answer()
    house.scheduler.close()
    assert house.answered() == ["a", "b"]
    assert house.held.calls == ["stop", "close"]


def test_a_refusal_is_the_callers() -> None:
    """A request that the queue does not take is the caller's again, as if there were no cache."""
    house = House()
    house.held.error = unavailable("Exceeds maximum queue size")
    with pytest.raises(InferError, match="Exceeds"):
        house.submit()
    assert house.sink.finals() == []
    house.held.error = None
    house.submit()
    assert len(house.held.taken) == 1


def test_who_is_cancelled_while_a_far_cache_is_asked() -> None:
    """The request is not executed when the cache knows nothing; who waited for it is."""
    far = Forgetful()
    house = House(far)
    first = house.submit(id="a")
    house.submit(id="b")
    first.cancelled = True
    assert house.scheduler.pending() == 2
    far.found.pop()(None)
    assert house.refused() == [("a", Code.CANCELLED)]
    assert [request.id for request in house.held.taken] == ["b"]
    assert house.scheduler.pending() == 0


def test_order_is_kept_with_refusals() -> None:
    """With preserve_ordering a hit waits for what was asked before, and a refused request holds up nobody."""
    house = House(line=Order())
    house.submit(0, id="a")
    house.held.answer()
    house.submit(1, id="b")
    house.submit(0, id="c")
    house.held.error = unavailable("Exceeds maximum queue size")
    house.submit(2, id="d")
    house.submit(0, id="e")
    assert house.answered() == ["a"]
    house.held.answer()
    assert house.answered() == ["a", "b", "c", "e"]
    assert house.refused() == [("d", Code.UNAVAILABLE)]


def remembered(config: ModelConfig, files: str, cache: LocalCache, generation: int = 1) -> list[bool]:
    """Whether each of two requests to a version with these files is executed."""
    held = Held()
    key = SimpleNamespace(directory="/r/m", config=b"c", shared="s", files=files)
    scheduler = Remember(cache, lambda call: call(), Order)(held, SPEC, config, ModelStats(), key)
    executed = []
    for _ in range(2):
        scheduler.submit(make_request(make_form(generation=generation)))
        executed.append(bool(held.taken))
        if held.taken:
            held.answer()
    return executed


def test_other_files_are_another_model() -> None:
    """Answers belong to the files that gave them, not to the load."""
    cache = LocalCache(1 << 20)
    runs: Sequence[list[bool]] = [remembered(ModelConfig(), files, cache) for files in ("1", "2", "1")]
    assert runs == [[True, False], [True, False], [False, False]]


def test_ensembles_forget_with_every_change() -> None:
    """An ensemble's answers are its members': they hold until any model comes or goes, in one process."""
    cache = LocalCache(1 << 20)
    config = ModelConfig()
    config.ensemble_scheduling.SetInParent()
    assert [remembered(config, "1", cache, generation) for generation in (1, 1)] == [[True, False]] * 2


@pytest.mark.parametrize("kind", ["decoupled", "sequential"])
def test_ensembles_of_models_without_a_cache_have_none(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A remembered answer would skip what a sequence has to keep, and there may be more or fewer answers than one."""
    spec = replace(SPEC, decoupled=kind == "decoupled")
    held = Held()
    held.sequential = kind == "sequential"  # type: ignore[attr-defined]
    key = SimpleNamespace(directory="/r/m", config=b"c", shared="s", files="f")
    remember = Remember(LocalCache(1 << 20), lambda call: call(), Order)
    scheduler = remember(held, spec, ModelConfig(), ModelStats(), key)
    for _ in range(2):
        scheduler.submit(make_request())
    assert len(held.taken) == 2
    assert "'response_cache' has no effect" in caplog.text


def test_any_number_of_refused_requests_is_no_depth() -> None:
    """Each of those who waited is asked for in its turn, also where the answer is "no" at once."""
    house = House()
    for n in range(2000):
        house.submit(id=str(n))
    (first,) = house.held.taken
    error = unavailable("Exceeds maximum queue size")

    def refuse(request: InferRequest, /) -> None:
        request.sink.fail(request, error)

    house.held.submit = refuse  # type: ignore[method-assign]
    first.sink.fail(first, error)
    assert [name for name, _ in house.refused()] == [str(n) for n in range(2000)]
    house.held.taken.clear()
    assert house.scheduler.inflight() == 0


def test_who_leads_when_it_is_withdrawn_leaves_the_queue() -> None:
    """It waited for another's answer when it was withdrawn, and stood in the queue a moment later."""
    house = House()
    house.submit(id="a")
    late = house.submit(id="b")
    (first,) = house.held.taken
    house.scheduler.withdraw(late)
    first.sink.fail(first, InferError(Code.CANCELLED, ""))
    for call in house.posted:
        call()
    assert house.held.taken[-1] is late
    assert house.held.calls == ["withdraw"]


def test_memory_that_changes_is_not_remembered() -> None:
    """A client that writes to its shared memory between question and execution harms nobody else."""
    house = House()
    memory = mmap.mmap(-1, 4096)
    for name, question in (("a", 1), ("b", 2)):
        memory[:8] = bytes([1] * 8)
        request = make_request(make_form(), name, house.sink, (memoryview(memory)[:8],))
        copy = house.scheduler._keys.of

        def of(asked: InferRequest, copy: Any = copy, question: int = question) -> bytes:
            # Written right after it was looked at.
            key = copy(asked)
            memory[:8] = bytes([question] * 8)
            return key  # type: ignore[no-any-return]

        house.scheduler._keys.of = of  # type: ignore[method-assign]
        house.scheduler._cache.close()
        house.scheduler.submit(request)
        house.scheduler._keys.of = copy  # type: ignore[method-assign]
        memory[:8] = bytes(8)
        house.held.answer()
        assert house.sink.replies[-1][1].outputs[0].data == bytes([question] * 8)
        house.submit(1, id=f"{name} again")
    # The first was what it said, and is remembered; the second was not.
    assert house.answered() == ["a", "a again", "b"]
    assert [request.id for request in house.held.taken] == ["b again"]


def test_many_threads_at_once() -> None:
    """Requests from several threads, answers and failures from others: each request is answered once, and rightly."""
    asked: queue.SimpleQueue[InferRequest | None] = queue.SimpleQueue()

    class Threads(Held):
        def submit(self, request: InferRequest, /) -> None:
            asked.put(request)

    def work() -> None:
        while (request := asked.get()) is not None:
            if request.data[0][0] == 4:
                request.sink.fail(request, internal("no"))
            else:
                request.sink.reply(request, InferResponse([Tensor("Y", UINT8, (8,), request.data[0])]), True)

    # Two of five answers fit, so that they come and go.
    sink = Recorder()
    scheduler = CachedScheduler(Threads(), LocalCache(1600), Keys(SPEC, b""), ModelStats(), lambda call: call(), "m")
    form = make_form()

    def submit(first: int) -> None:
        for n in range(1000):
            scheduler.submit(make_request(form, "", sink, (bytes([(first + n * n) % 5] * 8),)))

    workers = [threading.Thread(target=work) for _ in range(2)]
    clients = [threading.Thread(target=submit, args=(n,)) for n in range(3)]
    for thread in (*workers, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    sink.wait(3000)
    for _ in workers:
        asked.put(None)
    for thread in workers:
        thread.join()
    assert len(set(map(id, sink.finals()))) == len(sink.finals()) == 3000
    assert all(response.outputs[0].data == request.data[0] for request, response, _ in sink.replies)
    assert {request.data[0][0] for request, _ in sink.errors} == {4}
    assert scheduler.inflight() == 0
