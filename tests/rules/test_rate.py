"""The rate limiter through random histories: resources, turns, and that nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from conch.schedule.rate import Demand, Limit, RateLimiter, Resource, Ticket
from conch.types.error import Code, InferError

A, B = Resource("a", 0), Resource("b", None)
NAMES = [Resource("a", 0), Resource("a", 1), Resource("b", None), Resource("c", 0)]

demands = st.builds(
    Demand,
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), max_size=3),
    st.integers(0, 3),
)


class Histories(RuleBasedStateMachine):
    """Instances come, ask, execute, end and go in any order; the model is who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter = RateLimiter()
        self.resting: list[Ticket] = []
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []

    def granted(self, tickets: list[Ticket]) -> None:
        assert len(set(tickets)) == len(tickets)
        for ticket in tickets:
            self.waiting.remove(ticket)
            self.running.append(ticket)

    @rule(demands=st.lists(demands, max_size=3))
    def join(self, demands: list[Demand]) -> None:
        self.resting += self.limiter.join(demands)

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        if self.resting:
            ticket = data.draw(st.sampled_from(self.resting))
            self.resting.remove(ticket)
            self.waiting.append(ticket)
            self.granted(self.limiter.ask(ticket))

    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        if self.running:
            ticket = data.draw(st.sampled_from(self.running))
            self.running.remove(ticket)
            self.resting.append(ticket)
            self.granted(self.limiter.done(ticket))

    @rule(data=st.data(), again=st.booleans())
    def leave(self, data: st.DataObject, again: bool) -> None:
        everybody = self.resting + self.waiting + self.running
        if everybody:
            ticket = data.draw(st.sampled_from(everybody))
            for group in (self.resting, self.waiting, self.running):
                if ticket in group:
                    group.remove(ticket)
            self.granted(self.limiter.leave(ticket))
            if again:
                assert self.limiter.leave(ticket) == []
                assert self.limiter.done(ticket) == []

    @invariant()
    def nobody_holds_more_than_there_is(self) -> None:
        """What runs together never needs more than the most demanding instance at the time of its grant."""
        used: Counter[Resource] = Counter()
        for ticket in self.running:
            used.update({resource: count for resource, count in ticket.demand.resources.items() if count})
        for resource, count in used.items():
            assert self.limiter._used[resource] == count

    @invariant()
    def somebody_runs_if_somebody_waits(self) -> None:
        """With nothing in use there is no reason to wait."""
        assert self.running or not self.waiting


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(
    st.lists(demands, min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=10, max_size=60),
)
def test_resources_are_never_exceeded(demands: list[Demand], ends: list[int]) -> None:
    """While nobody comes or goes, what runs together fits into what there is."""
    limiter = RateLimiter()
    tickets = limiter.join(demands)
    most: Counter[Resource] = Counter()
    for demand in demands:
        most |= Counter(dict(demand.resources))
    running: list[Ticket] = []
    for ticket in tickets:
        running += limiter.ask(ticket)
    for end in ends:
        used: Counter[Resource] = Counter()
        for ticket in running:
            used.update(dict(ticket.demand.resources))
        assert all(count <= most[resource] for resource, count in used.items())
        if running:
            ticket = running.pop(end % len(running))
            running += limiter.done(ticket)
            running += limiter.ask(ticket)


@settings(deadline=None)
@given(st.lists(demands, min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=200, max_size=200))
def test_nobody_starves(demands: list[Demand], ends: list[int]) -> None:
    """Of instances that always have work, each executes again before the others have done so too often."""
    limiter = RateLimiter()
    tickets = limiter.join(demands)
    running: list[Ticket] = []
    since = dict.fromkeys(tickets, 0)

    def began(granted: list[Ticket]) -> None:
        for ticket in granted:
            since[ticket] = 0
        running.extend(granted)

    for ticket in tickets:
        began(limiter.ask(ticket))
    for end in ends:
        # The oldest ends, now and then another one: an execution does not last for ever.
        ticket = running.pop(end % min(2, len(running)))
        for other in tickets:
            if other not in running and other is not ticket:
                since[other] += 1
        began(limiter.done(ticket))
        began(limiter.ask(ticket))
        assert max(since.values()) <= 12 * len(tickets)


def test_priorities_share_turns() -> None:
    """Where several wait, priority 2 gets half as many turns as priority 1."""
    limiter = RateLimiter()
    tickets = limiter.join([Demand({A: 1}, priority) for priority in (1, 1, 2, 2)])
    granted = [ticket for each in tickets for ticket in limiter.ask(each)]
    turns: Counter[int] = Counter()
    for _ in range(600):
        (running,) = granted
        turns[running.demand.priority] += 1
        granted = limiter.done(running) + limiter.ask(running)
    assert 390 <= turns[1] <= 410


def test_a_late_comer_begins_where_the_others_are() -> None:
    """Who joins after a thousand executions does not get the next thousand turns."""
    limiter = RateLimiter()
    (old,) = limiter.join([Demand({A: 1})])
    for _ in range(1000):
        assert limiter.ask(old) == [old]
        limiter.done(old)
    (new,) = limiter.join([Demand({A: 1})])
    assert limiter.ask(new) == [new]
    assert limiter.ask(old) == []
    assert limiter.done(new) == [old]


def test_who_waits_holds_up_only_those_that_need_the_same() -> None:
    """A large demand is not overtaken on its own resource, and others are not its business."""
    limiter = RateLimiter([Limit("a", 2), Limit("b", 1)])
    small, large, other, late = limiter.join([Demand({A: 1}), Demand({A: 2}), Demand({B: 1}), Demand({A: 1})])
    assert limiter.ask(small) == [small]
    assert limiter.ask(large) == []
    assert limiter.ask(late) == []
    assert limiter.ask(other) == [other]
    assert limiter.done(small) == [large]
    assert limiter.done(large) == [late]


@pytest.mark.parametrize(
    ("limits", "resources", "text"),
    [
        ([Limit("a", 1)], {A: 2}, 'Resource count for "a" is limited to 1 .* the minimum required count is 2'),
        ([Limit("a", 5, 1)], {A: 1}, 'Resource count for "a" is limited to 0 '),
        ([Limit("z", 5)], {A: 1}, 'Resource count for "a" is limited to 0 '),
        ([], {Resource("b", 0): 1, B: 1}, 'Resource "b" is present as both global and device-specific resource'),
    ],
)
def test_what_could_never_execute_is_refused(limits: list[Limit], resources: dict[Resource, int], text: str) -> None:
    """Triton's words, and the limiter is as it was."""
    limiter = RateLimiter(limits)
    with pytest.raises(InferError, match=text) as caught:
        limiter.join([Demand({}), Demand(resources)])
    assert caught.value.code is Code.INVALID_ARG
    assert not limiter._tickets


def test_limits_of_devices() -> None:
    """A limit without a device holds on each; of a global resource the device is void."""
    limiter = RateLimiter([Limit("a", 2, 0), Limit("a", 1), Limit("b", 3, 7)])
    limiter.join([Demand({Resource("a", 0): 2}), Demand({Resource("a", 5): 1}), Demand({B: 3})])
    with pytest.raises(InferError):
        limiter.join([Demand({Resource("a", 5): 2})])
