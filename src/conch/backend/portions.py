"""Into how many runs a batch is best cut, learned from what runs have cost.

Larger batches are not always cheaper. A network whose intermediate results outgrow the processor's cache costs more a
row the more rows there are (a MobileNetV2-like CNN at 224x224 on one core: 4.4 ms in runs of two, 4.9 in runs of four),
and a run of one request needs no copy that joins inputs. Where it pays, a batch runs as several smaller ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from conch.backend.api import ThreadInstance
from conch.types.request import InferRequest

#: Runs of a size before its cost is believed, and how much the newest of them then counts.
ENOUGH: Final = 8
_NEWEST: Final = 1 / 16
#: Nanoseconds a row below which the cost of a run, not that of its rows, decides: nothing to gain.
WORTH_NS: Final = 200_000
#: What smaller runs must cost at most, as a share of what one run costs.
_BETTER: Final = 0.96
#: One in so many batches is run in a size whose cost is not known yet.
_TRY_EVERY: Final = 4
#: Once in so many batches a size is run to see whether its cost is what it was, if that is at most so many times the
#: least; the others, whose clients wait longer for it, once in `_LOOK_FAR_EVERY`.
_LOOK_AGAIN_EVERY: Final = 64
_NEAR: Final = 1.5
_LOOK_FAR_EVERY: Final = 512


@dataclass(slots=True)
class Cost:
    """What a row costs in runs of one size."""

    runs: int = 0
    #: How often the size was asked for to see what it costs; the requests' own sizes may never allow it.
    tries: int = 0
    row_ns: float = 0.0
    #: Whether the next run is a rare look at it, which then counts for half.
    doubted: bool = False

    def seen(self, row_ns: float) -> None:
        self.runs += 1
        # Exact at first, so that one slow beginning is soon forgotten.
        weight = 1 / 2 if self.doubted else max(_NEWEST, 1 / self.runs)
        self.doubted = False
        self.row_ns += (row_ns - self.row_ns) * weight

    @property
    def known(self) -> bool:
        return self.runs >= ENOUGH


class Portions:
    """The costs of one instance's runs and what follows from them. One thread; no clock."""

    def __init__(self) -> None:
        self._costs: dict[int, Cost] = {}
        self._batches = 0

    def seen(self, rows: int, ns: int) -> None:
        """A run of so many rows took so long."""
        self._cost(rows).seen(ns / rows)

    def size(self, rows: int, least: int = 1) -> int:
        """How many rows, at least `least`, each run of a batch of `rows` is to have; `rows` itself where one run is
        best, or not known.

        Tries halves of what is known to be costly, and never anything for models that are cheap.
        """
        whole = self._costs.get(rows)
        if rows < 2 or whole is None or not whole.known or whole.row_ns < WORTH_NS:
            return rows
        sizes = [size for size in _halves(rows) if size >= least]
        if not sizes:
            return rows
        self._batches += 1
        costs = [self._cost(size) for size in sizes]
        if self._batches % _TRY_EVERY == 0:
            for size, cost in zip(sizes, costs, strict=True):
                if not cost.known and cost.tries < ENOUGH:
                    cost.tries += 1
                    return size
        best, lowest = rows, whole.row_ns * _BETTER
        for size, cost in zip(sizes, costs, strict=True):
            if cost.known and cost.row_ns < lowest:
                best, lowest = size, cost.row_ns
        return self._looked_at((rows, *sizes), best) or best

    def cut(self, rows: Sequence[int]) -> list[int]:
        """How many requests each run gets, in order, of a batch whose requests have so many `rows` each.

        The rows of one request are never parted.
        """
        total = sum(rows)
        size = self.size(total, max(rows, default=1))
        return [len(rows)] if size == total else cut(rows, size)

    def _looked_at(self, sizes: Sequence[int], best: int) -> int:
        """The one of `sizes` that it is time to look at again; 0 for none."""
        turn = self._batches % _LOOK_AGAIN_EVERY
        if turn >= len(sizes):
            return 0
        cost = self._costs[sizes[turn]]
        if not cost.known:
            return 0
        if cost.row_ns > _NEAR * self._costs[best].row_ns:
            if self._batches % _LOOK_FAR_EVERY != turn:
                return 0
            cost.doubted = True
        return sizes[turn]

    def _cost(self, rows: int) -> Cost:
        cost = self._costs.get(rows)
        if cost is None:
            cost = self._costs[rows] = Cost()
        return cost


def cut(rows: Sequence[int], most: int) -> list[int]:
    """How many requests, in order, make a run of at most so many rows; a request of more is a run of its own."""
    counts, count, filled = [], 0, 0
    for each in rows:
        if count and filled + each > most:
            counts.append(count)
            count, filled = 0, 0
        count += 1
        filled += each
    return [*counts, count] if count else counts


def parts(batch: Sequence[InferRequest], counts: Sequence[int]) -> Iterator[Sequence[InferRequest]]:
    """The requests of a batch in order, so many at a time."""
    begin = 0
    for count in counts:
        yield batch[begin : begin + count]
        begin += count


class Portioned:
    """A `ThreadInstance` that runs its batches in the portions that cost least."""

    def __init__(self, instance: ThreadInstance, clock: Callable[[], int]) -> None:
        """`clock` in nanoseconds: what the caller's thread computes, or where others compute for it, the time."""
        self.instance = instance
        self._clock = clock
        self._portions = Portions()

    def run(self, batch: Sequence[InferRequest]) -> None:
        for part in parts(batch, self._portions.cut([request.form.rows for request in batch])):
            started = self._clock()
            self.instance.run(part)
            if done := sum([request.form.rows for request in part]):
                self._portions.seen(done, self._clock() - started)

    def close(self) -> None:
        self.instance.close()


def portioned(instance: ThreadInstance, *, alone: bool) -> Portioned:
    """`alone`: the caller's thread does all of a run's work, so that nobody else's time counts."""
    return Portioned(instance, time.thread_time_ns if alone else time.monotonic_ns)


def _halves(rows: int) -> list[int]:
    """4, 2, 1 for 8 or 9 rows."""
    found = []
    while rows > 1:
        rows //= 2
        found.append(rows)
    return found
