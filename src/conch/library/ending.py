"""For programs that do nothing but serve: waits until they are to end, and ends them."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable


def serve_until(ended: threading.Event, stop: Callable[[], object]) -> None:
    """Calls `stop` when SIGINT or SIGTERM comes or `ended` is set; signals that come while it stops change nothing.
    They are heard in the main thread alone, as Python's are."""
    if threading.current_thread() is not threading.main_thread():
        _serve(ended, stop)
        return

    def end(*_: object) -> None:
        # In another thread: this one may be inside of the event, and would wait for its lock for ever.
        _thread.start_new_thread(ended.set, ())

    before = [(number, signal.signal(number, end)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        _serve(ended, stop)
    finally:
        for number, handler in before:
            # None: it was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _serve(ended: threading.Event, stop: Callable[[], object]) -> None:
    try:
        ended.wait()
    finally:
        stop()
