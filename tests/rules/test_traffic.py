"""Who answers: exact shares, keys that stay where they are, sequences that stay where they began."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conch.registry.traffic import END, START, Choice, Pins, Split, owner, place_of, seed_of

weights = st.one_of(
    st.integers(0, 50),
    st.floats(0.001, 100, allow_nan=False).map(lambda value: round(value, 3)),
)
KEYS = [f"user-{number}" for number in range(1000)]


def owners(names: list[str], shares: list[float]) -> dict[str, str]:
    arms = [(n, seed_of(name), share) for n, (name, share) in enumerate(zip(names, shares, strict=True)) if share]
    return {key: names[owner(place_of(key), arms)] for key in KEYS}


@given(st.lists(weights, min_size=1, max_size=8).filter(any), st.integers(1, 400))
@settings(deadline=None)
def test_after_any_number_of_turns_shares_are_exact_within_one(shares: list[float], turns: int) -> None:
    """At every moment each arm has had its share of the turns so far, less than one more or less."""
    split = Split(shares)
    total = sum(Fraction(str(share)) for share in shares)
    had = [0] * len(shares)
    for turn in range(1, turns + 1):
        had[split.next()] += 1
        for share, count in zip(shares, had, strict=True):
            assert abs(count - turn * Fraction(str(share)) / total) < 1


def test_long_cycles_are_exact_as_well() -> None:
    """Weights without a small common measure are followed to the last turn."""
    split = Split([99.99, 0.01])
    assert Counter(split.next() for _ in range(10_000)) == {0: 9999, 1: 1}


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.integers(0, 5), st.floats(0.1, 10))
@settings(deadline=None, max_examples=25)
def test_a_changed_weight_moves_only_keys_of_that_arm(shares: list[int], place: int, factor: float) -> None:
    """A greater weight takes keys and loses none, a smaller one gives away and gets none."""
    place %= len(shares)
    names = [f"m:{number}" for number in range(len(shares))]
    changed = [share * factor if number == place else share for number, share in enumerate(shares)]
    before, after = owners(names, list(map(float, shares))), owners(names, changed)
    for key in KEYS:
        if before[key] != after[key]:
            assert (after if factor > 1 else before)[key] == names[place]


def test_keys_are_shared_by_weight() -> None:
    """Of many keys each arm gets about its share, whatever the order of the arms."""
    many = [f"{number}@example.org" for number in range(20_000)]
    for names in (["m:1", "m:2", "m:3"], ["m:3", "m:1", "m:2"]):
        shares = {"m:1": 70.0, "m:2": 20.0, "m:3": 10.0}
        arms = [(n, seed_of(name), shares[name]) for n, name in enumerate(names)]
        counts = Counter(names[owner(place_of(key), arms)] for key in many)
        for name, share in shares.items():
            assert abs(counts[name] / len(many) - share / 100) < 0.015


def test_keys_are_where_they_were_in_another_process() -> None:
    """A restart, or another server with the same route, sends a key to the same arm: these are fixed for ever."""
    arms = [(0, seed_of("m:1"), 1.0), (1, seed_of("m:2"), 1.0)]
    assert [owner(place_of(f"user-{n}"), arms) for n in range(16)] == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1]


@given(st.lists(weights, min_size=1, max_size=6).filter(any), st.data())
@settings(deadline=None)
def test_arms_that_are_not_ready_get_nothing(shares: list[float], data: st.DataObject) -> None:
    """The others share by their weights what would have been theirs; with none left, none is chosen."""
    numbers = st.lists(st.integers(0, len(shares) - 1), unique=True)
    ready = data.draw(numbers)
    choice = Choice([f"m:{n}" for n in range(len(shares))], shares)
    choice.settle(ready)
    able = [number for number in ready if shares[number]]
    picked = Counter(choice.next() for _ in range(60))
    stuck = {choice.of(key) for key in KEYS[:50]}
    assert set(picked) | stuck <= (set(able) or {-1})
    total = sum(Fraction(str(shares[number])) for number in able)
    for number in able:
        assert abs(picked[number] - 60 * Fraction(str(shares[number])) / total) < 1


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
@settings(deadline=None, max_examples=25)
def test_only_keys_of_a_lost_arm_move(shares: list[int], data: st.DataObject) -> None:
    """Who stuck to an arm that is still there stays, and all come back when the lost one does."""
    lost = data.draw(st.integers(0, len(shares) - 1))
    choice = Choice([f"m:{n}" for n in range(len(shares))], shares)
    every = list(range(len(shares)))
    choice.settle(every)
    before = {key: choice.of(key) for key in KEYS}
    epoch = choice.epoch
    choice.settle([number for number in every if number != lost])
    assert choice.epoch > epoch
    for key, arm in before.items():
        assert (choice.of(key) == arm) == (arm != lost)
    choice.settle(every)
    assert {key: choice.of(key) for key in KEYS} == before


def test_nothing_changes_while_the_same_arms_are_ready() -> None:
    """Being told again what is known begins no new round of turns."""
    choice = Choice(["m:1", "m:2"], [1, 2])
    choice.settle([0, 1])
    first = [choice.next() for _ in range(2)]
    epoch = choice.epoch
    choice.settle([0, 1])
    assert choice.epoch == epoch
    assert Counter([*first, choice.next()]) == {0: 1, 1: 2}


class Sequences(RuleBasedStateMachine):
    """Sequences begin, go on and end in any order, more of them than are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 4
        self.pins: Pins[int] = Pins(self.most)
        #: The model: what is known, the one heard of least recently first.
        self.known: dict[int | str, int] = {}
        self.place = 0

    @rule(sequence=st.sampled_from([1, 2, 3, "1", "a", "b", 7]), flags=st.integers(0, 3))
    def ask(self, sequence: int | str, flags: int) -> None:
        found = self.pins.find(sequence, flags)
        assert found == (None if flags & START else self.known.get(sequence))
        self.place += 1
        place = self.place if found is None else found
        self.pins.note(sequence, flags, place)
        self.known.pop(sequence, None)
        if not flags & END:
            self.known[sequence] = place
        if len(self.known) > self.most:
            del self.known[next(iter(self.known))]

    @precondition(lambda self: self.known)
    @rule()
    def go_on(self) -> None:
        sequence, place = next(iter(self.known.items()))
        assert self.pins.find(sequence, 0) == place

    @invariant()
    def bounded(self) -> None:
        assert len(self.pins) == len(self.known) <= self.most


TestSequences = Sequences.TestCase


@given(st.floats(0, 1).map(lambda value: round(value, 4)), st.integers(1, 300))
@settings(deadline=None)
def test_a_fraction_is_exact_within_one(fraction: float, turns: int) -> None:
    """A shadow gets its share of requests at every moment, less than one more or less."""
    share = Fraction(str(fraction))
    assume(share in (0, 1) or share >= Fraction(1, 1000))
    split = Split([share, 1 - share])
    got = 0
    for turn in range(1, turns + 1):
        got += split.next() == 0
        assert abs(got - turn * share) < 1
