"""Metrics that models define themselves: families by name, shared by all who use the name, and their text."""

from __future__ import annotations

import itertools
import math
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from conch.observe.metrics import escape, join, plain
from conch.types.error import invalid

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_Labels = tuple[tuple[str, str], ...]


class Series:
    """One line of a family, or the lines of one histogram. `owners` who use it, see `Families`."""

    __slots__ = ("bounds", "count", "family", "labels", "lock", "owners", "total", "within")

    def __init__(self, family: Family, labels: _Labels, bounds: Sequence[float]) -> None:
        self.family = family
        self.labels = labels
        self.lock = family.lock
        self.owners = 0
        #: The value of a counter or gauge, the sum of a histogram.
        self.total = 0.0
        self.count = 0
        #: Upper bounds of the buckets, and how many values lie in each and beyond the last.
        self.bounds = bounds
        self.within = [0] * (len(bounds) + 1)

    def increment(self, value: float) -> None:
        with self.lock:
            self.total += value

    def set(self, value: float) -> None:
        with self.lock:
            self.total = value

    def observe(self, value: float) -> None:
        with self.lock:
            self.total += value
            self.count += 1
            self.within[bisect_left(self.bounds, value)] += 1


class Family:
    __slots__ = ("kind", "lock", "name", "owners", "series", "text")

    def __init__(self, name: str, text: str, kind: str, lock: threading.Lock) -> None:
        self.name = name
        self.text = text
        self.kind = kind
        self.lock = lock
        self.owners = 0
        self.series: dict[_Labels, Series] = {}


class Families:
    """All families of the server. Any thread.

    What is asked for twice is shared and counted; it goes when the last who asked has let go of it.
    """

    def __init__(self, taken: Callable[[str], bool] = lambda _: False) -> None:
        """`taken` says whether a name is one of the server's own metrics."""
        self._taken = taken
        self._lock = threading.Lock()
        self._families: dict[str, Family] = {}

    def family(self, name: str, text: str, kind: str) -> Family:
        """`kind`: counter, gauge or histogram. The first text stays. Raises InferError."""
        if not _NAME.fullmatch(name) or name.startswith("__"):
            raise invalid("Invalid metric name", f"{name!r} must be made of letters, digits, '_' and ':'")
        with self._lock:
            known = self._families.get(name)
            if self._taken(name) or (known is not None and known.kind != kind):
                raise invalid("Family name already exists with different type", f"choose another name than {name!r}")
            if known is None:
                known = self._families[name] = Family(name, text, kind, self._lock)
            known.owners += 1
            return known

    def series(self, family: Family, labels: Mapping[str, str], bounds: Sequence[float]) -> Series:
        """Raises InferError."""
        reserved = "le" if family.kind == "histogram" else ""
        for name in labels:
            if not _LABEL.fullmatch(name) or name == reserved:
                raise invalid("Invalid label name", f"{name!r} must be made of letters, digits and '_'")
        if any(low >= high for low, high in itertools.pairwise(bounds)):
            raise invalid("Bucket Boundaries must be strictly sorted", f"found {list(bounds)}")
        if bounds and bounds[-1] == math.inf:
            # There always is a bucket for the rest.
            bounds = bounds[:-1]
        key = tuple(sorted(labels.items()))
        with self._lock:
            found = family.series.get(key)
            if found is None:
                found = family.series[key] = Series(family, key, tuple(bounds))
            found.owners += 1
            return found

    def drop_series(self, series: Series) -> None:
        with self._lock:
            series.owners -= 1
            if not series.owners:
                del series.family.series[series.labels]

    def drop_family(self, family: Family) -> None:
        """After its series."""
        with self._lock:
            family.owners -= 1
            if not family.owners:
                del self._families[family.name]

    def render(self) -> bytes:
        """What goes on the metrics page; a family without series is left out."""
        with self._lock:
            lines = [line for family in self._families.values() if family.series for line in _lines(family)]
        return "".join(lines).encode("utf-8", "backslashreplace")


def _lines(family: Family) -> Iterable[str]:
    text = family.text.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"# HELP {family.name} {text}\n# TYPE {family.name} {family.kind}\n"
    for series in family.series.values():
        labels = dict(series.labels)
        shown = join(labels) if labels else ""
        if family.kind != "histogram":
            yield f"{family.name}{shown} {plain(series.total)}\n"
            continue
        yield f"{family.name}_count{shown} {series.count}\n{family.name}_sum{shown} {plain(series.total)}\n"
        below = 0
        front = "".join([f'{name}="{escape(value)}",' for name, value in series.labels])
        for bound, count in zip((*series.bounds, None), series.within, strict=True):
            below += count
            edge = "+Inf" if bound is None else plain(bound)
            yield f'{family.name}_bucket{{{front}le="{edge}"}} {below}\n'
