"""The machine's CPU and memory, read from time to time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """`cpu` is the share of all CPUs' time that was used since the last reading, from 0 to 1; memory is bytes."""

    cpu: float = 0.0
    memory_total: int = 0
    memory_used: int = 0


#: CPU seconds spent in all and idle since boot, memory in all and available.
Reading = tuple[float, float, int, int]


def read() -> Reading:
    """As Triton counts: time waiting for disks is idle time, used memory is all that is not available."""
    import psutil  # noqa: PLC0415  only when metrics are asked for

    times = psutil.cpu_times()
    fields = times._asdict()
    # Linux counts the time of guests in `user` and `nice` already.
    total = sum(fields.values()) - fields.get("guest", 0.0) - fields.get("guest_nice", 0.0)
    memory = psutil.virtual_memory()
    return total, times.idle + fields.get("iowait", 0.0), memory.total, memory.available


class MachineGauge:
    """Reads at most once per interval, when asked."""

    def __init__(
        self, interval: float = 2.0, read: Callable[[], Reading] = read, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = interval
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._machine = Machine()
        self._last: Reading | None = None
        self._read_at = 0.0

    def now(self) -> Machine:
        """The last reading, not older than the interval; the first says nothing of the CPU."""
        with self._lock:
            now = self._clock()
            if self._last is None or now - self._read_at >= self._interval:
                reading = self._read()
                self._machine = _compare(self._last, reading)
                self._last, self._read_at = reading, now
            return self._machine


def _compare(last: Reading | None, reading: Reading) -> Machine:
    total, idle, memory, available = reading
    cpu = 0.0
    if last is not None and total > last[0]:
        cpu = min(1.0, max(0.0, 1.0 - (idle - last[1]) / (total - last[0])))
    return Machine(cpu, memory, memory - available)
