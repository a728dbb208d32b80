"""`conch serve TARGET --watch`: the repository of links is brought up to date whenever a target's files are saved.

The server's own `--watch` then sees a change in its repository, and has the model loaded again.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from conch.adopt.api import AdoptError, Entry
from conch.adopt.lay import lay, refresh
from conch.adopt.targets import read_target

#: Milliseconds: how long changes are gathered, between two looks; and how long the thread waits at a time.
_DEBOUNCE, _STEP, _TICK = 50, 10, 200


class Following:
    """A thread for as long as the block. `targets` are the paths that were named, `name` what `--name` said."""

    def __init__(self, targets: Sequence[Path], name: str, repository: Path, entries: Sequence[Entry]) -> None:
        self._targets = {path: _folder(path) for path in targets}
        self._name = name
        self._repository = repository
        self._laid = {path: {each.name for each in entries if _of(each, path)} for path in targets}
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
            *set(self._targets.values()), debounce=_DEBOUNCE, step=_STEP, rust_timeout=_TICK,
            stop_event=self._stop, raise_interrupt=False, recursive=False,
        ):  # fmt: skip
            changed = {Path(path).parent for _, path in found}
            for path, folder in self._targets.items():
                if folder in changed:
                    self._update(path)

    def _update(self, path: Path) -> None:
        try:
            entries = read_target(path, self._name) or []
            for entry in entries:
                folder = self._repository / entry.name
                if folder.is_dir():
                    refresh(entry, folder)
                else:
                    lay([entry], self._repository)
        except (AdoptError, OSError) as error:
            print(f"conch serve: {error}\n(what was served before goes on)", file=sys.stderr, flush=True)
            return
        names = {entry.name for entry in entries}
        for gone in self._laid[path] - names:
            shutil.rmtree(self._repository / gone, ignore_errors=True)
        self._laid[path] = names


def _folder(path: Path) -> Path:
    return path.resolve() if path.is_dir() else path.resolve().parent


def _of(entry: Entry, path: Path) -> bool:
    """Whether the entry was read from the target."""
    return entry.source == path or path in entry.source.parents
