"""A timer of microseconds for the event loop, whose own timers count milliseconds: too coarse for queue delays."""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_CLOEXEC, _NONBLOCK = 0o2000000, 0o4000


class _Spec(ctypes.Structure):
    """`struct itimerspec`: interval and first expiry, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


@dataclass(order=True, slots=True)
class Alarm:
    """One call to come. Cancelling is free; a cancelled alarm is dropped when its time has come."""

    at_ns: int
    call: Callable[[], object] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class FineTimer:
    """Calls back on the loop's thread through one timer descriptor of the kernel (timerfd). Loop thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError where the kernel gives no timer."""
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _CLOEXEC | _NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._alarms: list[Alarm] = []
        loop.add_reader(self._descriptor, self._ring)

    def later(self, seconds: float, call: Callable[[], object], /) -> Alarm:
        alarm = Alarm(time.monotonic_ns() + max(0, int(seconds * 1e9)), call)
        heapq.heappush(self._alarms, alarm)
        if self._alarms[0] is alarm:
            self._set(alarm.at_ns)
        return alarm

    def close(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _ring(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            """Set anew since it rang."""
        now = time.monotonic_ns()
        alarms = self._alarms
        while alarms and alarms[0].at_ns <= now:
            alarm = heapq.heappop(alarms)
            if not alarm.cancelled:
                alarm.call()
        if alarms:
            self._set(alarms[0].at_ns)

    def _set(self, at_ns: int) -> None:
        # Time 0 would stop the timer; a time that is past rings at once.
        spec = _Spec(0, 0, *divmod(max(1, at_ns), 1_000_000_000))
        self._libc.timerfd_settime(self._descriptor, 1, ctypes.byref(spec), None)
