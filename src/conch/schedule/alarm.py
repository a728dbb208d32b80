"""When a scheduler asks its batcher again although nothing has happened: delays and deadlines pass by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Later(Protocol):
    """Runs a call on the event loop's thread after so many seconds. Only on that thread."""

    def __call__(self, seconds: float, call: Callable[[], object], /) -> Timer: ...


class Alarm:
    """One per scheduler. `earlier` and `at` under its lock; `arm` and `due` on the loop's thread."""

    __slots__ = ("_clock", "_later", "_ring", "_timer", "at")

    def __init__(self, later: Later, clock: Callable[[], int], ring: Callable[[], object]) -> None:
        """`ring` is called on the loop when the time may have come: it asks whether the alarm is `due`."""
        self._later = later
        self._clock = clock
        self._ring = ring
        self._timer: Timer | None = None
        #: Monotonic nanoseconds; 0 for never.
        self.at = 0

    def earlier(self, at: int) -> bool:
        """Take `at` (0: never) if that is before what is set; True when it must then be armed anew."""
        if at == 0 or (self.at != 0 and self.at <= at):
            return False
        self.at = at
        return True

    def arm(self) -> None:
        """See to it that it rings at `at`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._later((self.at - self._clock()) / 1e9, self._ring)

    def due(self, now: int) -> bool:
        """Whether it is time; if it rang too early it is armed again."""
        if self.at == 0:
            return False
        if now < self.at:
            self.arm()
            return False
        return True
