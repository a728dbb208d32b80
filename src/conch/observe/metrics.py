"""The metrics page, in the Prometheus text format, with Triton's names and texts.

Written by hand: client libraries rename counters to `..._total` and print large values with an exponent, and tools of
Triton's (perf_analyzer) read these numbers with patterns that know plain digits alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Protocol

from conch.observe.process import Machine
from conch.observe.stats import ModelStats, Reason

#: What a label's name cannot hold.
_NO_NAME = re.compile(r"[^A-Za-z0-9_]")

CONTENT_TYPE = "text/plain; charset=utf-8"


class Metered(Protocol):
    """One version of a model, as the page sees it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def stats(self) -> ModelStats: ...
    @property
    def tags(self) -> Mapping[str, str]:
        """The config's `metric_tags`."""

    def pending(self) -> int:
        """Requests that wait for an instance."""


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


def render(versions: Iterable[Metered], machine: Machine | None = None) -> bytes:
    """The whole page. `machine` None leaves the CPU gauges out. Versions are read without a lock: the counters of one
    line may be a request younger than those of another."""
    page = _Page()
    models = [(_labels(each), each) for each in versions]
    if models:
        page.family(
            "nv_inference_request_success", "counter", "Number of successful inference requests, all batch sizes"
        )
        for labels, each in models:
            page.sample(_join(labels), each.stats.success.count)
        page.family("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes")
        for labels, each in models:
            for reason in Reason:
                page.sample(_join({**labels, "reason": reason.value}), each.stats.failures[reason])
        series = [(_join(labels), each) for labels, each in models]
        for name, text, value in _COUNTERS:
            page.family(name, "counter", text)
            for shown, each in series:
                page.sample(shown, value(each.stats))
        page.family(
            "nv_inference_pending_request_count",
            "gauge",
            "Instantaneous number of pending requests awaiting execution per-model.",
        )
        for shown, each in series:
            page.sample(shown, each.pending())
        page.family("nv_model_load_duration_secs", "gauge", "Model load time in seconds")
        for shown, each in series:
            page.sample(shown, each.stats.load_seconds)
    if machine is not None:
        page.family("nv_cpu_utilization", "gauge", "CPU utilization rate [0.0 - 1.0]")
        page.sample("", machine.cpu)
        page.family("nv_cpu_memory_total_bytes", "gauge", "CPU total memory (RAM), in bytes")
        page.sample("", machine.memory_total)
        page.family("nv_cpu_memory_used_bytes", "gauge", "CPU used memory (RAM), in bytes")
        page.sample("", machine.memory_used)
    return page.text().encode("utf-8", "backslashreplace")


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._name = ""

    def family(self, name: str, kind: str, text: str) -> None:
        self._name = name
        self._lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")

    def sample(self, labels: str, value: float) -> None:
        """One line of the family begun last."""
        self._lines.append(f"{self._name}{labels} {plain(value)}\n")

    def text(self) -> str:
        return "".join(self._lines)


def plain(value: float) -> str:
    """A number in plain digits, never with an exponent: 0.1, 17000000000, 0.000001."""
    if isinstance(value, int):
        return str(value)
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


def _labels(version: Metered) -> dict[str, str]:
    # A tag's key may be anything; one odd key must not make the whole page unreadable. Two underscores are reserved.
    tags = {"_" + _NO_NAME.sub("_", key).lstrip("_"): value for key, value in version.tags.items()}
    return {**tags, "model": version.name, "version": str(version.version)}


def _join(labels: Mapping[str, str]) -> str:
    return "{" + ",".join([f'{name}="{_escape(labels[name])}"' for name in sorted(labels)]) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
