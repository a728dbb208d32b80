"""`--watch`: follows the repositories' folders, and has models loaded again as soon as their files are saved."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from conch.config.server import RepositoryOptions
from conch.repository.changes import Action, Changes, decide, place
from conch.types.error import InferError
from conch.types.model import identity

log = logging.getLogger("conch.repository")

#: Milliseconds: how long the watching thread waits for changes at a time, and between two looks meanwhile.
_TICK, _STEP, _DEBOUNCE = 25, 10, 50
#: Seconds before folders that cannot be watched are tried again.
_AGAIN = 1.0


class Registry(Protocol):
    """Who loads."""

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]: ...
    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]: ...
    def wanted(self) -> set[str]: ...


class Watcher:
    """One thread. It follows from `start` on, acts from `begin` on, and ends with `stop`."""

    def __init__(
        self, roots: Sequence[Path], registry: Registry, *, explicit: bool = False, namespacing: bool = False
    ) -> None:
        """`roots` are folders. With `namespacing` models are known by their repository and name."""
        self._registry = registry
        self._explicit = explicit
        self._namespacing = namespacing
        # Changes may be told by the name that was watched or by the true one.
        self._roots = {str(way): str(root.absolute()) for root in roots for way in (root.absolute(), root.resolve())}
        self._changes = Changes()
        self._folders: dict[str, Path] = {}
        #: Every folder of a model that was ever there.
        self._seen: set[str] = set()
        #: Repositories that are not there now.
        self._gone: set[str] = set()
        self._again = False
        #: What changed last in a model's folder, for messages.
        self._last: dict[str, str] = {}
        self._begun = threading.Event()
        self._stop = threading.Event()
        self._over: queue.SimpleQueue[tuple[str, Action, float, float, Future[None]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="conch-watch", daemon=True)

    def start(self) -> None:
        log.info("watch: following %s", ", ".join(sorted(set(self._roots.values()))))
        self._thread.start()

    def begin(self) -> None:
        """The start-up models are loaded, or have failed."""
        self._begun.set()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        told = ""
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception as error:  # noqa: BLE001  a developer's server goes on without watching, and says so
                if str(error) != told:
                    told = str(error)
                    log.warning(
                        "watch: the repositories cannot be followed now: %s (too many folders? raise "
                        "fs.inotify.max_user_watches, or set WATCHFILES_FORCE_POLLING=true)", error
                    )  # fmt: skip
                self._stop.wait(_AGAIN)

    def _follow(self) -> None:
        """Until a repository goes, comes, or is another folder. What happened since it was followed last is found by
        looking at every model."""
        from watchfiles import Change, watch  # noqa: PLC0415  only servers with --watch need it

        there = self._there()
        self._tell(set(self._roots.values()).difference(there))
        if not there:
            self._stop.wait(_AGAIN)
            return
        look = True
        for found in watch(
            *there,
            watch_filter=None,
            debounce=_DEBOUNCE,
            step=_STEP,
            rust_timeout=_TICK,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
        ):
            now = time.monotonic()
            while not self._over.empty():
                self._report(*self._over.get())
            if look:
                self._look(there, now)
                look = False
            for _, path in found:
                self._note(path, now)
            if self._begun.is_set():
                self._act()
            # The kernel follows a folder, not its name; the next one may have its number.
            if self._there() != there or any(kind is Change.deleted and path in self._roots for kind, path in found):
                return

    def _there(self) -> dict[str, tuple[int, int]]:
        """The repositories that are there, and which folder each of them is."""
        found = {}
        for root in sorted(set(self._roots.values())):
            with suppress(OSError):
                looks = os.stat(root)  # noqa: PTH116  the text is at hand
                found[root] = looks.st_dev, looks.st_ino
        return found

    def _tell(self, gone: set[str]) -> None:
        for root in sorted(gone - self._gone):
            log.warning("watch: the folder '%s' is gone; its models stay as they are until it is back", root)
        for root in sorted(self._gone - gone):
            log.info("watch: the folder '%s' is back", root)
        self._gone = gone

    def _look(self, roots: Collection[str], now: float) -> None:
        """But for the first time, take every model for changed: to load what has not is to do nothing."""
        here = {str(folder) for root in roots for folder in Path(root).iterdir()}
        if self._again:
            for folder in sorted(here.union([each for each in self._seen if str(Path(each).parent) in roots])):
                self._note(folder, now)
        self._seen |= here
        self._again = True

    def _note(self, path: str, now: float) -> None:
        found = place(path, tuple(self._roots))
        if found is None:
            return
        root = self._roots[found.root]
        name = identity(root, found.model) if self._namespacing else found.model
        folder = self._folders[name] = Path(root) / found.model
        self._seen.add(str(folder))
        self._last[name] = "/".join(found.rest)
        self._changes.changed(name, self._last[name], _when(path, now))

    def _act(self) -> None:
        waiting = self._changes.waiting()
        if not waiting:
            return
        # Another repository may have, or get, a model of that name.
        gone = [name for name in waiting if not self._folder(name).is_dir()]
        due = [name for name in self._changes.due(time.monotonic(), gone) if self._folder(name).parent.is_dir()]
        wanted = self._registry.wanted() if due else set()
        for name in due:
            folder = self._folder(name)
            present = folder.is_dir()
            action = decide(
                present=present,
                versions=present and _has_version(folder),
                wanted=name in wanted,
                explicit=self._explicit,
            )
            if action is None:
                self._changes.dismissed(name)
                continue
            since = self._changes.began(name)
            if self._changes.writes_itself(name):
                log.warning(
                    "watch: loading model '%s' seems to change its own files ('%s'), and so leads to the next load: "
                    "from now on it is loaded ever less often", name, self._last[name]
                )  # fmt: skip
            load = action is Action.LOAD
            future = self._registry.load(name, {}) if load else self._registry.unload(name)
            future.add_done_callback(partial(self._ended, name, action, since))

    def _ended(self, name: str, action: Action, since: float, future: Future[None]) -> None:
        self._over.put((name, action, since, time.monotonic(), future))

    def _report(self, name: str, action: Action, since: float, ended: float, future: Future[None]) -> None:
        self._changes.ended(name, ended)
        error = future.exception()
        if isinstance(error, InferError):
            # Why stands above, with its traceback, where the load failed.
            log.error(
                "watch: model '%s' has changed and cannot be loaded; what served before, if anything, goes on", name
            )
        elif error is not None:
            log.error("watch: model '%s' has changed and cannot be loaded: %r", name, error)
        elif action is Action.LOAD:
            log.info("watch: model '%s' is up to date, %.2f s after its files changed", name, ended - since)
        else:
            log.info("watch: the folder of model '%s' is gone, and so is the model", name)

    def _folder(self, name: str) -> Path:
        """Where a model lies: where its last change was, unless that is gone and another repository has it."""
        folder = self._folders[name]
        if self._namespacing or folder.is_dir():
            return folder
        return next((each for root in self._roots if (each := Path(root) / folder.name).is_dir()), folder)


def watcher(options: RepositoryOptions, registry: Registry) -> Watcher:
    """As the operator wants it. Repositories that are no folders here cannot be followed, and are warned of."""
    roots = [path for path in options.paths if isinstance(path, Path) and path.is_dir()]
    for path in options.paths:
        if path not in roots:
            log.warning("watch: '%s' is no folder of this machine, its changes are not seen", path)
    return Watcher(roots, registry, explicit=options.control_mode == "explicit", namespacing=options.namespacing)


def _when(path: str, now: float) -> float:
    """When a file changed, as a monotonic time; `now` where that cannot be told. Its notice comes a little later."""
    try:
        age = time.time() - os.stat(path).st_ctime  # noqa: PTH116  the text is at hand
    except OSError:
        return now
    return now - age if 0 < age < 1 else now


def _has_version(folder: Path) -> bool:
    try:
        return any(each.name.isdigit() and each.is_dir() for each in folder.iterdir())
    except OSError:
        return False
