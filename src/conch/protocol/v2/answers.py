"""Metadata, statistics and the repository index as JSON: numbers as numbers, keys in Triton's order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from conch.pb import grpc_service_pb2 as pb
from conch.types.model import IndexEntry

_encode = msgspec.json.Encoder().encode


def server_metadata(answer: pb.ServerMetadataResponse) -> bytes:
    return _encode({"name": answer.name, "version": answer.version, "extensions": list(answer.extensions)})


def model_metadata(answer: pb.ModelMetadataResponse) -> bytes:
    return _encode(
        {
            "name": answer.name,
            "versions": list(answer.versions),
            "platform": answer.platform,
            "inputs": _tensors(answer.inputs),
            "outputs": _tensors(answer.outputs),
        }
    )


def _tensors(tensors: Iterable[pb.ModelMetadataResponse.TensorMetadata]) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in tensors]


def statistics(answer: pb.ModelStatisticsResponse) -> bytes:
    return _encode({"model_stats": [_model_statistics(each) for each in answer.model_stats]})


def _model_statistics(stats: pb.ModelStatistics) -> dict[str, Any]:
    each = stats.inference_stats
    return {
        "name": stats.name,
        "version": stats.version,
        "last_inference": stats.last_inference,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": _durations(
            each,
            "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
        ),
        "response_stats": {
            key: _durations(
                value, "compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"
            )
            for key, value in sorted(stats.response_stats.items())
        },
        "batch_stats": [
            {"batch_size": batch.batch_size, **_durations(batch, "compute_input", "compute_infer", "compute_output")}
            for batch in stats.batch_stats
        ],
        "memory_usage": [
            {"type": usage.type, "id": usage.id, "byte_size": usage.byte_size} for usage in stats.memory_usage
        ],
    }  # fmt: skip


def _durations(
    message: pb.InferStatistics | pb.InferResponseStatistics | pb.InferBatchStatistics, *names: str
) -> dict[str, dict[str, int]]:
    found = [(name, getattr(message, name)) for name in names]
    return {name: {"count": duration.count, "ns": duration.ns} for name, duration in found}


def index(entries: Iterable[IndexEntry]) -> bytes:
    """A model that was never loaded has only a name; a reason is there only when it says something.

    A reason may name files whose names are no text: what UTF-8 cannot carry is replaced.
    """
    return _encode([_entry(each) for each in entries])


def _entry(entry: IndexEntry) -> dict[str, str]:
    line = {"name": entry.name}
    if entry.version:
        line["version"] = entry.version
    if entry.state:
        line["state"] = entry.state
    if entry.reason:
        line["reason"] = entry.reason.encode("utf-8", "replace").decode()
    return line
