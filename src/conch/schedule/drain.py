"""How fast a model's queue drains, measured while more waits than is taken: what refused clients are told. Pure."""

from __future__ import annotations

import math
from typing import Final

#: What lies this far back, in nanoseconds of busy time, counts for a third.
_MEMORY_NS: Final = 5e9
#: What is said before anything has been measured, and at most, in seconds.
_UNKNOWN_S: Final = 1.0
_LONGEST_S: Final = 3600.0


class DrainRate:
    """Times in which the queue is empty do not count: they say how fast clients ask, not how fast the model is."""

    __slots__ = ("_busy_ns", "_done", "_since")

    def __init__(self) -> None:
        self._done = 0.0
        self._busy_ns = 0.0
        #: When a batch was last taken and left requests waiting; 0 while none wait.
        self._since = 0

    def took(self, count: int, left: int, now: int) -> None:
        """An instance took `count` requests, and `left` still wait."""
        if self._since:
            elapsed = now - self._since
            fade = math.exp(-elapsed / _MEMORY_NS)
            self._done = self._done * fade + count
            self._busy_ns = self._busy_ns * fade + elapsed
        self._since = now if left else 0

    def seconds(self, waiting: int, now: int) -> float:
        """How long it takes until `waiting` requests have been taken."""
        if not self._done:
            return _UNKNOWN_S
        # A batch that takes longer than those before it counts before it is over.
        busy = self._busy_ns + (now - self._since if self._since else 0)
        return min(_LONGEST_S, waiting * busy / self._done / 1e9)
