"""Threads that loads run on: a bounded number, and one more for each load that a model waits for."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Never reached: what bounds them is counted here.
_MOST: Final = 1_000_000


class EndedError(RuntimeError):
    """No work is taken any more."""


class Threads:
    """As a ThreadPoolExecutor of so many threads that can be lent more. Any thread may call."""

    def __init__(self, threads: int, name: str) -> None:
        # It starts a thread only where none is idle.
        self._pool = ThreadPoolExecutor(_MOST, name)
        self._lock = threading.Lock()
        #: How many may start to work now; below zero where what was lent has ended and is still in use.
        self._free = threads
        self._waiting: deque[Callable[[], None]] = deque()
        self._begun: set[Future[Any]] = set()
        self._ended = False

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises EndedError after `end`, and RuntimeError where the system has no thread for it."""
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise EndedError("Server exiting")
            self._begun.add(future)
            self._waiting.append(partial(self._run, future, partial(work, *args, **kwargs)))
            try:
                self._start()
            except RuntimeError:
                # The pool has it all the same, and it would be done by whatever thread there is later.
                future.cancel()
                raise
        return future

    def lend(self, until: Future[Any]) -> None:
        """One thread more until this has ended: whoever waits for it may occupy one meanwhile, and it needs another."""
        self._change(1)
        until.add_done_callback(lambda _: self._change(-1))

    def end(self, *, cancel: bool = False) -> None:
        """Take no more work. What waits is still done, or cancelled. Does not wait."""
        with self._lock:
            self._ended = True
            cancelled = list(self._begun) if cancel else []
        for future in cancelled:
            # What has begun does not mind.
            future.cancel()
        self._change(0)

    def _change(self, by: int) -> None:
        with self._lock:
            self._free += by
            # What no thread could be started for is in the pool's queue, and those that there are come to it.
            with contextlib.suppress(RuntimeError):
                self._start()

    def _start(self) -> None:
        """With the lock held."""
        while self._waiting and self._free > 0:
            self._free -= 1
            self._pool.submit(self._waiting.popleft())
        if self._ended and not self._waiting:
            self._pool.shutdown(wait=False)

    def _run(self, future: Future[T], work: Callable[[], T]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as raised:  # noqa: BLE001  it is the future's
                    future.set_exception(raised)
                else:
                    future.set_result(result)
        finally:
            with self._lock:
                self._begun.discard(future)
            self._change(1)
