"""Mode `poll`: looks at the repositories every so often, and has loaded and unloaded what has changed."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol

from conch.repository.api import ModelStore
from conch.repository.following import Following
from conch.types.error import InferError

log = logging.getLogger("conch.repository")

#: Seconds for which a model's files must have stood still before it is loaded.
_SETTLE: Final = 1.0


class Registry(Protocol):
    """Who loads."""

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]: ...
    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]: ...


class Poller:
    """One thread, so a poll never overlaps another; loads go on beside it, and the next poll does not wait for them."""

    def __init__(
        self, store: ModelStore, registry: Registry, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`seconds` between two polls; 0 for none at all, as Triton has it."""
        self._store = store
        self._registry = registry
        self._seconds = seconds
        self._clock = clock
        # Of a model that is polled often, the next poll tells whether it stands still.
        self._following = Following(min(_SETTLE, seconds / 2))
        self._over: queue.SimpleQueue[str] = queue.SimpleQueue()
        #: Set when a load has ended, or to stop: what a load has left behind is looked at before others change it.
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="conch-poll", daemon=True)

    def watch(self) -> None:
        """Before the start-up models are read: what changes while they load is not missed. Blocking."""
        if self._seconds > 0:
            self._following.start(self._store.survey(), self._clock())

    def begin(self) -> None:
        """The start-up models are loaded, or have failed."""
        if self._seconds > 0:
            self._thread.start()
        else:
            log.warning("the repositories are never polled: --repository-poll-secs is 0")

    def stop(self) -> None:
        """Waits for a poll in progress for a moment, not for loads."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def poll(self) -> float | None:
        """One poll. Returns when to look again, on the clock, if that should be before the next poll."""
        while not self._over.empty():
            self._following.ended(self._over.get())
        turn = self._following.look(self._store.survey(), self._clock())
        for name in turn.restless:
            log.warning(
                "poll: loading model '%s' seems to change its own files, and so leads to the next load: it is loaded "
                "ever less often", name
            )  # fmt: skip
        for name in turn.gone:
            log.info("poll: model '%s' is gone from the repositories, or is there twice: it is unloaded", name)
            self._registry.unload(name).add_done_callback(partial(self._ended, name))
        for name in turn.compare:
            if self._following.compared(name, self._contents(name)):
                log.info("poll: the files of model '%s' are new or have changed: it is loaded", name)
                self._registry.load(name, {}).add_done_callback(partial(self._ended, name))
            else:
                log.debug("poll: the files of model '%s' hold what they held", name)
        return turn.again_at

    def learn(self) -> None:
        """Find out what the models hold that were loaded at the start; their files have been read for that already."""
        names = self._following.unknown()
        before = self._store.survey().looks
        contents = {name: self._contents(name) for name in names if name in before}
        after = self._store.survey().looks
        for name, text in contents.items():
            if after.get(name) == before[name]:
                self._following.learn(name, before[name], text)

    def _run(self) -> None:
        self._try(self.learn)
        again: float | None = None
        next_poll = self._clock() + self._seconds
        while not self._stopped:
            self._wake.wait(max(0.0, min(next_poll, again or next_poll) - self._clock()))
            self._wake.clear()
            if self._stopped:
                return
            if self._clock() >= next_poll:
                next_poll = self._clock() + self._seconds
            again = self._try(self.poll)

    def _try(self, act: Callable[[], float | None]) -> float | None:
        try:
            return act()
        except Exception:
            # Polling goes on whatever a store does.
            log.exception("a poll of the repositories failed, the next one comes in %g s", self._seconds)
            return None

    def _contents(self, name: str) -> str:
        try:
            return self._store.contents(name)
        except InferError as error:
            # The load will say so, once.
            return f"cannot be read: {error}"

    def _ended(self, name: str, future: Future[None]) -> None:
        # Why a load failed has been logged where it failed.
        future.exception()
        self._over.put(name)
        self._wake.set()
