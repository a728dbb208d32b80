"""`--watch` of a repository whose folder itself goes and comes back: nothing that happens to it is missed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest

from conch.repository.watch import Watcher
from support.until import until


class Books:
    """A registry that does at once what it is told."""

    def __init__(self, models: set[str]) -> None:
        self.models = models
        self.loads: list[str] = []

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        self.models.add(name)
        self.loads.append(name)
        return _done()

    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]:
        self.models.discard(name)
        return _done()

    def wanted(self) -> set[str]:
        return set(self.models)


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


class Followed:
    """A repository with the models `a` and `b`, another with `other`, and what is known of them."""

    def __init__(self, home: Path) -> None:
        self.root, self.beside = home / "repository", home / "beside"
        for folder, names in ((self.root, "ab"), (self.beside, ["other"])):
            for name in names:
                (folder / name / "1").mkdir(parents=True)
        self.books = Books({"a", "b", "other", "of another storage"})
        self.watcher = Watcher([self.root, self.beside], self.books)
        self.watcher.start()
        self.watcher.begin()
        self.notices(self.root, "a")

    def notices(self, root: Path, name: str) -> None:
        """A saved file is seen."""
        self.books.loads.clear()
        again = 0.0

        def seen() -> bool:
            nonlocal again
            # Not all the time: what goes on being written is not yet a save. Nor once: it may not be looked at yet.
            if (now := time.monotonic()) > again:
                again = now + 2
                (root / name / "1" / "model.py").write_text(f"# {now}")
            return name in self.books.loads

        until(seen)


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    followed = Followed(tmp_path)
    yield followed
    followed.watcher.stop()


def anew(root: Path) -> None:
    shutil.rmtree(root)
    for name in "bc":
        (root / name / "1").mkdir(parents=True)


def by_renaming(root: Path) -> None:
    new = root.with_name("new")
    for name in "bc":
        (new / name / "1").mkdir(parents=True)
    root.rename(root.with_name("old"))
    new.rename(root)


@pytest.mark.parametrize("make", [anew, by_renaming])
def test_a_folder_that_is_made_again_is_followed(followed: Followed, make: Callable[[Path], None]) -> None:
    """What it holds now is served, what it held before is not, and changes are seen as before."""
    make(followed.root)
    until(lambda: followed.books.models == {"b", "c", "other", "of another storage"})
    followed.notices(followed.root, "c")


def test_while_a_folder_is_gone_its_models_stay(followed: Followed) -> None:
    """It may be a disk that is away for a moment; the other repositories are followed meanwhile."""
    shutil.rmtree(followed.root)
    followed.notices(followed.beside, "other")
    assert {"a", "b"} <= followed.books.models
    anew_without_removing = followed.root / "a" / "1"
    anew_without_removing.mkdir(parents=True)
    until(lambda: followed.books.models == {"a", "other", "of another storage"})
