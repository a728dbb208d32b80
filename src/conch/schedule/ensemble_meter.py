"""What the steps of one request have spent; a step's times are told after its answer, and so maybe after the whole."""

from __future__ import annotations

import threading

from conch.observe.stats import Compute


class Meter:
    """Adds up, and tells apart what comes after the sum was asked for. Any thread."""

    __slots__ = ("_lock", "_sum", "over")

    def __init__(self) -> None:
        self._sum: Compute = (0, 0, 0)
        #: Whether the sum has been asked for.
        self.over = False
        self._lock = threading.Lock()

    def add(self, times: Compute) -> Compute | None:
        """None; when the sum has been asked for already, what it was before these."""
        with self._lock:
            before = one, two, three = self._sum
            self._sum = (one + times[0], two + times[1], three + times[2])
            return before if self.over else None

    def close(self) -> Compute:
        """Nanoseconds in input, inference and output until now."""
        with self._lock:
            self.over = True
            return self._sum
