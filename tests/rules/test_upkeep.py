"""Keepalive: when we ping, whom we give up, whose pings are too many, and when a connection is old."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.transport.http2_upkeep import Step, Upkeep, UpkeepRules

RULES = UpkeepRules(ping_after=10, ping_timeout=3, min_ping_interval=5, max_ping_strikes=2)


def test_a_silent_peer_is_pinged_and_given_up() -> None:
    """After the keepalive time comes a ping, after its time-out the end."""
    upkeep = Upkeep(RULES, 0.0)
    assert upkeep.check(9, heard=False, progress=1, calls=1) is Step.NOTHING
    assert upkeep.check(10, heard=False, progress=1, calls=1) is Step.PING
    assert upkeep.check(12, heard=False, progress=1, calls=1) is Step.NOTHING
    assert upkeep.check(13, heard=False, progress=1, calls=1) is Step.GIVE_UP


def test_anything_heard_answers_a_ping() -> None:
    """A peer that sends anything is alive; the next ping comes a keepalive time later."""
    upkeep = Upkeep(RULES, 0.0)
    assert upkeep.check(10, heard=False, progress=1, calls=1) is Step.PING
    assert upkeep.check(12, heard=True, progress=1, calls=1) is Step.NOTHING
    assert upkeep.check(21, heard=False, progress=1, calls=1) is Step.NOTHING
    assert upkeep.check(22, heard=False, progress=1, calls=1) is Step.PING


@pytest.mark.parametrize("permitted", [False, True])
def test_pings_without_calls_need_permission(permitted: bool) -> None:
    """A connection without calls is pinged only where that is permitted."""
    upkeep = Upkeep(UpkeepRules(ping_after=10, ping_without_calls=permitted), 0.0)
    assert upkeep.check(11, heard=False, progress=1, calls=0) is (Step.PING if permitted else Step.NOTHING)


@pytest.mark.parametrize("most", [0, 2])
def test_pings_without_data_are_counted(most: int) -> None:
    """So many pings without data in between, then none until data has gone; 0 means any number."""
    upkeep = Upkeep(UpkeepRules(ping_after=1, max_pings_without_data=most), 0.0)
    steps = [upkeep.check(2.0 * n, heard=n % 2 == 1, progress=1, calls=1) for n in range(1, 12)]
    assert steps.count(Step.PING) == (most or 5)
    assert upkeep.check(100, heard=True, progress=2, calls=1) is Step.NOTHING
    assert upkeep.check(102, heard=False, progress=2, calls=1) is Step.PING


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=40))
def test_a_peer_that_keeps_the_interval_is_never_sent_away(pings: list[tuple[float, bool]]) -> None:
    """Pings that are far enough apart, or come soon after data, are no strikes; with strikes left nobody goes."""
    upkeep, now, progress, strikes, last, moved = Upkeep(RULES, 0.0), 0.0, 0, 0, -math.inf, -math.inf
    for pause, data in pings:
        now += pause
        if data:
            progress += 1
            strikes, last, moved = 0, -math.inf, now
        if now - moved >= 2:
            strikes += now < last + RULES.min_ping_interval
            last = now
        assert upkeep.received_ping(now, progress, calls=1) is (strikes <= RULES.max_ping_strikes)
        if strikes > RULES.max_ping_strikes:
            return


def test_no_strikes_are_counted_without_a_limit() -> None:
    """A limit of 0 strikes lets every ping pass."""
    upkeep = Upkeep(UpkeepRules(max_ping_strikes=0), 0.0)
    assert all(upkeep.received_ping(0.0, 1, calls=0) for _ in range(100))


def test_an_old_connection_is_asked_to_leave_and_then_closed() -> None:
    """At its age GOAWAY; closed when its calls are done, or when the grace is over."""
    rules = UpkeepRules(max_age=100, max_age_grace=20)
    for calls, end in ((0, 101), (1, 120)):
        upkeep = Upkeep(rules, 0.0)
        assert upkeep.check(99, heard=True, progress=1, calls=1) is Step.NOTHING
        assert upkeep.check(100, heard=True, progress=1, calls=1) is Step.GOODBYE
        if calls:
            assert upkeep.check(119, heard=True, progress=1, calls=1) is Step.NOTHING
        assert upkeep.check(end, heard=True, progress=1, calls=calls) is Step.CLOSE
