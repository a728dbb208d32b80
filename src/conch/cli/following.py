"""`conch serve TARGET --watch`: the repository of links is brought up to date whenever a target's files are saved.

The server's own `--watch` then sees a change in its repository, and has the model loaded again.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from conch.adopt.api import AdoptError, Entry
from conch.adopt.lay import Look, lay, looks, refresh
from conch.adopt.single import is_noise
from conch.adopt.targets import read_target

#: Milliseconds: how long changes are gathered, between two looks; and how long the thread waits at a time.
_DEBOUNCE, _STEP, _TICK = 50, 10, 200


@dataclass(slots=True)
class Followed:
    """One target: which files it is made of, as it was read last."""

    path: Path
    files: set[Path] = field(default_factory=set)
    names: frozenset[str] = frozenset()
    failed: bool = False

    @property
    def folder(self) -> Path:
        return _folder(self.path)

    def know(self, entries: Sequence[Entry]) -> None:
        contents = [each for entry in entries for each in entry.files.values() if isinstance(each, Path)]
        named = (self.path, *contents)
        self.files = {each.parent.resolve() / each.name for each in named} | {each.resolve() for each in named}
        self.names = self._names()
        self.failed = False

    def miss(self) -> None:
        """It could not be read."""
        self.failed = True
        self.names = self._names()

    def concerned(self, changed: Iterable[Path]) -> bool:
        """Whether files that were saved may change the models. What else lies in the folder does not count, or logs
        there would have the models loaded again and again; for a target that could not be read it might help."""
        if not self.files.isdisjoint(changed):
            return True
        if self.failed and any(each.parent == self.folder and not is_noise(each) for each in changed):
            return True
        return self._names() != self.names

    def _names(self) -> frozenset[str]:
        """Of a target that is a folder, what is in it."""
        if not self.path.is_dir():
            return frozenset()
        return frozenset(each.name for each in self.path.iterdir() if not is_noise(each))


class Following:
    """A thread for as long as the block. `targets` are the paths that were named, `name` what `--name` said."""

    def __init__(self, targets: Sequence[Path], name: str, repository: Path, entries: Sequence[Entry]) -> None:
        self._name = name
        self._repository = repository
        self._looks: dict[Path, Look] = {}
        self._laid: dict[Path, set[str]] = {}
        self._targets = [Followed(path) for path in targets]
        for target in self._targets:
            mine = [each for each in entries if _of(each, target.path)]
            target.know(mine)
            self._laid[target.path] = {each.name for each in mine}
            for entry in mine:
                self._looks |= looks(entry, repository / entry.name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conch-follow", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        from watchfiles import watch  # noqa: PLC0415  only servers with --watch need it

        for found in watch(
            *{each.folder for each in self._targets}, debounce=_DEBOUNCE, step=_STEP, rust_timeout=_TICK,
            stop_event=self._stop, raise_interrupt=False, recursive=False,
        ):  # fmt: skip
            self.look({Path(path) for _, path in found})

    def look(self, changed: Set[Path]) -> None:
        """Files were saved. Whatever is in them, the thread goes on."""
        for target in self._targets:
            try:
                if target.concerned(changed):
                    self._update(target)
            except Exception as error:  # noqa: BLE001  what is in the files is anybody's
                target.miss()
                said = str(error) if isinstance(error, AdoptError | OSError) else f"{type(error).__name__}: {error}"
                print(f"conch serve: {said}\n(what was served before goes on)", file=sys.stderr, flush=True)

    def _update(self, target: Followed) -> None:
        entries = read_target(target.path, self._name) or []
        for entry in entries:
            folder = self._repository / entry.name
            found = looks(entry, folder)
            if folder.is_dir():
                refresh(entry, folder, self._looks)
            else:
                lay([entry], self._repository)
            self._looks |= found
        names = {entry.name for entry in entries}
        for gone in self._laid[target.path] - names:
            shutil.rmtree(self._repository / gone, ignore_errors=True)
        self._laid[target.path] = names
        target.know(entries)


def _folder(path: Path) -> Path:
    return path.resolve() if path.is_dir() else path.resolve().parent


def _of(entry: Entry, path: Path) -> bool:
    """Whether the entry was read from the target."""
    return entry.source == path or path in entry.source.parents
