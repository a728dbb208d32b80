"""State never leaks: random histories of sequences against a dictionary of accumulators."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conch.types.error import Code, InferError, internal
from conch.types.request import InferRequest
from support.sequences import MS, STATE, Bench

IDLE = 50 * MS
START, END = 1, 2


@dataclass
class Life:
    """One sequence as its client sees it: from START on, until END, an idle time-out or a cancellation."""

    total: int = 0
    #: Requests without an answer, in order.
    open: list[InferRequest] = field(default_factory=list)
    #: When the last answer came.
    since: int = 0
    #: Its END is on its way: only START may follow.
    ended: bool = False
    #: It was cancelled: its answers change nothing any more.
    dead: bool = False


class Sequences(RuleBasedStateMachine):
    @initialize(
        oldest=st.booleans(),
        slots=st.integers(1, 3),
        batch=st.integers(0, 3),
        instances=st.integers(1, 2),
        delay=st.sampled_from([0, 2000]),
        by_state=st.booleans(),
    )
    def begin(self, oldest: bool, slots: int, batch: int, instances: int, delay: int, by_state: bool) -> None:
        strategy = (
            f"oldest {{ max_candidate_sequences: {slots} max_queue_delay_microseconds: {delay} }}"
            if oldest
            else f"direct {{ max_queue_delay_microseconds: {delay} minimum_slot_utilization: 0.9 }}"
        )
        inside = f"max_sequence_idle_microseconds: {IDLE // 1000} {strategy} {STATE if by_state else ''}"
        self.bench = Bench(inside, batch=batch, instances=instances)
        self.by_state = by_state
        self.slots = (slots if oldest else max(1, batch)) * instances
        self.lives: dict[int, Life] = {}
        self.life_of: dict[InferRequest, Life] = {}
        self.sent: list[InferRequest] = []
        self.seen = 0

    @rule(name=st.integers(1, 6), flags=st.integers(0, 3), value=st.integers(-9, 9))
    def send(self, name: int, flags: int, value: int) -> None:
        life = self.lives.get(name)
        wanted = bool(flags & START) or (life is not None and not life.ended)
        if not wanted:
            with pytest.raises(InferError, match="must specify the START flag"):
                self.bench.send(name, flags, value)
            return
        request = self.bench.send(name, flags, value)
        if life is None:
            life = self.lives[name] = Life()
        life.ended = bool(flags & END)
        life.open.append(request)
        self.life_of[request] = life
        self.sent.append(request)

    @rule()
    def turn(self) -> None:
        self.bench.loop.settle()
        self.heed()

    @rule(lane=st.integers(0, 1), fails=st.booleans())
    def finish(self, lane: int, fails: bool) -> None:
        lane %= len(self.bench.instances)
        if self.bench.instances[lane].idle is None:
            return
        self.bench.finish(lane, internal("no") if fails and lane == 0 else None)
        self.heed()

    @rule(ms=st.sampled_from([1, 5, 60]))
    def pass_time(self, ms: int) -> None:
        self.bench.loop.advance(ms * MS)
        now = self.bench.loop.now
        for name, life in list(self.lives.items()):
            if not life.open and now >= life.since + IDLE:
                del self.lives[name]
        self.heed()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """What waits of the sequence goes; what runs is answered."""
        self.bench.loop.settle()
        self.heed()
        open_ = [request for request in self.sent if request not in self.bench.sink.of and not request.cancelled]
        if not open_:
            return
        request = data.draw(st.sampled_from(open_))
        running = self.running()
        life = self.life_of[request]
        # What waits behind its END is another sequence of the same id.
        ends = request in running and request.form.flags & END
        waiting = [each for each in life.open if each not in running and not ends]
        request.form.withdraw(request)
        self.bench.loop.settle()
        if waiting:
            for each in waiting:
                error = self.bench.sink.of[each]
                assert isinstance(error, InferError)
                assert error.code is Code.CANCELLED
                life.open.remove(each)
            life.dead = True
            for name in [name for name, each in self.lives.items() if each is life]:
                del self.lives[name]
        self.heed()

    @invariant()
    def rows_are_sound(self) -> None:
        """One request per id at a time, on distinct slots; rows without a request are not ready."""
        if not hasattr(self, "bench"):
            return
        running = self.running()
        names = [request.form.correlation_id for request in running]
        assert len(names) == len(set(names)) <= self.slots
        for instance in self.bench.instances:
            assert len(instance.batch) <= max(1, self.bench.config.max_batch_size)
            for row in instance.rows():
                assert row.controls["READY"] == (row.request.client is not None)  # type: ignore[attr-defined]

    @invariant()
    def work_is_not_forgotten(self) -> None:
        """Once the loop has nothing to do and no alarm is set, requests wait only for a busy instance."""
        if not hasattr(self, "bench") or self.bench.loop.posted:
            return
        if all(instance.idle is None for instance in self.bench.instances) and self.bench.scheduler.pending():
            assert [timer for timer in self.bench.loop.timers if not timer.cancelled]

    def running(self) -> list[InferRequest]:
        return [
            request.client  # type: ignore[attr-defined]
            for instance in self.bench.instances
            for request in instance.batch
            if request.client is not None  # type: ignore[attr-defined]
        ]

    def heed(self) -> None:
        """Compare the answers that have come with what they must be."""
        order = self.bench.sink.order
        for request in order[self.seen :]:
            life, answer = self.life_of[request], self.bench.sink.of[request]
            if request not in life.open:
                continue
            assert life.open[0] is request, "out of order"
            life.open.pop(0)
            life.since = self.bench.loop.now
            if request.form.flags & START:
                life.total = 0
            if isinstance(answer, int):
                life.total += int.from_bytes(request.data[0], "little", signed=True)
                assert answer == life.total
            if not life.open and life.ended:
                for name in [name for name, each in self.lives.items() if each is life]:
                    del self.lives[name]
        self.seen = len(order)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for _ in range(200):
            self.bench.loop.advance(3 * MS)
            self.bench.drain()
            self.heed()
            if len(self.bench.sink.of) == len(self.sent):
                break
            # Sequences that never end give their slots back when they have been idle.
            self.bench.loop.advance(IDLE)
        assert len(self.bench.sink.of) == len(self.sent)
        assert self.bench.scheduler.pending() == self.bench.scheduler.inflight() == 0


def test_state_never_leaks() -> None:
    """Whatever is sent, fails, waits too long or is cancelled: a sequence's answers are those of its own requests."""
    run_state_machine_as_test(Sequences, settings=settings(max_examples=200, stateful_step_count=50, deadline=None))
