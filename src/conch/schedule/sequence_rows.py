"""Which sequences of one instance run together: pure decisions, no thread, no clock.

A sequence is *ready* while its first waiting request may run: none of its earlier ones runs. Each is ready once.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from conch.schedule.sequence_life import Sequence


class Choice(Protocol):
    """The strategy of one instance. What is ready leaves by `take` or by `drop`, never by itself."""

    #: How many sequences may have a slot.
    slots: int

    def ready(self, sequence: Sequence, now: int) -> None: ...

    def drop(self, sequence: Sequence) -> None:
        """It is not ready any more (or never was)."""

    def take(self, now: int) -> tuple[list[Sequence | None], int]:
        """The rows to run now (None: a row without a request), and if there are none, when to ask again (0: never)."""

    def __len__(self) -> int:
        """How many are ready."""


class Direct:
    """Row and slot are the same: an execution covers row 0 to the last that is ready.

    It waits for `fill` slots to be ready, but for no longer than `delay_ns`. Rows of one execution agree in their batch
    keys; the sequence that is ready for the longest time decides, so that none is passed over for ever.
    """

    def __init__(self, slots: int, delay_ns: int = 0, utilization: float = 0.0) -> None:
        self.slots = slots
        self._delay_ns = delay_ns
        self._fill = utilization * slots
        self._ready: dict[Sequence, None] = {}

    def __len__(self) -> int:
        return len(self._ready)

    def ready(self, sequence: Sequence, now: int) -> None:
        sequence.ready_ns = now
        self._ready[sequence] = None

    def drop(self, sequence: Sequence) -> None:
        self._ready.pop(sequence, None)

    def take(self, now: int) -> tuple[list[Sequence | None], int]:
        if not self._ready:
            return [], 0
        first = next(iter(self._ready))
        if self._delay_ns and len(self._ready) < self._fill:
            until = first.ready_ns + self._delay_ns
            if now < until:
                return [], until
        key = first.key
        fitting = [sequence for sequence in self._ready if sequence.key == key]
        rows: list[Sequence | None] = [None] * (max([sequence.slot for sequence in fitting]) + 1)
        for sequence in fitting:
            rows[sequence.slot] = sequence
            del self._ready[sequence]
        return rows, 0


class Oldest:
    """First ready, first run, up to `max_rows`, with the preferred sizes and the delay of the dynamic batcher.

    The first that does not agree with the others in its batch key closes the batch.
    """

    def __init__(self, slots: int, max_rows: int, preferred: Iterable[int] = (), delay_ns: int = 0) -> None:
        self.slots = slots
        self._max_rows = max(1, max_rows)
        self._preferred = sorted({size for size in preferred if size <= self._max_rows}) or [self._max_rows]
        self._delay_ns = delay_ns
        self._ready: dict[Sequence, None] = {}

    def __len__(self) -> int:
        return len(self._ready)

    def ready(self, sequence: Sequence, now: int) -> None:
        sequence.ready_ns = now
        self._ready[sequence] = None

    def drop(self, sequence: Sequence) -> None:
        self._ready.pop(sequence, None)

    def take(self, now: int) -> tuple[list[Sequence | None], int]:
        if not self._ready:
            return [], 0
        rows: list[Sequence | None] = []
        first = next(iter(self._ready))
        key = first.key
        for sequence in islice(self._ready, self._max_rows):
            if sequence.key != key:
                break
            rows.append(sequence)
        count = len(rows)
        largest = max([size for size in self._preferred if size <= count], default=0)
        closed = count < len(self._ready)
        until = first.ready_ns + self._delay_ns
        if now < until and not largest and not closed:
            return [], until
        if largest and (now < until or not self._delay_ns):
            del rows[largest:]
        for taken in rows:
            if taken is not None:
                del self._ready[taken]
        return rows, 0
