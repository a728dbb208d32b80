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
#: The alarms are cleaned when this many, and more than half, are cancelled.
_SLACK = 64


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
    """One call to come. A cancelled alarm is dropped when its time has come, or when there are too many such."""

    at_ns: int
    #: None once it is cancelled or has rung: whoever waited may go, however far away the time is.
    call: Callable[[], object] | None = field(compare=False)
    dropped: Callable[[], object] = field(compare=False)

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self.dropped()


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
        #: How many of them are cancelled.
        self._cancelled = 0
        loop.add_reader(self._descriptor, self._ring)

    def later(self, seconds: float, call: Callable[[], object], /) -> Alarm:
        alarm = Alarm(time.monotonic_ns() + max(0, int(seconds * 1e9)), call, self._drop)
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
        try:
            while alarms and alarms[0].at_ns <= now:
                alarm = heapq.heappop(alarms)
                call, alarm.call = alarm.call, None
                if call is None:
                    self._cancelled -= 1
                else:
                    call()
        finally:
            # Also after a call that raises: the others still wait for their times.
            if alarms:
                self._set(alarms[0].at_ns)

    def _drop(self) -> None:
        """One more is cancelled. Far-off deadlines that are set and given up again must not pile up."""
        self._cancelled += 1
        if self._cancelled > _SLACK and 2 * self._cancelled > len(self._alarms):
            # In place: it may ring right now.
            self._alarms[:] = [alarm for alarm in self._alarms if alarm.call is not None]
            heapq.heapify(self._alarms)
            self._cancelled = 0

    def _set(self, at_ns: int) -> None:
        # Time 0 would stop the timer; a time that is past rings at once.
        spec = _Spec(0, 0, *divmod(max(1, at_ns), 1_000_000_000))
        self._libc.timerfd_settime(self._descriptor, 1, ctypes.byref(spec), None)
