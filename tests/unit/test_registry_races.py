"""Loads and unloads that overtake one another, and loads of which one step fails: nobody is left half-way."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace

import pytest

from conch.registry.lifecycle import Lifecycle
from conch.repository.api import StoredModel
from conch.types.error import InferError
from support.fake_models import FakeStore, House, scheduler_of
from support.until import until
from unit.test_registry_ensembles import Pipelines

pytestmark = pytest.mark.slow

OUTDATED = "Newer operation has been applied to the model lifecycle, current load operation is out-dated."


class SlowStore(FakeStore):
    """Waits where `gates` has the model's name; counts for each model the reads and what was given back."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, threading.Event] = {}
        self.entered = threading.Semaphore(0)
        self.held: dict[str, int] = {}

    def fetch(self, name: str) -> StoredModel:
        self.entered.release()
        if name in self.gates:
            assert self.gates[name].wait(30)
        stored = super().fetch(name)
        self.held[name] = self.held.get(name, 0) + 1
        return replace(stored, release=lambda: self._given_back(name))

    def _given_back(self, name: str) -> None:
        self.held[name] -= 1
        assert self.held[name] >= 0, "given back twice"


class Slow(Pipelines):
    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.slow = self.store = SlowStore()
        self.registry._store = self.registry._loading._store = self.store

    def gate(self, name: str) -> threading.Event:
        gate = self.slow.gates[name] = threading.Event()
        return gate

    def load_gate(self, name: str) -> threading.Event:
        gate = self.loader.gates[name] = threading.Event()
        return gate


def message(future: Future[None]) -> str:
    error = future.exception(30)
    assert isinstance(error, InferError), error
    return error.message


@pytest.mark.parametrize("name", ["e", "a"])
def test_an_unload_overtakes_a_load_that_is_being_read(name: str) -> None:
    """Whoever unloads last has the last word, and a later load of a member does not bring the ensemble back."""
    with Slow().put(e="steps a", a="") as house:
        house.registry.start()
        gate = house.gate(name)
        load = house.registry.load(name, {})
        assert house.slow.entered.acquire(timeout=30)
        unload = house.registry.unload(name)
        gate.set()
        assert message(load) == f"load failed for model '{name}': {OUTDATED}\n"
        unload.result(30)
        house.load("a")
        assert house.ready() == ["a"]
        assert house.registry.ready()
        assert house.slow.held["e"] == 0 if name == "e" else house.slow.held["a"] == 1


def test_what_is_unloaded_while_the_server_starts_does_not_end_it() -> None:
    """A model may unload another one when it is initialised."""
    with Slow(load_models=("a",), exit_on_error=True).put(a="") as house:
        gate = house.gate("a")
        errors: list[BaseException] = []

        def start() -> None:
            try:
                house.registry.start()
            except InferError as error:
                errors.append(error)

        starter = threading.Thread(target=start)
        starter.start()
        assert house.slow.entered.acquire(timeout=30)
        unload = house.registry.unload("a")
        gate.set()
        unload.result(30)
        starter.join(30)
        assert errors == []
        assert house.ready() == []


def test_an_unload_overtakes_an_ensemble_whose_members_are_loading() -> None:
    """The load says so, and the server is as ready as it is without the ensemble."""
    with Slow().put(e="steps a", a="") as house:
        house.registry.start()
        gate = house.load_gate("a")
        load = house.registry.load("e", {})
        assert house.loader.entered.acquire(timeout=30)
        house.registry.unload("e").result(30)
        gate.set()
        assert message(load) == f"load failed for model 'e': {OUTDATED}\n"
        assert house.ready() == ["a"]
        assert house.registry.ready()
        assert house.slow.held["e"] == 0


def test_an_ensemble_is_loaded_again_while_an_older_load_of_it_waits_for_members() -> None:
    """Both loads end well, and files are given back once, after the last one that uses them."""
    with Slow().put(e="steps a", a="") as house:
        gate = house.load_gate("a")
        first = house.registry.load("e", {})
        assert house.loader.entered.acquire(timeout=30)
        second = house.registry.load("e", {})
        until(lambda: house.slow.held.get("e") == 2)
        gate.set()
        first.result(30)
        second.result(30)
        assert house.ready() == ["a", "e"]
        house.drop("e")
        until(lambda: house.slow.held["e"] == 0)


def test_an_unload_and_a_load_overtake_an_older_load() -> None:
    """The older load is out of date, the newer one counts."""
    with Slow().put(e="steps a", a="") as house:
        gate = house.load_gate("a")
        first = house.registry.load("e", {})
        assert house.loader.entered.acquire(timeout=30)
        house.registry.unload("e").result(30)
        second = house.registry.load("e", {})
        until(lambda: house.slow.held.get("e") == 2)
        gate.set()
        assert message(first) == f"load failed for model 'e': {OUTDATED}\n"
        second.result(30)
        assert house.ready() == ["a", "e"]
        house.drop("e")
        until(lambda: house.slow.held["e"] == 0)


def test_an_unload_overtakes_a_group() -> None:
    """A model of a group that was unloaded meanwhile takes the whole group back: all or none."""
    with Slow().put(e="steps a", a="", b="") as house:
        gate = house.load_gate("b")
        group = house.registry.load_group({"e": {}, "a": {}, "b": {}})
        until(lambda: "b" in house.loader.running)
        unload = house.registry.unload("e")
        gate.set()
        assert OUTDATED in message(group)
        unload.result(30)
        house.load("a")
        assert house.ready() == ["a"]
        until(lambda: house.slow.held == {"e": 0, "a": 1, "b": 0})


def test_an_ensemble_that_becomes_a_plain_model_keeps_no_files_of_the_ensemble() -> None:
    """What was read to make the ensemble anew is given back."""
    with Slow().put(e="steps a", a="") as house:
        house.load("e")
        house.put(e="")
        house.load("e")
        until(lambda: house.slow.held["e"] == 1)


def test_the_end_gives_the_files_of_ensembles_back() -> None:
    """Folders made for a load's own files do not outlive the server."""
    with Slow().put(e="steps a", a="") as house:
        house.load("e")
    assert house.slow.held == {"e": 0, "a": 0}


def test_a_forced_load_of_an_ensemble_is_forced_once() -> None:
    """Later loads of members that change nothing leave the ensemble as it is."""
    with Slow().put(e="steps a", a="") as house:
        house.load("e")
        first = house.serving("e")
        house.load("e", force_reload="true")
        second = house.serving("e")
        assert second is not first
        house.load("a")
        assert house.serving("e") is second


def test_a_member_that_is_asked_for_while_it_loads_for_an_ensemble_is_asked_for() -> None:
    """Unloading the ensemble with what it needed leaves a start-up model where it is."""
    with Slow().put(e="steps a", a="") as house:
        gate = house.gate("a")
        batch: dict[str, Future[None]] = {}
        futures = [house.registry._assembly.load("e", {}, batch)]
        until(lambda: "a" in batch)
        futures.append(house.registry._assembly.load("a", {}, batch))
        gate.set()
        for each in futures:
            each.result(30)
        house.drop("e", cascade=True)
        assert house.ready() == ["a"]


def test_names_that_mean_nothing_are_not_remembered() -> None:
    """Clients may think of many."""
    with Slow().put(a="") as house:
        house.load("a")
        house.loader.broken["a", 1] = RuntimeError("boom")
        house.put(a="other")
        for name in ("a", "ghost", "wraith"):
            message(house.registry.load(name, {}))
        assert set(house.registry._assembly._failures) == {"a"}
        assert not house.registry._assembly._attempts._under_way


def test_an_unload_that_ends_late_finds_its_version_forgotten() -> None:
    """It was loaded and unloaded again meanwhile, and then its folder went."""
    life = Lifecycle()
    life.load([1])
    life.loaded([1])
    first = life.unload([1])[1]
    life.load([1])
    life.loaded([1])
    second = life.unload([1])[1]
    life.unloaded(1, second)
    life.forget([1])
    life.unloaded(1, first)
    assert life.versions == {}


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_exception_without_words_is_an_error_as_any_other() -> None:
    """A model's code raises what it likes: the load fails, and the model can be loaded later."""
    with House() as house:
        house.store.put("m", 1, 2, config="all")
        house.loader.broken["m", 2] = SilentError()
        assert "SilentError" in message(house.registry.load("m", {}))
        assert house.state("m") == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
        until(lambda: house.loader.times_closed() == [1])
        house.loader.broken.clear()
        house.load("m")


def test_who_cannot_be_told_that_a_model_serves_does_not_undo_it() -> None:
    """What a repository agent's code raises then is logged; the models of the load serve, and their files are kept."""

    def fail() -> None:
        raise SystemExit

    with House() as house:
        for name in ("a", "b"):
            house.store.put(name, 1)
            house.store.models[name] = replace(house.store.models[name], served=fail, release=fail)
        house.registry.load_group({"a": {}, "b": {}}).result(30)
        assert {name: state for name, _, state, _ in house.index()} == {"a": "READY", "b": "READY"}
        house.unload("a")
        until(lambda: house.state("a") == {"1": "UNAVAILABLE"})
        assert sorted(house.loader.times_closed()) == [0, 1]


def test_a_version_that_cannot_be_watched_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """What is unloaded after it is closed, and the log says once what is wrong."""
    with House() as house:
        for name in ("a", "b"):
            house.store.put(name, 1)
            house.load(name)
        scheduler = scheduler_of(house.registry.find("a", ""))
        well = scheduler.inflight

        def fail() -> int:
            raise RuntimeError("changed size during iteration")

        scheduler.inflight = fail  # type: ignore[method-assign]
        house.unload("a")
        until(lambda: scheduler.stopped > 0)
        house.unload("b")
        until(lambda: house.state("b") == {"1": "UNAVAILABLE"})
        assert house.state("a") == {"1": "UNLOADING"}
        scheduler.inflight = well  # type: ignore[method-assign]
        until(lambda: house.state("a") == {"1": "UNAVAILABLE"})
        assert [each.levelname for each in caplog.records].count("ERROR") == 1


def test_a_load_for_which_no_thread_can_be_started_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no more threads to give for a moment: the load says so, and later ones are not held up."""
    with House() as house:
        house.store.put("m", 1)
        start = threading.Thread.start

        def fail(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        first = house.registry.load("m", {})
        second = house.registry.load_group({"m": {}})
        monkeypatch.setattr(threading.Thread, "start", start)
        for each in (first, second):
            assert "can't start new thread" in message(each)
        house.load("m")
        assert house.state("m") == {"1": "READY"}
        assert house.registry._lanes.busy() == 0


def test_a_version_for_which_no_thread_can_be_started_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its code fails; it does not say that the server is exiting."""
    with House() as house:
        house.store.put("m", 1)
        submit = house.registry._loading.threads._pool.submit

        def fail(*_: object) -> Future[None]:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(house.registry._loading.threads._pool, "submit", fail)
        assert "version 1 is at UNAVAILABLE state: Unavailable: can't start new thread;" in message(
            house.registry.load("m", {})
        )
        monkeypatch.setattr(house.registry._loading.threads._pool, "submit", submit)
        house.load("m")
