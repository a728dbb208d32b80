"""Runs work in order within a lane, and lanes side by side: two loads of one model never overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from conch.registry.promises import promise, settle
from conch.registry.threads import Threads
from conch.types.error import unavailable

Work = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Item:
    work: Work
    future: Future[None]
    #: The lane is kept until this has ended; None: until the work is done.
    until: Future[None] | None


class Lanes:
    """A lane exists while it has work. Any thread may call."""

    def __init__(self, threads: int) -> None:
        self.threads = Threads(threads, "conch-load")
        self._lock = threading.Lock()
        #: Lane -> the work that waits behind the one in progress.
        self._waiting: dict[str, deque[_Item]] = {}
        self._ended = False

    def submit(self, lane: str, work: Work) -> Future[None]:
        """Run `work` after everything submitted to this lane before. Its exception becomes the future's."""
        return self.hold({lane: work}, None)[0]

    def hold(self, works: Mapping[str, Work], until: Future[None] | None) -> list[Future[None]]:
        """As `submit`, for several lanes at once, none of which goes on with other work before `until` has ended.

        Two such groups take all lanes that they share in the same order, so they cannot wait for each other.
        """
        items: list[_Item] = []
        first: list[tuple[str, _Item]] = []
        with self._lock:
            for lane, work in works.items():
                item = _Item(work, promise(), until)
                items.append(item)
                if self._ended:
                    item.future.set_exception(unavailable("Server exiting"))
                elif lane in self._waiting:
                    self._waiting[lane].append(item)
                else:
                    self._waiting[lane] = deque()
                    first.append((lane, item))
        for lane, item in first:
            self._start(lane, item)
        return [item.future for item in items]

    def busy(self) -> int:
        """Lanes with work in progress."""
        with self._lock:
            return len(self._waiting)

    def end(self) -> None:
        """Refuse new work and what has not begun; work in progress goes on."""
        with self._lock:
            self._ended = True
            waiting = [item.future for lane in self._waiting.values() for item in lane]
            for lane in self._waiting.values():
                lane.clear()
        for future in waiting:
            future.set_exception(unavailable("Server exiting"))
        self.threads.end()

    def _run(self, lane: str, item: _Item | None) -> None:
        while item is not None:
            error: BaseException | None = None
            try:
                item.work()
            except BaseException as raised:  # noqa: BLE001  it is the future's
                error = raised
            if item.until is not None:
                settle(item.future, error)
                item.until.add_done_callback(partial(self._go_on, lane))
                return
            following = self._next(lane)
            # Who waits for the future may find the lane free.
            settle(item.future, error)
            item = following

    def _go_on(self, lane: str, _: Future[None]) -> None:
        self._start(lane, self._next(lane))

    def _start(self, lane: str, item: _Item | None) -> None:
        while item is not None:
            try:
                self.threads.submit(self._run, lane, item)
            except RuntimeError as error:
                following = self._next(lane)
                item.future.set_exception(unavailable(str(error)))
                item = following
            else:
                return

    def _next(self, lane: str) -> _Item | None:
        """What the lane does next; if that is nothing, the lane is free."""
        with self._lock:
            if self._waiting[lane]:
                return self._waiting[lane].popleft()
            del self._waiting[lane]
            return None
