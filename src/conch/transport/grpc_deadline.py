"""A call's deadline: when its client stops waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Deadline:
    """Calls back once, on the loop's thread, unless it is cancelled before."""

    __slots__ = ("_handle", "expires_ns")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], object]) -> None:
        #: In `time.monotonic_ns()`. The loop's handle cannot be asked: for short times uvloop gives one without a time.
        self.expires_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._handle = loop.call_later(seconds, call)

    def cancel(self) -> None:
        self._handle.cancel()
