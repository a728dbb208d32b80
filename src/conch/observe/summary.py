"""How durations of the last minute are distributed: quantiles from counts of logarithms."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

#: Values are kept by their logarithms, to half a percent; a slot has those of ten seconds, a window has six slots.
_SCALE: Final = 1 / math.log(1.01)
_SLOT_NS: Final = 10_000_000_000
_SLOTS: Final = 6


class Summary:
    """Durations: the number and sum of all, and how those of the last minute are distributed. Not locked."""

    __slots__ = ("_slots", "count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0
        #: Which ten seconds, and how many values have each logarithm; the newest last.
        self._slots: list[tuple[int, dict[int, int]]] = []

    def observe(self, ns: int, now_ns: int, count: int = 1) -> None:
        """So many times this duration; `now_ns` is monotonic."""
        self.count += count
        self.ns += ns * count
        slot = now_ns // _SLOT_NS
        slots = self._slots
        if not slots or slots[-1][0] < slot:
            slots.append((slot, {}))
            self._forget(slot)
        place, held = _place(ns), slots[-1][1]
        held[place] = held.get(place, 0) + count

    def amend(self, ns: int, more: int) -> None:
        """One that was observed as `ns` has lasted `more` than that."""
        self.ns += more
        was, is_now = _place(ns), _place(ns + more)
        held = next((held for _, held in reversed(self._slots) if held.get(was)), None)
        if held is not None:
            held[was] -= 1
            held[is_now] = held.get(is_now, 0) + 1

    def quantiles_us(self, wanted: Sequence[float], now_ns: int) -> list[float]:
        """In microseconds; NaN where nothing was observed in the last minute."""
        self._forget(now_ns // _SLOT_NS)
        held: dict[int, int] = {}
        for _, slot in self._slots:
            for place, count in slot.items():
                held[place] = held.get(place, 0) + count
        places = sorted(held)
        ranks, total = [], 0
        for place in places:
            total += held[place]
            ranks.append(total)
        if not total:
            return [math.nan] * len(wanted)
        found = [places[bisect_left(ranks, max(1, math.ceil(each * total)))] for each in wanted]
        return [0.0 if place < 0 else round(math.exp((place - 0.5) / _SCALE) / 1000, 3) for place in found]

    def _forget(self, slot: int) -> None:
        while self._slots and self._slots[0][0] <= slot - _SLOTS:
            del self._slots[0]


def _place(ns: int) -> int:
    return math.ceil(math.log(ns) * _SCALE) if ns > 0 else -1


def together(summaries: Sequence[Summary]) -> Summary:
    """One summary of all that these were told, a copy. Not locked."""
    found = Summary()
    slots: dict[int, dict[int, int]] = {}
    for each in summaries:
        found.count += each.count
        found.ns += each.ns
        for slot, held in each._slots:
            mine = slots.setdefault(slot, {})
            for place, count in held.items():
                mine[place] = mine.get(place, 0) + count
    found._slots = sorted(slots.items(), key=lambda each: each[0])
    return found
