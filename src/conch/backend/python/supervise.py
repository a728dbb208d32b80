"""When a worker that died is started again: sooner at first, later when it keeps dying."""

from __future__ import annotations

#: Seconds before the first restart, the most, and how long a worker must have lived for its death to be a new story.
FIRST, LONGEST, STEADY = 0.1, 3.0, 5.0
#: After so many restarts in a row that failed, requests are refused instead of waiting.
PATIENCE = 3


class Backoff:
    """Decides; times are monotonic seconds."""

    __slots__ = ("_alive_since", "_delay", "failures")

    def __init__(self, now: float) -> None:
        """The worker has just been started for the first time."""
        self._delay = FIRST
        self._alive_since = now
        #: Restarts in a row that failed.
        self.failures = 0

    @property
    def hopeless(self) -> bool:
        return self.failures >= PATIENCE

    def died(self, now: float) -> float:
        """A worker that was up has died: how long to wait before the restart."""
        if now - self._alive_since >= STEADY:
            self._delay = FIRST
        return self._next()

    def failed(self) -> float:
        """A restart failed: how long to wait before the next."""
        self.failures += 1
        return self._next()

    def started(self, now: float) -> None:
        self.failures = 0
        self._alive_since = now

    def _next(self) -> float:
        delay = self._delay
        self._delay = min(2 * delay, LONGEST)
        return delay
