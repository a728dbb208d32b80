"""The metrics page, in the Prometheus text format, with Triton's names and texts.

Written by hand: client libraries rename counters to `..._total` and print large values with an exponent, and tools of
Triton's (perf_analyzer) read these numbers with patterns that know plain digits alone.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from conch.observe.latencies import FirstResponses, Latencies
from conch.observe.process import Machine
from conch.observe.series import Metered, Series, series_of
from conch.observe.stats import CacheStats, ModelStats, Reason
from conch.observe.summary import Summary

#: What the names of the server's own metrics begin with.
_OWN = ("nv_inference_", "nv_model_", "nv_cache_", "nv_cpu_", "nv_gpu_", "nv_energy_", "conch_")

CONTENT_TYPE = "text/plain; charset=utf-8"


#: The per-model counters after the failures, in Triton's order: name, help text, value.
_COUNTERS: tuple[tuple[str, str, Callable[[ModelStats], int]], ...] = (
    (
        "nv_inference_count",
        "Number of inferences performed (does not include cached requests)",
        lambda stats: stats.inferences,
    ),
    (
        "nv_inference_exec_count",
        "Number of model executions performed (does not include cached requests)",
        lambda stats: stats.executions,
    ),
    (
        "nv_inference_request_duration_us",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda stats: stats.success.ns // 1000,
    ),
    (
        "nv_inference_queue_duration_us",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda stats: stats.queue.ns // 1000,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda stats: stats.compute_input.ns // 1000,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda stats: stats.compute_infer.ns // 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda stats: stats.compute_output.ns // 1000,
    ),
)

#: The counters of models with a response cache.
_CACHE_COUNTERS: tuple[tuple[str, str, Callable[[ModelStats], int]], ...] = (
    ("nv_cache_num_hits_per_model", "Number of cache hits per model", lambda stats: stats.cache_hit.count),
    (
        "nv_cache_hit_duration_per_model",
        "Total cache hit duration per model, in microseconds",
        lambda stats: stats.cache_hit.ns // 1000,
    ),
    ("nv_cache_num_misses_per_model", "Number of cache misses per model", lambda stats: stats.cache_miss.count),
    (
        "nv_cache_miss_duration_per_model",
        "Total cache miss (insert+lookup) duration per model, in microseconds",
        lambda stats: stats.cache_miss.ns // 1000,
    ),
)

#: Counters that `counter_latencies=false` leaves out.
_LATENCY_COUNTERS = frozenset([name for name, _, _ in _COUNTERS if name.endswith("_us")])

#: Summaries, where they are asked for: name, help text, which. `nv_cache_` ones are of models with a response cache.
_SUMMARIES: tuple[tuple[str, str, Callable[[Latencies], Summary]], ...] = (
    (
        "nv_inference_request_summary_us",
        "Summary of inference request duration in microseconds (includes cached requests)",
        lambda latencies: latencies.request,
    ),
    (
        "nv_inference_queue_summary_us",
        "Summary of inference queuing duration in microseconds (includes cached requests)",
        lambda latencies: latencies.queue,
    ),
    (
        "nv_inference_compute_input_summary_us",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda latencies: latencies.compute_input,
    ),
    (
        "nv_inference_compute_infer_summary_us",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda latencies: latencies.compute_infer,
    ),
    (
        "nv_inference_compute_output_summary_us",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda latencies: latencies.compute_output,
    ),
    (
        "nv_cache_hit_summary_per_model",
        "Summary of cache hit counts/durations per model, in microseconds.",
        lambda latencies: latencies.cache_hit,
    ),
    (
        "nv_cache_miss_summary_per_model",
        "Summary of cache miss counts/durations per model, in microseconds.",
        lambda latencies: latencies.cache_miss,
    ),
)

_REQUEST_SUMMARY = _SUMMARIES[0][0]
_CACHE_SUMMARIES = frozenset([name for name, _, _ in _SUMMARIES if name.startswith("nv_cache_")])

#: What the cache in this process says of itself.
_CACHE_GAUGES: tuple[tuple[str, str, Callable[[CacheStats], float]], ...] = (
    ("nv_cache_util", "Cache utilization [0.0 - 1.0]", lambda cache: cache.utilization),
    ("nv_cache_num_entries", "Number of responses stored in response cache", lambda cache: cache.entries),
    ("nv_cache_num_hits", "Number of cache hits in response cache", lambda cache: cache.hits),
    ("nv_cache_num_misses", "Number of cache misses in response cache", lambda cache: cache.misses),
    ("nv_cache_num_lookups", "Number of cache lookups in response cache", lambda cache: cache.hits + cache.misses),
    ("nv_cache_num_evictions", "Number of cache evictions in response cache", lambda cache: cache.evictions),
    (
        "nv_cache_lookup_duration",
        "Total cache lookup duration (hit and miss), in microseconds",
        lambda cache: cache.lookup_ns // 1000,
    ),
    (
        "nv_cache_insertion_duration",
        "Total cache insertion duration, in microseconds",
        lambda cache: cache.insertion_ns // 1000,
    ),
)


#: The counters of models whose inputs the server pads: the share of waste is the second over the first.
_PADDING_COUNTERS: tuple[tuple[str, str, Callable[[ModelStats], int]], ...] = (
    (
        "conch_padded_input_elements",
        "Number of elements of padded inputs as the model saw them",
        lambda stats: stats.input_elements,
    ),
    (
        "conch_padding_elements",
        "Number of elements of padded inputs that were padding",
        lambda stats: stats.padding_elements,
    ),
)


def render(
    versions: Iterable[Metered],
    machine: Machine | None = None,
    cache: CacheStats | None = None,
    gpus: Mapping[int, str] | None = None,
    *,
    latency_counters: bool = True,
) -> bytes:
    """The whole page. `machine` None leaves the CPU gauges out, `cache` None those of a cache in this process.

    `latency_counters` False leaves the sums of durations out, and the counters of models with a response cache.
    `gpus` are the names of GPUs by number: models have a series more for each of them that they are on.
    Versions are read without a lock: the counters of one line may be a request younger than those of another.
    """
    page = _Page()
    series = series_of(versions, gpus or {})
    if series:
        page.family(
            "nv_inference_request_success", "counter", "Number of successful inference requests, all batch sizes"
        )
        for each in series:
            page.sample(join(each.labels), each.stats.success.count)
        page.family("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes")
        for each in series:
            for reason in Reason:
                page.sample(join({**each.labels, "reason": reason.value}), each.stats.failures[reason])
        shown = [(join(each.labels), each) for each in series]
        page.counters([row for row in _COUNTERS if latency_counters or row[0] not in _LATENCY_COUNTERS], shown)
        page.counters(_CACHE_COUNTERS, [row for row in shown if row[1].cached] if latency_counters else ())
        page.family(
            "nv_inference_pending_request_count",
            "gauge",
            "Instantaneous number of pending requests awaiting execution per-model.",
        )
        for labels, each in shown:
            page.sample(labels, each.pending)
        page.family("nv_model_load_duration_secs", "gauge", "Model load time in seconds")
        for labels, each in shown:
            page.sample(labels, each.stats.load_seconds)
        page.counters(_PADDING_COUNTERS, [row for row in shown if row[1].stats.pads])
        page.latencies(series)
    if machine is not None:
        page.family("nv_cpu_utilization", "gauge", "CPU utilization rate [0.0 - 1.0]")
        page.sample("", machine.cpu)
        page.family("nv_cpu_memory_total_bytes", "gauge", "CPU total memory (RAM), in bytes")
        page.sample("", machine.memory_total)
        page.family("nv_cpu_memory_used_bytes", "gauge", "CPU used memory (RAM), in bytes")
        page.sample("", machine.memory_used)
    if cache is not None:
        for name, text, gauge in _CACHE_GAUGES:
            page.family(name, "gauge", text)
            page.sample("", gauge(cache))
    return page.text().encode("utf-8", "backslashreplace")


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._name = ""

    def family(self, name: str, kind: str, text: str) -> None:
        self._name = name
        self._lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")

    def counters(
        self, rows: Iterable[tuple[str, str, Callable[[ModelStats], int]]], series: Sequence[tuple[str, Series]]
    ) -> None:
        """A family for each row, with a line for each model; nothing where there are no models."""
        for name, text, value in rows if series else ():
            self.family(name, "counter", text)
            for labels, each in series:
                self.sample(labels, value(each.stats))

    def latencies(self, series: Iterable[Series]) -> None:
        """Histograms and summaries of the models that have them."""
        asked = [(each, each.stats.latencies) for each in series if each.stats.latencies is not None]
        timed = [(each, latencies.first) for each, latencies in asked if latencies.first is not None]
        if timed:
            self.family(
                "nv_inference_first_response_histogram_ms",
                "histogram",
                "Duration from request to first response in milliseconds",
            )
            for each, first in timed:
                self.histogram(each.labels, FirstResponses(first.ends_ms) if each.gpu else first)
        now = time.monotonic_ns()
        for name, text, which in _SUMMARIES if any(latencies.details.summaries for _, latencies in asked) else ():
            # Hits and misses together would be no one distribution.
            told = [
                (each.labels, latencies)
                for each, latencies in asked
                if (each.cached if name in _CACHE_SUMMARIES else not each.cached or name != _REQUEST_SUMMARY)
            ]
            if told:
                self.family(name, "summary", text)
            for labels, latencies in told:
                count, total, values = latencies.shown(which(latencies), now)
                self.sample(join(labels), count, "_count")
                self.sample(join(labels), total, "_sum")
                for (quantile, _), value in zip(latencies.details.quantiles, values, strict=True):
                    self.sample(join({**labels, "quantile": plain(quantile)}), value)

    def histogram(self, labels: Mapping[str, str], first: FirstResponses) -> None:
        """The lines of one series."""
        counts = list(itertools.accumulate(first.counts))
        self.sample(join(labels), counts[-1], "_count")
        self.sample(join(labels), first.ns // 1_000_000, "_sum")
        for end, count in zip([*map(plain, first.ends_ms), "+Inf"], counts, strict=True):
            self.sample(join({**labels, "le": end}), count, "_bucket")

    def sample(self, labels: str, value: float, part: str = "") -> None:
        """One line of the family begun last; `part` is of a summary or histogram."""
        self._lines.append(f"{self._name}{part}{labels} {plain(value)}\n")

    def text(self) -> str:
        return "".join(self._lines)


def taken(name: str) -> bool:
    """Whether a metric of this name can be one of the server's own, so that models cannot have it."""
    return name.startswith(_OWN)


def plain(value: float) -> str:
    """A number in plain digits, never with an exponent: 0.1, 17000000000, 0.000001; else +Inf, -Inf or NaN."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


def join(labels: Mapping[str, str]) -> str:
    return "{" + ",".join([f'{name}="{escape(labels[name])}"' for name in sorted(labels)]) + "}"


def escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
