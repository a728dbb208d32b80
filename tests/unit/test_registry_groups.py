"""Several models loaded as one: all of them or none, in one step."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait

import pytest

from conch.registry.lanes import Lanes
from conch.registry.promises import promise
from conch.types.error import Code, InferError
from support.fake_models import House

pytestmark = pytest.mark.slow


def put(house: House, stamp: str, *names: str) -> None:
    for name in names:
        house.store.put(name, 1, v1=stamp)


def error_of(future: Future[None]) -> InferError:
    error = future.exception(30)
    assert isinstance(error, InferError)
    return error


def test_a_group_is_swapped_in_one_step() -> None:
    """The new versions of all models take over with one change of the generation, and not before all are ready."""
    with House() as house:
        put(house, "old", "a", "b")
        house.load("a")
        house.load("b")
        old = [house.registry.find(name, "") for name in "ab"]
        put(house, "new", "a", "b")
        gate = house.loader.gates["b"] = threading.Event()
        generation = house.registry.generation
        future = house.registry.load_group({"a": {}, "b": {}})
        for _ in range(4):
            assert house.loader.entered.acquire(timeout=30)
        assert [house.registry.find(name, "") for name in "ab"] == old
        assert house.registry.generation == generation
        gate.set()
        future.result(30)
        assert house.registry.generation == generation + 1
        assert not {house.registry.find(name, "") for name in "ab"} & set(old)


def test_one_that_fails_leaves_all_as_they_were() -> None:
    """The error names the model; what served goes on, says why it is not newer, and what was made is closed."""
    with House() as house:
        put(house, "old", "a", "b")
        house.load("a")
        house.load("b")
        old = [house.registry.find(name, "") for name in "ab"]
        put(house, "new", "a", "b")
        house.loader.broken["b", 1] = RuntimeError("boom")
        generation = house.registry.generation
        error = error_of(house.registry.load_group({"a": {}, "b": {}}))
        assert error.code is Code.INVALID_ARG
        assert error.message == (
            "failed to load 2 models together, none was changed: load failed for model 'b': "
            "version 1 is at UNAVAILABLE state: Internal: RuntimeError: boom;\n"
        )
        assert [house.registry.find(name, "") for name in "ab"] == old
        assert house.registry.generation == generation
        reasons = {name: reason for name, _, state, reason in house.index() if state == "READY"}
        assert reasons == {
            "a": "load of a newer one failed: 'b' of the same group could not be loaded",
            "b": "load of a newer one failed: Internal: RuntimeError: boom",
        }


def test_models_that_are_new_are_unavailable_when_their_group_fails() -> None:
    """A group that fails makes no model serve that did not serve before."""
    with House() as house:
        put(house, "old", "a", "b")
        house.loader.broken["b", 1] = RuntimeError("boom")
        error_of(house.registry.load_group({"a": {}, "b": {}}))
        assert {name: state for name, _, state, _ in house.index()} == {"a": "UNAVAILABLE", "b": "UNAVAILABLE"}
        del house.loader.broken["b", 1]
        house.registry.load_group({"a": {}, "b": {}}).result(30)
        assert {name: state for name, _, state, _ in house.index()} == {"a": "READY", "b": "READY"}


def test_groups_that_overlap_do_not_wait_for_each_other() -> None:
    """Any number of groups of the same models in any order come to an end, more of them than there are threads."""
    with House() as house:
        names = [f"m{number}" for number in range(20)]
        put(house, "old", *names)
        futures = []
        for turn in range(6):
            put(house, str(turn), *names)
            chosen = names[turn:] + names[:turn]
            futures.append(house.registry.load_group({name: {} for name in chosen}))
            futures.append(house.registry.load(names[turn], {}))
        done, left = wait(futures, 30)
        assert not left
        assert [future.exception() for future in done] == [None] * len(futures)
        assert {state for _, _, state, _ in house.index()} == {"READY"}


def test_what_has_not_changed_stays_in_a_group() -> None:
    """A group of unchanged models changes nothing, and says that it went well."""
    with House() as house:
        put(house, "old", "a", "b")
        house.registry.load_group({"a": {}, "b": {}}).result(30)
        generation = house.registry.generation
        house.registry.load_group({"a": {}, "b": {}}).result(30)
        assert house.registry.generation == generation
        assert len(house.loader.made) == 2


def test_a_group_ends_when_the_server_stops() -> None:
    """A load of a group that has not begun when the server stops ends with an error."""
    with House() as house:
        put(house, "old", "a", "b")
        gate = house.loader.gates["a"] = threading.Event()
        first = house.registry.load("a", {})
        future = house.registry.load_group({"a": {}, "b": {}})
        assert house.loader.entered.acquire(timeout=30)
        stopper = threading.Thread(target=house.registry.stop, args=(30.0,))
        stopper.start()
        assert "Server exiting" in error_of(future).message
        gate.set()
        first.exception(30)
        stopper.join(30)
        assert not stopper.is_alive()


def test_a_held_lane_does_nothing_else() -> None:
    """What comes after a hold begins when the hold has ended, and other lanes go on meanwhile."""
    lanes = Lanes(4)
    done: list[str] = []
    until = promise()
    firsts = lanes.hold({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, until)
    for first in firsts:
        first.result(30)
    later = lanes.submit("a", lambda: done.append("later"))
    lanes.submit("c", lambda: done.append("c")).result(30)
    assert sorted(done) == ["a", "b", "c"]
    assert lanes.busy() == 2
    until.set_result(None)
    later.result(30)
    assert done[-1] == "later"
    lanes.end()


def test_a_hold_whose_work_fails_keeps_its_lane() -> None:
    """The error is the work's own future's; the lane is kept until the hold has ended."""
    lanes = Lanes(4)
    until = promise()

    def fail() -> None:
        raise ValueError("no")

    (first,) = lanes.hold({"a": fail}, until)
    with pytest.raises(ValueError, match="no"):
        first.result(30)
    later = lanes.submit("a", lambda: None)
    assert not later.done()
    until.set_result(None)
    later.result(30)
    lanes.end()
