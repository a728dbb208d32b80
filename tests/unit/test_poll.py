"""A poller over folders, with a registry that notes what it is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from conch.repository.local import LocalStore
from conch.repository.poll import Poller
from conch.types.error import invalid


class Told:
    """A registry whose loads fail for models in `broken`, and end at once unless `slow`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken: set[str] = set()
        self.slow: list[Future[None]] | None = None

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        assert not parameters
        return self._note(f"load {name}", name)

    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]:
        return self._note(f"unload {name}", name)

    def _note(self, call: str, name: str) -> Future[None]:
        self.calls.append(call)
        future: Future[None] = Future()
        if self.slow is not None:
            self.slow.append(future)
        elif name in self.broken:
            future.set_exception(invalid("no"))
        else:
            future.set_result(None)
        return future


class House:
    """A repository of one folder or two, polled by hand on a clock of its own."""

    def __init__(self, place: Path, *models: str, seconds: float = 10.0) -> None:
        self.one, self.two = place / "one", place / "two"
        self.two.mkdir(parents=True)
        self.one.mkdir()
        for name in models:
            self.write(name)
        self.now = 100.0
        self.registry = Told()
        self.store = LocalStore([self.one, self.two])
        self.poller = Poller(self.store, self.registry, seconds, lambda: self.now)
        self.poller.watch()

    def write(self, name: str, text: str = "x", file: str = "1/model.py") -> None:
        path = self.one / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def poll(self) -> list[str]:
        """What two polls far enough from each other lead to."""
        self.registry.calls.clear()
        for _ in range(2):
            self.now += 10.0
            self.poller.poll()
        return self.registry.calls


def test_changes_are_followed(tmp_path: Path) -> None:
    """What is new or has changed is loaded, what is gone is unloaded, what is untouched is left alone."""
    house = House(tmp_path, "same", "edited", "removed")
    assert house.poll() == []
    house.write("edited", "y")
    house.write("added")
    shutil.rmtree(house.one / "removed")
    assert sorted(house.poll()) == ["load added", "load edited", "unload removed"]
    assert house.poll() == []


def test_a_model_is_loaded_when_it_stands_still(tmp_path: Path) -> None:
    """While files are still being written nothing is loaded; the poll says when to look again."""
    house = House(tmp_path)
    for number in range(3):
        house.write("big", "x" * number)
        house.now += 0.4
        assert house.poller.poll() == house.now + 1.0
    house.now += 0.9
    assert house.poller.poll() is not None
    house.now += 0.2
    house.poller.poll()
    assert house.registry.calls == ["load big"]


def test_touched_files_and_copies_of_the_same_are_no_change(tmp_path: Path) -> None:
    """Times and inodes change, contents do not: nothing is loaded, whether the model serves or is broken."""
    house = House(tmp_path, "m")
    house.poller.learn()
    os.utime(house.one / "m" / "1" / "model.py", ns=(1, 1))
    assert house.poll() == []
    shutil.copytree(house.one / "m", tmp_path / "m")
    shutil.rmtree(house.one / "m")
    (tmp_path / "m").rename(house.one / "m")
    assert house.poll() == []


def test_a_broken_model_is_tried_once_per_change_and_stops_no_other(tmp_path: Path) -> None:
    """Polling goes on; the broken model is loaded again when its contents change."""
    house = House(tmp_path)
    house.registry.broken.add("bad")
    house.write("bad", "x")
    house.write("good", "x")
    assert sorted(house.poll()) == ["load bad", "load good"]
    assert house.poll() == []
    os.utime(house.one / "bad" / "1" / "model.py", ns=(1, 1))
    assert house.poll() == []
    house.write("bad", "y")
    assert house.poll() == ["load bad"]


def test_a_name_in_two_repositories_is_unloaded(tmp_path: Path) -> None:
    """None of them can be meant; when one is left, that one is loaded."""
    house = House(tmp_path, "m")
    shutil.copytree(house.one / "m", house.two / "m")
    assert house.poll() == ["unload m"]
    shutil.rmtree(house.one / "m")
    assert house.poll() == ["load m"]


def test_a_repository_that_is_away_takes_nothing_with_it(tmp_path: Path) -> None:
    """A mount that comes and goes unloads no model."""
    house = House(tmp_path, "m")
    house.one.rename(tmp_path / "away")
    assert house.poll() == []
    (tmp_path / "away").rename(house.one)
    assert house.poll() == []


def test_a_model_is_not_loaded_while_it_is_being_loaded(tmp_path: Path) -> None:
    """What changes during a load is loaded after it; other models do not wait."""
    house = House(tmp_path, "m", "other")
    house.registry.slow = []
    house.write("m", "second")
    assert house.poll() == ["load m"]
    house.write("m", "third")
    house.write("other", "second")
    assert house.poll() == ["load other"]
    house.registry.slow[0].set_result(None)
    assert house.poll() == ["load m"]


def test_the_thread_polls_and_ends(tmp_path: Path) -> None:
    """The real thread loads what comes, and ends at once when it is told to."""
    house = House(tmp_path, seconds=0.02)
    poller = Poller(house.store, house.registry, 0.02)
    loaded: Future[None] = Future()
    house.registry.load = lambda name, parameters: loaded.set_result(None) or loaded  # type: ignore[method-assign]
    poller.watch()
    poller.begin()
    house.write("m")
    loaded.result(30)
    poller.stop()
    assert not poller._thread.is_alive()


def test_no_seconds_mean_no_polls(tmp_path: Path) -> None:
    """Triton's 0: everything is loaded at the start and never looked at again."""
    house = House(tmp_path, "m", seconds=0)
    house.poller.begin()
    house.poller.stop()
    assert not house.poller._thread.is_alive()
    assert house.registry.calls == []


def test_large_files_are_read_once_while_they_stay_as_they_are(tmp_path: Path) -> None:
    """Contents are read again only when a file looks otherwise, or is too young to be known by its look."""
    house = House(tmp_path, "m")
    file = house.one / "m" / "1" / "model.py"
    contents = house.store._contents
    assert contents is not None
    contents._clock = lambda: file.stat().st_mtime + 60
    first = house.store.contents("m")
    assert house.store.contents("m") == first
    assert contents.read == 1
    contents._clock = lambda: file.stat().st_mtime + 1
    house.write("m", "y")
    second = house.store.contents("m")
    house.store.contents("m")
    assert contents.read == 3
    assert first != second
