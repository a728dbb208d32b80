"""For programs that do nothing but serve: waits until they are to end."""

from __future__ import annotations

import signal
import threading


def wait_for_end(ended: threading.Event) -> None:
    """Until SIGINT or SIGTERM comes or `ended` is set. Signals are heard in the main thread alone, as Python's are."""
    if threading.current_thread() is not threading.main_thread():
        ended.wait()
        return
    before = [(number, signal.signal(number, lambda *_: ended.set())) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        ended.wait()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
