"""Who is next to have work done beside the event loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conch.transport.aside import Turns


def test_a_hundred_jobs_of_one_owner_hold_another_up_by_one() -> None:
    """Owners take turns, whoever came first and with however much."""
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.join("a", f"a{number}")
    turns.join("b", "b0")
    turns.join("b", "b1")
    assert [turns.next() for _ in range(5)] == ["a0", "b0", "a1", "b1", "a2"]


@given(st.lists(st.sampled_from("abc") | st.none(), max_size=60))
def test_nothing_is_lost_and_each_owners_order_is_kept(steps: list[str | None]) -> None:
    """A letter is something that joins, None somebody who asks."""
    turns: Turns[tuple[str, int]] = Turns()
    found: list[tuple[str, int]] = []
    joined = 0
    for step in steps:
        if step is not None:
            turns.join(step, (step, joined))
            joined += 1
        elif (item := turns.next()) is not None:
            found.append(item)
    while (item := turns.next()) is not None:
        found.append(item)
    assert len(found) == joined
    assert len(turns) == 0
    for owner in "abc":
        numbers = [number for name, number in found if name == owner]
        assert numbers == sorted(numbers)
