"""Ends versions that no longer serve: waits until their last request is answered, then closes them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from conch.memory.reclaim import reclaim
from conch.memory.thrift import THRIFT
from conch.registry.served import ServedVersion
from conch.registry.succession import lingers

log = logging.getLogger("conch.registry")

#: How long to wait, at most, for the event loop to say that it has seen the change: it may not be running.
_SETTLE_SECONDS = 1.0
#: The time between two reclaims, at least.
_TIDY_PAUSE = 0.2
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


class Post(Protocol):
    """Runs a call on the event loop's thread, soon. Any thread. RuntimeError when there is no loop any more."""

    def __call__(self, call: Callable[[], object], /) -> object: ...


@dataclass(slots=True)
class _Retired:
    served: ServedVersion
    done: Callable[[], None]
    #: When requests are refused at the latest.
    stop_at: float
    #: The loop has finished what it did when the version was swapped out, so no request is between look-up and submit.
    settled: bool = False
    stopped: bool = False
    #: It could not be asked whether it is idle, and that has been logged.
    odd: bool = False

    def settle(self) -> None:
        self.settled = True


class Reaper:
    """One thread watches, a few close. Any thread may call."""

    def __init__(self, post: Post, workers: int = 8) -> None:
        self._post = post
        self._closers = ThreadPoolExecutor(workers, "conch-close")
        self._changed = threading.Condition()
        self._retired: list[_Retired] = []
        self._closing = 0
        #: Something was closed since memory was reclaimed, which is done again at this time at the earliest.
        self._untidy = False
        self._tidy_at = 0.0
        self._ended = False
        self._thread: threading.Thread | None = None

    def retire(self, served: ServedVersion, done: Callable[[], None]) -> None:
        """Close `served` when its last request is answered, then call `done` (in another thread)."""
        item = _Retired(served, done, time.monotonic() + _SETTLE_SECONDS)
        with self._changed:
            self._retired.append(item)
            self._wake()
        try:
            self._post(item.settle)
        except RuntimeError:
            item.settle()

    def tidy(self) -> None:
        """A load has failed half-way: what it has freed is given back soon."""
        with self._changed:
            self._untidy = True
            self._wake()

    def alive(self) -> int:
        """Retired versions that are not closed yet."""
        with self._changed:
            return len(self._retired) + self._closing

    def wait(self, seconds: float) -> bool:
        """Whether everything retired is closed, after at most so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._retired and not self._closing, seconds)

    def end(self) -> None:
        """Stop watching; what is still retired is left as it is."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._closers.shutdown(wait=False, cancel_futures=True)

    def _watch(self) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            with self._changed:
                while not self._retired and not self._ended and (left := self._untidy_in()) != 0:
                    self._changed.wait(left)
                    pause = _SHORTEST_PAUSE
                if self._ended:
                    return
                items = list(self._retired)
            finished = [item for item in items if _is_idle(item)]
            with self._changed:
                for item in finished:
                    self._retired.remove(item)
                self._closing += len(finished)
                if self._ended:
                    return
                for item in finished:
                    self._closers.submit(self._close, item)
                tidy = self._untidy_in() == 0
                pause = _SHORTEST_PAUSE if finished else min(pause * 2, _LONGEST_PAUSE)
                if self._retired and not tidy:
                    self._changed.wait(pause)
            if tidy:
                self._reclaim()

    def _close(self, item: _Retired) -> None:
        try:
            item.served.leave()
            with THRIFT:
                item.served.close()
        except BaseException:
            # Foreign code again; the version is gone either way.
            log.exception("failed to close '%s' version %d", item.served.name, item.served.version)
        try:
            item.done()
        finally:
            with self._changed:
                self._closing -= 1
                self._untidy = True
                self._changed.notify_all()

    def _untidy_in(self) -> float | None:
        """With the lock held: seconds until memory is to be reclaimed; None: there is nothing to reclaim."""
        if not self._untidy or self._closing:
            return None
        return max(0.0, self._tidy_at - time.monotonic())

    def _reclaim(self) -> None:
        """What frameworks have freed stays with the process otherwise, and is as good as lost. Once for many."""
        self._untidy = False
        reclaim()
        self._tidy_at = time.monotonic() + _TIDY_PAUSE

    def _wake(self) -> None:
        """With the lock held."""
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="conch-reaper", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # The next one tries again.
                log.error("versions cannot be closed now: %s", error)  # noqa: TRY400  the text says it
            else:
                self._thread = thread
        self._changed.notify_all()


def _is_idle(item: _Retired) -> bool:
    """A version that cannot be asked is not idle; the thread goes on with the others."""
    try:
        return _may_close(item)
    except Exception:
        if not item.odd:
            log.exception("'%s' version %d cannot be closed yet", item.served.name, item.served.version)
        item.odd = True
        return False


def _may_close(item: _Retired) -> bool:
    if not item.stopped:
        if (not item.settled and time.monotonic() < item.stop_at) or not item.served.end():
            return False
        item.served.scheduler.stop()
        item.stopped = True
    # In this order: the last request of a sequence ends both.
    return not lingers(item.served) and item.served.scheduler.inflight() == 0
