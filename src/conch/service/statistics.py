"""The statistics of one version as protocols show them."""

from __future__ import annotations

from conch.observe.gpu_stats import whole
from conch.observe.stats import Duration
from conch.pb import grpc_service_pb2 as pb
from conch.schedule.api import Version


def write_statistics(version: Version, into: pb.ModelStatistics) -> None:
    stats = whole(version.stats)
    into.name = version.spec.name
    into.version = str(version.spec.version)
    into.last_inference = stats.last_inference_ms
    into.inference_count = stats.inferences
    into.execution_count = stats.executions
    each = into.inference_stats
    for message, duration in (
        (each.success, stats.success),
        (each.fail, stats.fail),
        (each.queue, stats.queue),
        (each.compute_input, stats.compute_input),
        (each.compute_infer, stats.compute_infer),
        (each.compute_output, stats.compute_output),
        (each.cache_hit, stats.cache_hit),
        (each.cache_miss, stats.cache_miss),
    ):
        _write_duration(duration, message)
    for size, batch in sorted(stats.batches.items()):
        entry = into.batch_stats.add(batch_size=size)
        _write_duration(batch.compute_input, entry.compute_input)
        _write_duration(batch.compute_infer, entry.compute_infer)
        _write_duration(batch.compute_output, entry.compute_output)
    for device, size in stats.memory.items():
        kind, _, number = device.partition(":")
        into.memory_usage.add(type="CPU" if kind == "ram" else kind.upper(), id=int(number or 0), byte_size=size)
    for index, response in sorted(stats.responses.copy().items()):
        into_response = into.response_stats[str(index)]
        for name in ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"):
            _write_duration(getattr(response, name), getattr(into_response, name))


def _write_duration(duration: Duration, into: pb.StatisticDuration) -> None:
    into.count = duration.count
    into.ns = duration.ns
    into.SetInParent()
