"""Runs work in order within a lane, and lanes side by side: two loads of one model never overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from conch.types.error import unavailable

Work = Callable[[], None]


class Lanes:
    """A lane exists while it has work. Any thread may call."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "conch-load")
        self._lock = threading.Lock()
        #: Lane -> the work that waits behind the one in progress.
        self._waiting: dict[str, deque[tuple[Work, Future[None]]]] = {}
        self._ended = False

    def submit(self, lane: str, work: Work) -> Future[None]:
        """Run `work` after everything submitted to this lane before. Its exception becomes the future's."""
        future: Future[None] = Future()
        # Who stops waiting must not stop the work.
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._ended:
                future.set_exception(unavailable("Server exiting"))
            elif lane in self._waiting:
                self._waiting[lane].append((work, future))
            else:
                self._waiting[lane] = deque()
                self._pool.submit(self._run, lane, work, future)
        return future

    def busy(self) -> int:
        """Lanes with work in progress."""
        with self._lock:
            return len(self._waiting)

    def end(self) -> None:
        """Refuse new work and what has not begun; work in progress goes on."""
        with self._lock:
            self._ended = True
            waiting = [future for lane in self._waiting.values() for _, future in lane]
            for lane in self._waiting.values():
                lane.clear()
        for future in waiting:
            future.set_exception(unavailable("Server exiting"))
        self._pool.shutdown(wait=False)

    def _run(self, lane: str, work: Work, future: Future[None]) -> None:
        while True:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:  # noqa: BLE001  it is the future's
                error = raised
            with self._lock:
                following = self._waiting[lane].popleft() if self._waiting[lane] else None
                if following is None:
                    del self._waiting[lane]
            # Who waits for the future may find the lane free.
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
            if following is None:
                return
            work, future = following
