"""A model's versions through thousands of random histories of loads and unloads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conch.registry.lifecycle import STALE, UNLOADED, Key, Lifecycle, State, plan

numbers = st.sets(st.integers(1, 4), min_size=1)
keys = st.dictionaries(st.integers(1, 4), st.sampled_from([Key("d", b"", "", text) for text in "abc"]))


@given(keys, keys, st.sets(st.integers(1, 4)))
def test_plan_brings_what_serves_to_what_is_wanted(
    serving: dict[int, Key], wanted: dict[int, Key], broken: set[int]
) -> None:
    """After `keep`, `load` and `unload` exactly the wanted versions serve, and nothing is loaded without need."""
    todo = plan(serving, wanted, broken)
    after = {number: key for number, key in serving.items() if number not in todo.unload}
    after |= {number: wanted[number] for number in todo.load}
    assert after == wanted
    assert set(todo.keep) == {n for n in wanted if serving.get(n) == wanted[n] and n not in broken}
    assert not set(todo.keep) & (set(todo.load) | set(todo.unload))


instance_keys = st.builds(
    Key, st.just("d"), st.just(b""), st.just(""), st.sampled_from("ab"), st.sampled_from([b"1", b"2"])
)


@given(
    st.dictionaries(st.integers(1, 4), instance_keys),
    st.dictionaries(st.integers(1, 4), instance_keys),
    st.sets(st.integers(1, 4)),
    st.sets(st.integers(1, 4)),
)
def test_instances_change_in_place_where_they_can(
    serving: dict[int, Key], wanted: dict[int, Key], broken: set[int], elastic: set[int]
) -> None:
    """A version changes in place exactly when only its instances differ, it is elastic and it is well."""
    todo = plan(serving, wanted, broken, elastic)
    assert set(todo.change) == {
        number
        for number, key in wanted.items()
        if number in serving
        and number in elastic - broken
        and key != serving[number]
        and key.files == serving[number].files
    }
    assert set(todo.change) <= set(todo.keep)
    assert set(todo.load) == wanted.keys() - set(todo.keep)


class Histories(RuleBasedStateMachine):
    """Loads follow one another; unloads may end at any time later. The model is a set of numbers that serve."""

    @initialize()
    def begin(self) -> None:
        self.life = Lifecycle()
        self.serving: set[int] = set()
        self.loading: set[int] = set()
        self.draining: list[tuple[int, int]] = []

    @precondition(lambda self: not self.loading)
    @rule(versions=numbers)
    def load(self, versions: set[int]) -> None:
        self.life.load(versions)
        self.loading = versions

    @precondition(lambda self: self.loading)
    @rule()
    def succeed(self) -> None:
        self.life.loaded(self.loading)
        assert not any(s.reason for s in self.life.versions.values() if s.state is State.READY)
        self.serving |= self.loading
        self.loading = set()

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        culprits = data.draw(st.sets(st.sampled_from(sorted(self.loading)), min_size=1))
        begun = [number for number in self.loading if self.life.versions[number].state is State.LOADING]
        serving = [number for number in self.loading if self.life.versions[number].state is State.READY]
        self.life.failed(dict.fromkeys(culprits, "boom"), self.loading)
        assert all(self.life.versions[number].reason == STALE + "boom" for number in serving)
        for number in begun:
            status = self.life.versions[number]
            assert (status.state, status.reason) == (State.UNAVAILABLE, "boom" if number in culprits else UNLOADED)
        self.loading = set()

    @precondition(lambda self: self.serving)
    @rule()
    def unload(self) -> None:
        turns = self.life.unload(self.serving)
        self.draining += turns.items()
        self.serving = set()
        self.life.forgive()

    @precondition(lambda self: self.draining)
    @rule(data=st.data())
    def drained(self, data: st.DataObject) -> None:
        ended = data.draw(st.sampled_from(self.draining))
        self.draining.remove(ended)
        self.life.unloaded(*ended)

    @precondition(lambda self: not self.loading)
    @rule(versions=numbers)
    def forget(self, versions: set[int]) -> None:
        alive = {
            number
            for number, status in self.life.versions.items()
            if status.state not in {State.UNAVAILABLE, State.UNKNOWN}
        }
        known = set(self.life.versions)
        self.life.forget(versions)
        assert set(self.life.versions) == known - (versions - alive)
        # A drain that ends later finds its version gone only if the version had ended before.
        self.draining = [(number, turn) for number, turn in self.draining if number in self.life.versions]

    @invariant()
    def what_serves_is_ready(self) -> None:
        ready = {n for n, status in self.life.versions.items() if status.state is State.READY}
        assert ready == self.serving

    @invariant()
    def only_what_loads_is_loading(self) -> None:
        loading = {n for n, status in self.life.versions.items() if status.state is State.LOADING}
        assert loading <= self.loading - self.serving

    @invariant()
    def unloading_ends(self) -> None:
        unloading = {n for n, status in self.life.versions.items() if status.state is State.UNLOADING}
        assert unloading <= {number for number, _ in self.draining}

    @invariant()
    def only_what_is_gone_or_stale_has_a_reason(self) -> None:
        for status in self.life.versions.values():
            if status.state is State.READY:
                assert not status.reason or status.reason.startswith(STALE)
            else:
                assert bool(status.reason) == (status.state is State.UNAVAILABLE)


TestHistories = Histories.TestCase
