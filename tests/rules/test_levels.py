"""Priority levels, queue policies per level, time-outs that delay: the batcher beside a simple model of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from conch.schedule.api import Turn
from conch.schedule.forming import Forming
from conch.schedule.levels import LevelBatcher
from conch.schedule.policy import QueuePolicy
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from support.requests import make_form, make_request

REJECT = QueuePolicy(timeout_ns=10)
DELAY = QueuePolicy(timeout_ns=10, delays=True)


def make_batcher(
    max_rows: int = 8,
    *,
    levels: int = 0,
    default: int = 0,
    policy: QueuePolicy | None = None,
    policies: Mapping[int, QueuePolicy] | None = None,
    preferred: tuple[int, ...] = (),
    delay_ns: int = 0,
) -> LevelBatcher:
    forming = Forming(max_rows, preferred, delay_ns)
    return LevelBatcher(forming, policy or QueuePolicy(), levels=levels, default=default, policies=policies)


def put(batcher: LevelBatcher, priority: int = 0, rows: int = 1, at: int = 0, timeout_us: int = 0) -> InferRequest:
    request = make_request(make_form(rows, priority=priority, timeout_us=timeout_us), queued_ns=at)
    batcher.offer(request, at)
    return request


def test_the_highest_level_goes_first() -> None:
    """Level 1 before level 2, whatever came first; inside a level in the order of arrival."""
    batcher = make_batcher(1, levels=2, default=2)
    low, high, low2, high2 = put(batcher, 2), put(batcher, 1), put(batcher, 2), put(batcher, 1)
    assert [batcher.take(0).run for _ in range(4)] == [[high], [high2], [low], [low2]]


def test_a_batch_spills_into_lower_levels() -> None:
    """What the highest level leaves free is filled from the next ones, in order."""
    batcher = make_batcher(4, levels=3, default=2)
    third, second, first = put(batcher, 3), put(batcher, 2, rows=2), put(batcher, 1)
    assert batcher.take(0).run == [first, second, third]


@pytest.mark.parametrize("priority", [0, 3, 99, 1 << 40])
def test_a_priority_that_is_no_level_is_the_default_level(priority: int) -> None:
    """Nothing said, or more than there are levels: the default level."""
    batcher = make_batcher(1, levels=2, default=1)
    low, other = put(batcher, 2), put(batcher, priority)
    assert [batcher.take(0).run for _ in range(2)] == [[other], [low]]


def test_without_levels_priorities_mean_nothing() -> None:
    """A single queue is first come, first served."""
    batcher = make_batcher(1)
    first, second = put(batcher, 2), put(batcher, 1)
    assert [batcher.take(0).run for _ in range(2)] == [[first], [second]]


def test_each_level_has_its_own_limit() -> None:
    """A level that is full refuses while others take more; a level without a policy has the default one."""
    batcher = make_batcher(
        1, levels=3, default=2, policy=QueuePolicy(max_size=2), policies={1: QueuePolicy(max_size=1)}
    )
    for priority, taken in ((1, 1), (2, 2), (3, 2)):
        for _ in range(taken):
            put(batcher, priority)
        with pytest.raises(InferError, match=r"\[request id: <id_unknown>\] Exceeds maximum queue size"):
            put(batcher, priority)
    assert len(batcher) == 5


def test_delayed_requests_run_after_those_in_time() -> None:
    """A request past its time-out falls behind all of its level that are not, and still before the next level."""
    batcher = make_batcher(1, levels=2, default=1, policy=DELAY)
    late, lower = put(batcher, 1), put(batcher, 2, at=5)
    fresh = put(batcher, 1, at=9)
    assert [batcher.take(11).run for _ in range(3)] == [[fresh], [late], [lower]]


def test_delayed_requests_count_for_the_size_of_their_level() -> None:
    """They still wait."""
    batcher = make_batcher(1, policy=QueuePolicy(max_size=2, timeout_ns=10, delays=True))
    put(batcher)
    batcher.expire(20)
    put(batcher, at=20)
    with pytest.raises(InferError, match="Exceeds maximum queue size"):
        put(batcher, at=21)


def test_a_delayed_request_leaves_when_its_client_does() -> None:
    """The time-out of the queue only sets it back; the client's own deadline ends it."""
    batcher = make_batcher(1, policy=DELAY)
    request = make_request(make_form())
    request.expires_ns = 30
    batcher.offer(request, 0)
    assert batcher.expire(15).refuse == []
    assert batcher.next_deadline == 30
    assert [error.message for _, error in batcher.expire(30).refuse] == ["Request timeout expired"]


def test_levels_differ_in_what_a_timeout_does() -> None:
    """One level refuses, another delays."""
    batcher = make_batcher(1, levels=2, default=1, policy=REJECT, policies={2: DELAY})
    gone, kept = put(batcher, 1), put(batcher, 2)
    turn = batcher.take(10)
    assert ([request for request, _ in turn.refuse], turn.run) == ([gone], [kept])


@pytest.mark.parametrize(("asked_us", "end"), [(0, 10_000), (4, 4000), (10, 10_000), (11, 10_000)])
def test_an_override_is_granted_when_it_is_shorter(asked_us: int, end: int) -> None:
    """The request's own time-out counts only below that of the policy."""
    batcher = make_batcher(1, policy=QueuePolicy(timeout_ns=10_000, allow_override=True))
    assert put(batcher, timeout_us=asked_us).deadline_ns == end


def test_an_override_of_no_timeout_is_not_granted() -> None:
    """A queue without a time-out has none for anybody."""
    batcher = make_batcher(1, policy=QueuePolicy(allow_override=True))
    assert put(batcher, timeout_us=5).deadline_ns == 0


def test_the_oldest_of_a_batch_ends_the_delay_whatever_its_level() -> None:
    """A batch waits for a preferred size until any of its requests has waited the delay."""
    batcher = make_batcher(8, levels=2, default=1, preferred=(4,), delay_ns=50)
    old, new = put(batcher, 2, at=10), put(batcher, 1, at=40)
    assert (batcher.take(45).run, batcher.take(45).ask_at) == ([], 60)
    assert batcher.take(60).run == [new, old]


def test_a_timeout_nearer_than_the_delay_is_when_to_ask_again() -> None:
    """Who waits for a fuller batch is refused when its time is over, not after the delay."""
    batcher = make_batcher(8, preferred=(4,), delay_ns=50, policy=REJECT)
    request = put(batcher)
    assert batcher.take(1).ask_at == 10
    assert [each for each, _ in batcher.take(10).refuse] == [request]


def test_cancelled_requests_do_not_run() -> None:
    """Wherever they stand in the batch they are refused, and an empty batch is not handed out."""
    batcher = make_batcher(2, levels=2, default=1)
    a, b, c = put(batcher, 1), put(batcher, 1), put(batcher, 2)
    a.cancelled = b.cancelled = True
    turn = batcher.take(0)
    assert (turn.run, [(each, error.code) for each, error in turn.refuse]) == (
        [c],
        [(a, Code.CANCELLED), (b, Code.CANCELLED)],
    )


def test_deadlines_of_requests_that_ran_are_forgotten() -> None:
    """Nobody is woken for them, and they cost no memory."""
    batcher = make_batcher(1, policy=REJECT)
    slow = make_batcher(1, levels=2, default=2, policy=REJECT)
    put(slow, 2)
    for number in range(1000):
        put(batcher, at=number)
        put(slow, 1, at=number)
        assert batcher.take(number).run
        assert slow.take(0).run
    assert batcher.next_deadline == 0
    assert len(slow._ends) < 200


POLICIES = (
    QueuePolicy(),
    QueuePolicy(max_size=2),
    QueuePolicy(timeout_ns=6),
    QueuePolicy(timeout_ns=6, delays=True),
    QueuePolicy(timeout_ns=9, allow_override=True, delays=True),
    QueuePolicy(max_size=4, timeout_ns=9, allow_override=True),
)


class Simple:
    """A level as lists: those in time, those delayed."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.fresh: list[InferRequest] = []
        self.delayed: list[InferRequest] = []
        self.ends: dict[InferRequest, int] = {}

    def pass_time(self, now: int) -> None:
        for request in sorted(self.fresh, key=lambda each: self.ends.get(each, 0)):
            if self.policy.delays and request in self.ends and self.ends[request] <= now:
                self.fresh.remove(request)
                self.delayed.append(request)


class Levels(RuleBasedStateMachine):
    """Any history: nothing lost, nothing twice, levels and their order kept, each policy obeyed."""

    requests = Bundle("requests")

    @initialize(
        max_rows=st.integers(1, 6),
        delay=st.sampled_from([0, 0, 4]),
        count=st.integers(0, 3),
        policies=st.lists(st.sampled_from(POLICIES), min_size=4, max_size=4),
    )
    def begin(self, max_rows: int, delay: int, count: int, policies: list[QueuePolicy]) -> None:
        self.max_rows, self.delay, self.count = max_rows, delay, count
        self.default = min(2, count)
        self.batcher = make_batcher(
            max_rows,
            levels=count,
            default=self.default,
            policy=policies[0],
            policies=dict(enumerate(policies)) if count else {},
            delay_ns=delay,
        )
        self.levels = {n: Simple(policies[n] if n else policies[0]) for n in (range(1, count + 1) if count else [0])}
        self.now = 0
        self.gone: list[InferRequest] = []

    def waiting(self) -> list[InferRequest]:
        return [each for number in sorted(self.levels) for each in self._line(self.levels[number])]

    def _line(self, level: Simple) -> list[InferRequest]:
        return level.fresh + level.delayed

    @rule(
        target=requests,
        rows=st.integers(1, 4),
        key=st.sampled_from([None, None, "a"]),
        priority=st.integers(0, 4),
        hurry=st.sampled_from([0, 0, 3, 20]),
        leaves=st.sampled_from([0, 0, 0, 2, 15]),
    )
    def offer(self, rows: int, key: object, priority: int, hurry: int, leaves: int) -> InferRequest:
        # Times in the batcher are nanoseconds; the override of 3 us is longer than any of them, so it is none.
        form = make_form(min(rows, self.max_rows), key, timeout_us=hurry, priority=priority)
        request = make_request(form, queued_ns=self.now)
        request.expires_ns = self.now + leaves if leaves else 0
        level = self.levels[priority if 0 < priority <= self.count else self.default]
        full = level.policy.max_size and len(self._line(level)) >= level.policy.max_size
        try:
            self.batcher.offer(request, self.now)
        except InferError:
            assert full
        else:
            assert not full
            level.fresh.append(request)
            if level.policy.timeout_ns:
                level.ends[request] = self.now + level.policy.timeout_ns
        return request

    @rule(request=requests)
    def cancel(self, request: InferRequest) -> None:
        request.cancelled = True

    @rule(step=st.integers(0, 7))
    def wait(self, step: int) -> None:
        self.now += step

    def _leave(self, request: InferRequest) -> None:
        for level in self.levels.values():
            for line in (level.fresh, level.delayed):
                if request in line:
                    line.remove(request)
                    self.gone.append(request)
                    return
        raise AssertionError("it did not wait")

    def _over(self, request: InferRequest) -> bool:
        """Whether its time is over, by the policy that refuses or by its client."""
        if request.expires_ns and request.expires_ns <= self.now:
            return True
        return any(
            not level.policy.delays and level.ends.get(request, self.now + 1) <= self.now
            for level in self.levels.values()
        )

    def _refused(self, turn: Turn) -> None:
        for request, error in turn.refuse:
            assert request.cancelled or self._over(request)
            assert (error.code is Code.CANCELLED) == request.cancelled
            self._leave(request)
        for level in self.levels.values():
            level.pass_time(self.now)
        assert not [each for each in self.waiting() if self._over(each)], "all leave on time"

    @rule()
    def expire(self) -> None:
        turn = self.batcher.expire(self.now)
        self._refused(turn)
        assert turn.run == []

    @rule()
    def sweep(self) -> None:
        self._refused(self.batcher.sweep(self.now))
        assert not [each for each in self.waiting() if each.cancelled]

    @rule()
    def take(self) -> None:
        turn = self.batcher.take(self.now)
        self._refused(turn)
        assert turn.run == self.waiting()[: len(turn.run)], "levels, then time-outs, then arrival"
        assert sum(each.form.rows for each in turn.run) <= self.max_rows
        assert len({each.form.batch_key for each in turn.run}) <= 1
        assert not [each for each in turn.run if each.cancelled]
        if self.waiting() and not turn.run:
            assert self.delay
            assert turn.ask_at > self.now, "who waits is told until when"
        for request in turn.run:
            self._leave(request)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "batcher"):
            assert len(self.batcher) == len(self.waiting())
            assert len(set(map(id, self.gone))) == len(self.gone)
            ends = [each.expires_ns for each in self.waiting() if each.expires_ns]
            assert not ends or 0 < self.batcher.next_deadline <= min(ends)

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.now += 1000
            for _ in range(len(self.waiting()) + 1):
                self.take()
            assert not self.waiting(), "whoever is not refused runs at last"


TestLevels = Levels.TestCase
TestLevels.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
