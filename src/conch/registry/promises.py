"""Futures that are kept by what comes after other futures, without a thread that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


def promise() -> Future[None]:
    future: Future[None] = Future()
    # Who stops waiting must not stop the work.
    future.set_running_or_notify_cancel()
    return future


def settle(outer: Future[None], error: BaseException | None) -> None:
    if error is None:
        outer.set_result(None)
    else:
        outer.set_exception(error)


def after(futures: Sequence[Future[None]], then: Callable[[], Any]) -> None:
    """Call `then` when all have ended, in the thread of the last one."""
    if not futures:
        then()
        return
    lock = threading.Lock()
    left = [len(futures)]

    def one(_: Future[None]) -> None:
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            then()

    for future in futures:
        future.add_done_callback(one)
