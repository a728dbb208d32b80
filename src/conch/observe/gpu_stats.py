"""What instances on GPUs do, counted for each GPU by itself, as Triton's metrics are (metric_model_reporter.cc).

The statistics of a version count everything that happens elsewhere: on the CPU, in the queue, in the response cache.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Sequence

from conch.observe.latencies import joined
from conch.observe.row_stats import RowStats
from conch.observe.stats import BatchDurations, Duration, ModelStats, Reason, Response
from conch.types.request import InferRequest

_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class GpuStats(RowStats):
    """What the instances of `version` on one GPU do; they count here what else they would count there.

    Requests that an instance gives up before it executes them count for the version, as those that never reached one.
    """

    def __init__(self, version: ModelStats) -> None:
        super().__init__(None if version.latencies is None else version.latencies.beside())
        self._version = version
        # The version alone is told who warms it up, traces it or meters it, and when: here each request is asked.
        self._warms = self.traced = self.metered = True

    def failed(self, requests: Sequence[InferRequest], reason: Reason, now_ns: int) -> None:
        if reason is Reason.BACKEND:
            super().failed(requests, reason, now_ns)
        else:
            self._version.failed(requests, reason, now_ns)

    def responded(self, responses: Iterable[Response]) -> None:
        self._version.responded(responses)


def on_gpu(version: ModelStats, device: int) -> ModelStats:
    """Where instances on this GPU count; the same for all of them."""
    return version.gpus.setdefault(device, GpuStats(version))


def whole(version: ModelStats, apart: Container[int] = ()) -> ModelStats:
    """`version` with what was done on its GPUs except those `apart`: itself, or a copy to be read."""
    parts = [version, *[stats for device, stats in sorted(version.gpus.items()) if device not in apart]]
    if len(parts) == 1:
        return version
    found = copy.copy(version)
    found.gpus = {}
    found.last_inference_ms = max(each.last_inference_ms for each in parts)
    found.inferences = sum(each.inferences for each in parts)
    found.executions = sum(each.executions for each in parts)
    for name in _DURATIONS:
        setattr(found, name, _sum([getattr(each, name) for each in parts]))
    found.failures = {reason: sum(each.failures[reason] for each in parts) for reason in Reason}
    found.batches = _batches(parts)
    found.latencies = joined([each.latencies for each in parts if each.latencies is not None])
    return found


def _batches(parts: Sequence[ModelStats]) -> dict[int, BatchDurations]:
    held = [each.batches.copy() for each in parts]
    found: dict[int, BatchDurations] = {}
    for size in {size for batches in held for size in batches}:
        same = [batches[size] for batches in held if size in batches]
        found[size] = BatchDurations(
            _sum([each.compute_input for each in same]),
            _sum([each.compute_infer for each in same]),
            _sum([each.compute_output for each in same]),
        )
    return found


def _sum(durations: Sequence[Duration]) -> Duration:
    return Duration(sum(each.count for each in durations), sum(each.ns for each in durations))
