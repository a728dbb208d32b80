"""How latencies are distributed, where `--metrics-config` asks for that: quantiles of the last minute, a histogram."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conch.config.model_metrics import first_response_ms
from conch.observe.summary import Summary, together
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError
from conch.types.request import InferRequest, ResponseSink
from conch.types.response import FINAL, FailedResponse, InferResponse

_log = logging.getLogger("conch")

#: Quantiles and the errors in rank that are allowed, in Triton's order.
QUANTILES: Final = ((0.5, 0.05), (0.9, 0.01), (0.95, 0.001), (0.99, 0.001), (0.999, 0.001))
#: Upper ends of the buckets of first responses where a model has none of its own, in milliseconds.
FIRST_MS: Final = (100, 500, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Details:
    """What the metrics page says of latencies beyond sums. Ranks are exact, so errors are never larger than allowed."""

    counters: bool = True
    histograms: bool = False
    summaries: bool = False
    quantiles: tuple[tuple[float, float], ...] = QUANTILES

    @property
    def single(self) -> bool:
        """Whether single durations are wanted at all, not only their sums."""
        return self.histograms or self.summaries


#: What a server keeps that is asked for nothing more.
SUMS: Final = Details()


def details_of(settings: Sequence[tuple[str, str]]) -> Details:
    """From the settings of `--metrics-config`; of a setting given twice the last counts. Raises ValueError."""
    given = dict(settings)
    quantiles = given.pop("summary_quantiles", None)
    flags = {name: _flag(name, given.pop(name, default)) for name, default in _FLAGS.items()}
    if given:
        raise ValueError(
            f"--metrics-config: unknown setting '{next(iter(given))}', expected one of {', '.join(_FLAGS)}, "
            "summary_quantiles"
        )
    return Details(
        flags["counter_latencies"],
        flags["histogram_latencies"],
        flags["summary_latencies"],
        QUANTILES if quantiles is None else _quantiles(quantiles),
    )


_FLAGS: Final = {"counter_latencies": "true", "histogram_latencies": "false", "summary_latencies": "false"}


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "on", "1", "false", "off", "0"):
        raise ValueError(f"--metrics-config: {name} must be true or false, got: {text}")
    return text.lower() in ("true", "on", "1")


def _quantiles(text: str) -> tuple[tuple[float, float], ...]:
    """Of a quantile given twice the last error counts: the page must not have two lines of one name."""
    found: dict[float, float] = {}
    try:
        for each in text.removesuffix(",").split(","):
            quantile, error = map(float, each.split(":"))
            found[quantile] = error
    except ValueError:
        found = {}
    if not found or not all(0 <= number <= 1 for pair in found.items() for number in pair):
        raise ValueError(
            "--metrics-config: summary_quantiles must be pairs <quantile>:<error> with commas between them, each "
            f"number from 0 to 1, got: {text}"
        )
    return tuple(found.items())


_SUMMARIES: Final = (
    "request", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip


class FirstResponses:
    """How long clients waited for their first response, in buckets. Any thread."""

    __slots__ = ("_ends_ns", "_lock", "counts", "ends_ms", "ns")

    def __init__(self, ends_ms: Sequence[float] = FIRST_MS) -> None:
        """`ends_ms` are the upper ends of the buckets, in milliseconds, ascending."""
        self._lock = threading.Lock()
        self.ends_ms = tuple(ends_ms)
        self._ends_ns = tuple([end * 1_000_000 for end in ends_ms])
        #: How many came within each bucket, and later, and the sum of their times.
        self.counts = [0] * (len(ends_ms) + 1)
        self.ns = 0

    def observe(self, durations_ns: Iterable[int]) -> None:
        with self._lock:
            for ns in durations_ns:
                self.counts[bisect_left(self._ends_ns, ns)] += 1
                self.ns += ns


class Latencies:
    """Of one model version, from its load on. Any thread. Errors count for nothing: to fail fast is not to be fast."""

    def __init__(self, details: Details, *, decoupled: bool, first: FirstResponses | None = None) -> None:
        """`first` is where first responses go if not into buckets of its own; none are where nobody asks for them."""
        self.details = details
        self._decoupled = decoupled
        self._lock = threading.Lock()
        self.request = Summary()
        self.queue = Summary()
        self.compute_input = Summary()
        self.compute_infer = Summary()
        self.compute_output = Summary()
        self._compute = (self.compute_input, self.compute_infer, self.compute_output)
        self.cache_hit = Summary()
        self.cache_miss = Summary()
        self.first = (first or FirstResponses()) if details.histograms else None

    def beside(self) -> Latencies:
        """Others for some of the version's instances: quantiles of their own, and the same first responses."""
        return Latencies(self.details, decoupled=self._decoupled, first=self.first)

    def executed(self, requests: Sequence[InferRequest], start_ns: int, compute: Sequence[int], end_ns: int) -> None:
        """As `ModelStats.executed`; `compute` is input, inference and output in nanoseconds, empty of hits."""
        if not requests:
            return
        if self.first is not None and not self._decoupled:
            self.first.observe([end_ns - request.received_ns for request in requests])
        if not self.details.summaries:
            return
        with self._lock:
            for request in requests:
                self.request.observe(end_ns - request.received_ns, end_ns)
                self.queue.observe(start_ns - request.queued_ns, end_ns)
            for summary, ns in zip(self._compute, compute, strict=False):
                summary.observe(ns, end_ns, len(requests))

    def composed_more(self, compute: Sequence[int], before: Sequence[int]) -> None:
        """As `ModelStats.composed_more`."""
        if self.details.summaries:
            with self._lock:
                for summary, more, ns in zip(self._compute, compute, before, strict=True):
                    summary.amend(ns, more)

    def hit(self, requests: Sequence[InferRequest], found_ns: int, end_ns: int, hit_ns: int) -> None:
        self.executed(requests, found_ns, (), end_ns)
        if self.details.summaries:
            with self._lock:
                self.cache_hit.observe(hit_ns, end_ns, len(requests))

    def missed(self, ns: int, now_ns: int) -> None:
        if self.details.summaries:
            with self._lock:
                self.cache_miss.observe(ns, now_ns)

    def watch(self, request: InferRequest) -> None:
        """The scheduler has taken `request`: its first response is to be timed if its model may answer more often."""
        if self._decoupled and self.first is not None:
            request.sink = _FirstSink(request.sink, self.first)

    def shown(self, summary: Summary, now_ns: int) -> tuple[int, int, list[float]]:
        """Count, sum in microseconds and quantiles of one of the summaries."""
        with self._lock:
            quantiles = summary.quantiles_us([each for each, _ in self.details.quantiles], now_ns)
            return summary.count, summary.ns // 1000, quantiles


def joined(parts: Sequence[Latencies]) -> Latencies | None:
    """A copy with the quantiles of all `parts`, which share their first responses; None where there are none."""
    if not parts:
        return None
    found = parts[0].beside()
    with contextlib.ExitStack() as locked:
        for each in parts:
            locked.enter_context(each._lock)
        for name in _SUMMARIES:
            setattr(found, name, together([getattr(each, name) for each in parts]))
    return found


def latencies_of(details: Details, config: ModelConfig, *, decoupled: bool) -> Latencies | None:
    """Of a version that is loaded; None where sums are enough."""
    ends = first_response_ms(config)
    if ends is not None and not details.histograms:
        _log.warning(
            "model '%s': the buckets in its 'model_metrics' have no effect without "
            "--metrics-config=histogram_latencies=true", config.name,
        )  # fmt: skip
    return Latencies(details, decoupled=decoupled, first=FirstResponses(ends or FIRST_MS)) if details.single else None


class _FirstSink:
    """Times the first response; everything else is the sink's that it stands for."""

    __slots__ = ("_first", "_inner", "_waits")

    def __init__(self, inner: ResponseSink, first: FirstResponses) -> None:
        self._inner = inner
        self._first = first
        self._waits = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if self._waits and response is not FINAL:
            self._waits = False
            if not isinstance(response, FailedResponse):
                self._first.observe((time.monotonic_ns() - request.received_ns,))
        self._inner.reply(request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._inner.fail(request, error)
