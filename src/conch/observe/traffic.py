"""What happens on the arms and shadows of traffic routes, and how the metrics page says it."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from conch.observe.metrics import join, plain
from conch.types.difference import Difference
from conch.types.error import Code, InferError

C = TypeVar("C")

#: Upper ends of the buckets of latencies, in microseconds.
BUCKETS: Final = (
    100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
)  # fmt: skip
_BUCKETS_NS: Final = tuple([1000 * end for end in BUCKETS])
RESULTS: Final = ("success", "failure", "cancelled")
#: So many labels of arms, and of shadows, are remembered of a name, unless its route has more.
MOST_LABELS: Final = 256
OUTCOMES: Final = ("matched", "mismatched", "error", "dropped", "skipped")


class ArmCounts:
    """The requests that one arm answered. Any thread."""

    __slots__ = ("_cancelled", "_failures", "_lock", "buckets", "total_ns")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Of successful requests: how many were within each of `BUCKETS`, and beyond the last.
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.total_ns = 0
        self._failures = 0
        self._cancelled = 0

    @property
    def results(self) -> dict[str, int]:
        """How many requests ended how, in the order of `RESULTS`."""
        return dict(zip(RESULTS, (sum(self.buckets), self._failures, self._cancelled), strict=True))

    def succeeded(self, ns: int) -> None:
        """A request has had its last answer, `ns` after it had come."""
        place = bisect_left(_BUCKETS_NS, ns)
        with self._lock:
            self.buckets[place] += 1
            self.total_ns += ns

    def failed(self, error: InferError) -> None:
        with self._lock:
            if error.code is Code.CANCELLED:
                self._cancelled += 1
            else:
                self._failures += 1


class ShadowCounts:
    """The copies that one shadow got. Any thread."""

    __slots__ = ("_lock", "example", "in_flight", "largest", "outcomes")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: matched, mismatched: both answered; error: the shadow alone did not; dropped: it was not asked, for too much
        #: was on its way; skipped: the primary did not answer, so that there was nothing to compare with.
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        #: The largest difference of two numbers so far, within tolerance or not.
        self.largest = 0.0
        #: What the last one said that did not match or failed.
        self.example = ""
        #: Copies whose outcome is not known yet.
        self.in_flight = 0

    def begin(self, most: int) -> bool:
        """Whether one more may be on its way; if not, it is dropped."""
        with self._lock:
            if self.in_flight >= most:
                self.outcomes["dropped"] += 1
                return False
            self.in_flight += 1
            return True

    def drop(self) -> None:
        with self._lock:
            self.outcomes["dropped"] += 1

    def end(self, outcome: str, example: str = "") -> None:
        """What has become of one that was begun."""
        with self._lock:
            self.in_flight -= 1
            self.outcomes[outcome] += 1
            self.example = example or self.example

    def compared(self, difference: Difference, example: str) -> None:
        with self._lock:
            self.largest = max(self.largest, difference.largest)
        self.end("mismatched" if difference.reason else "matched", example)


@dataclass(slots=True)
class RouteCounts:
    """Of one routed name, by the labels of its arms and shadows; they outlive changes of the route."""

    arms: dict[str, ArmCounts] = field(default_factory=dict)
    shadows: dict[str, ShadowCounts] = field(default_factory=dict)

    def arm(self, label: str) -> ArmCounts:
        return self.arms.setdefault(label, ArmCounts())

    def shadow(self, label: str) -> ShadowCounts:
        return self.shadows.setdefault(label, ShadowCounts())

    def forget(self, arms: Collection[str], shadows: Collection[str]) -> None:
        """The route has these now: of others, those that came first are forgotten where there are too many."""
        _shorten(self.arms, arms)
        _shorten(self.shadows, shadows)


def _shorten(counts: dict[str, C], kept: Collection[str]) -> None:
    others = [label for label in counts if label not in kept]
    for label in others[: max(0, len(counts) - MOST_LABELS)]:
        del counts[label]


def render(routes: Mapping[str, RouteCounts]) -> bytes:
    """The part of the metrics page that is about traffic; empty where nothing is routed."""
    arms = [(name, label, each) for name, counts in sorted(routes.items()) for label, each in _sorted(counts.arms)]
    shadows = [
        (name, label, each) for name, counts in sorted(routes.items()) for label, each in _sorted(counts.shadows)
    ]
    lines: list[str] = []
    if arms:
        lines += _head("conch_traffic_requests_total", "counter", "Requests of a routed model by arm and result")
        for model, label, arm in arms:
            lines += [
                _line("conch_traffic_requests_total", {"model": model, "arm": label, "result": result}, count)
                for result, count in arm.results.items()
            ]
        lines += _head("conch_traffic_latency_us", "histogram", "Microseconds that successful requests took, by arm")
        for model, label, arm in arms:
            lines += _histogram(model, label, arm)
    if shadows:
        lines += _head("conch_shadow_requests_total", "counter", "Copies of requests for a shadow by result")
        for model, label, shadow in shadows:
            lines += [
                _line("conch_shadow_requests_total", {"model": model, "shadow": label, "result": outcome}, count)
                for outcome, count in shadow.outcomes.items()
            ]
        for name, text, value in _GAUGES:
            lines += _head(name, "gauge", text)
            lines += [
                _line(name, {"model": model, "shadow": label}, getattr(shadow, value))
                for model, label, shadow in shadows
            ]
    return "".join(lines).encode("utf-8", "backslashreplace")


_GAUGES: Final = (
    ("conch_shadow_largest_difference", "Largest difference of two numbers of primary and shadow", "largest"),
    ("conch_shadow_in_flight", "Copies of requests whose result is not known yet", "in_flight"),
)


def _sorted(counts: dict[str, C]) -> Iterable[tuple[str, C]]:
    # Others may add to it meanwhile.
    return sorted(counts.copy().items(), key=lambda each: each[0])


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}\n# TYPE {name} {kind}\n"]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    return f"{name}{join(labels)} {plain(value)}\n"


def _histogram(model: str, label: str, arm: ArmCounts) -> list[str]:
    name, labels = "conch_traffic_latency_us", {"model": model, "arm": label}
    lines, sum_so_far = [], 0
    for end, count in zip([*BUCKETS, None], list(arm.buckets), strict=True):
        sum_so_far += count
        lines.append(_line(f"{name}_bucket", {**labels, "le": "+Inf" if end is None else str(end)}, sum_so_far))
    return [*lines, _line(f"{name}_sum", labels, arm.total_ns // 1000), _line(f"{name}_count", labels, sum_so_far)]
