"""Requests that ask the same at the same time: one is executed, every one is answered, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from conch.cache.api import Cache, Entry
from conch.cache.key import Keys
from conch.cache.local import LocalCache
from conch.cache.scheduler import CachedScheduler
from conch.observe.stats import ModelStats
from conch.types.dtype import FP32, UINT8
from conch.types.error import Code, InferError, unavailable
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.requests import Recorder, make_form, make_request

SPEC = ModelSpec("m", 1, 8, (TensorSpec("X", FP32, (2,)),), (TensorSpec("Y", UINT8, (-1,)),))


class Held:
    """A scheduler that keeps what it takes over until the test settles it."""

    def __init__(self) -> None:
        self.taken: list[InferRequest] = []
        self.full = False
        self.stopped = False

    def submit(self, request: InferRequest, /) -> None:
        if self.stopped or self.full:
            raise unavailable("stopped" if self.stopped else "Exceeds maximum queue size")
        self.taken.append(request)

    def withdraw(self, request: InferRequest, /) -> None:
        request.cancelled = True

    def pending(self) -> int:
        return len(self.taken)

    def inflight(self) -> int:
        return len(self.taken)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        assert not self.taken

    def answer(self, request: InferRequest) -> None:
        request.sink.reply(request, answer_to(request), True)
        self.taken.remove(request)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self.taken.remove(request)
        request.sink.fail(request, error)


class Slow:
    """A far cache whose answers come when the test turns it; `away` is a Redis that has gone."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.asked: list[tuple[bytes, Callable[[Entry | None], object]]] = []
        self.away = False

    def ask(self, key: bytes, found: Callable[[Entry | None], object], /) -> bool:
        if not self.away:
            self.asked.append((key, found))
        return not self.away

    def insert(self, key: bytes, entry: Entry, /) -> bool:
        self.entries[key] = entry
        return True

    def tell(self) -> None:
        asked, self.asked = self.asked, []
        for key, found in asked:
            found(None if self.away else self.entries.get(key))

    def close(self) -> None:
        """Nothing is held."""


def answer_to(request: InferRequest) -> InferResponse:
    return InferResponse([Tensor("Y", UINT8, (8,), bytes(request.data[0]))], {"n": 1})


class Flights(RuleBasedStateMachine):
    requests = Bundle("requests")
    far = False

    def __init__(self) -> None:
        super().__init__()
        self.held = Held()
        self.slow = Slow()
        self.posted: list[Callable[[], object]] = []
        self.sink = Recorder()
        self.stats = ModelStats()
        cache: Cache = self.slow if self.far else LocalCache(1 << 20)
        self.scheduler = CachedScheduler(
            self.held, cache, Keys(SPEC, b""), self.stats, self.posted.append, "m", clock=lambda: 0
        )
        #: Those that were taken over.
        self.given: list[InferRequest] = []
        self.seen: set[int] = set()

    @rule(target=requests, question=st.integers(0, 2), priority=st.integers(0, 1))
    def submit(self, question: int, priority: int) -> InferRequest:
        form = make_form(priority=priority)
        request = make_request(form, str(len(self.given)), self.sink, (bytes([question] * 8),))
        try:
            self.scheduler.submit(request)
        except InferError:
            assert request.sink is self.sink
        else:
            self.given.append(request)
        return request

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.held.taken:
            self.held.answer(data.draw(st.sampled_from(self.held.taken)))

    @rule(data=st.data(), code=st.sampled_from((Code.CANCELLED, Code.UNAVAILABLE, Code.INTERNAL)))
    def fail(self, data: st.DataObject, code: Code) -> None:
        if self.held.taken:
            self.held.fail(data.draw(st.sampled_from(self.held.taken)), InferError(code, "no"))

    @rule(request=requests)
    def withdraw(self, request: InferRequest) -> None:
        if request in self.given and request not in self.sink.finals():
            self.scheduler.withdraw(request)

    @rule()
    def turn(self) -> None:
        posted, self.posted[:] = list(self.posted), []
        for call in posted:
            call()
        self.slow.tell()

    @rule(full=st.booleans())
    def queue(self, full: bool) -> None:
        self.held.full = full

    @rule(away=st.booleans())
    def redis(self, away: bool) -> None:
        self.slow.away = away

    @invariant()
    def nobody_is_answered_twice_or_wrongly(self) -> None:
        finals = Counter(map(id, self.sink.finals()))
        assert not finals or max(finals.values()) == 1
        assert finals.keys() <= {id(request) for request in self.given}
        for request, response, final in self.sink.replies:
            assert final
            assert bytes(response.outputs[0].data) == bytes(request.data[0])
            assert response.parameters == {"n": 1}
            assert request.sink is self.sink

    @invariant()
    def one_is_executed_at_a_time(self) -> None:
        running = Counter((bytes(each.data[0]), each.form.priority) for each in self.held.taken)
        assert not running or max(running.values()) == 1

    @invariant()
    def what_is_not_settled_is_in_flight(self) -> None:
        assert self.scheduler.inflight() == len(self.given) - len(self.sink.finals())

    @invariant()
    def everything_is_counted(self) -> None:
        stats = self.stats
        executed = [request for request, _, _ in self.sink.replies]
        assert stats.cache_hit.count + stats.cache_miss.count == len(executed)
        assert stats.success.count == stats.queue.count == stats.cache_hit.count

    def teardown(self) -> None:
        self.scheduler.stop()
        for _ in range(100):
            self.turn()
            while self.held.taken:
                self.held.answer(self.held.taken[0])
        assert self.scheduler.inflight() == self.scheduler.pending() == 0
        assert len(self.sink.finals()) == len(self.given)
        self.scheduler.close()


class FarFlights(Flights):
    far = True


TestNear = Flights.TestCase
TestNear.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestFar = FarFlights.TestCase
TestFar.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
