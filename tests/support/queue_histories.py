"""Any history of a queue that refuses by one policy: what holds of it whatever the order in which it runs requests."""

from __future__ import annotations

from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from conch.schedule.api import Turn
from conch.types.error import Code, InferError
from conch.types.request import InferRequest


class Batcher(Protocol):
    """What the histories ask of a batcher. Times are nanoseconds."""

    def __len__(self) -> int: ...

    def offer(self, request: InferRequest, now: int, /) -> None: ...

    def take(self, now: int, /) -> Turn: ...

    def expire(self, now: int, /) -> Turn: ...

    def sweep(self, now: int, /) -> Turn: ...


class QueueHistory(RuleBasedStateMachine):
    """Offers are the heirs' to make (`put`), and they say what a batch may be (`ran`)."""

    requests = Bundle("requests")
    batcher: Batcher

    def begin_with(self, batcher: Batcher, max_size: int) -> None:
        self.batcher, self.max_size = batcher, max_size
        self.now = 0
        self.waiting: list[InferRequest] = []
        self.gone: list[InferRequest] = []

    def put(self, request: InferRequest, leaves: int) -> InferRequest:
        """Its client waits for so long (0: for ever)."""
        request.expires_ns = max(1, self.now + leaves) if leaves else 0
        full = self.max_size and len(self.waiting) >= self.max_size
        try:
            self.batcher.offer(request, self.now)
        except InferError:
            assert full
        else:
            assert not full
            self.waiting.append(request)
        return request

    def ran(self, turn: Turn) -> None:
        """What must hold of what runs now, and of who waits on; `waiting` has all of them."""
        raise NotImplementedError

    @rule(request=requests)
    def cancel(self, request: InferRequest) -> None:
        request.cancelled = True

    @rule(step=st.integers(0, 12))
    def wait(self, step: int) -> None:
        self.now += step

    def refused(self, turn: Turn) -> None:
        for request, error in turn.refuse:
            assert request.cancelled or 0 < request.deadline_ns <= self.now, error
            assert (error.code is Code.CANCELLED) == request.cancelled
            self.waiting.remove(request)
            self.gone.append(request)
        ends = [request.deadline_ns for request in self.waiting if request.deadline_ns]
        assert not ends or 0 < turn.ask_at <= min(ends), "nobody leaves later than on time"

    @rule()
    def sweep(self) -> None:
        turn = self.batcher.sweep(self.now)
        self.refused(turn)
        assert turn.run == []
        assert not [request for request in self.waiting if request.cancelled]

    @rule()
    def expire(self) -> None:
        self.refused(self.batcher.expire(self.now))
        assert not [r for r in self.waiting if r.deadline_ns and r.deadline_ns <= self.now]

    @rule()
    def take(self) -> None:
        turn = self.batcher.take(self.now)
        self.refused(turn)
        self.ran(turn)
        for request in turn.run:
            assert not request.deadline_ns or request.deadline_ns > self.now, "no expired request is executed"
            assert not request.expires_ns or request.expires_ns > self.now, "nor one whose client waits no longer"
            self.waiting.remove(request)
        self.gone += turn.run

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "batcher"):
            assert len(self.batcher) == len(self.waiting)
            assert len(set(map(id, self.gone))) == len(self.gone)

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.now += 1000
            for _ in range(len(self.waiting) + 1):
                self.take()
            assert not self.waiting, "after the delay every request leaves"
