"""Where an instance counts what it does."""

from __future__ import annotations

from conch.backend.api import Placement
from conch.observe.gpu_stats import on_gpu
from conch.observe.stats import ModelStats


def counters(version: ModelStats, placement: Placement) -> ModelStats:
    """For an instance at `placement`, which is to be made: those of its GPU if it is on one, else the version's."""
    return on_gpu(version, placement.device_id) if placement.kind.removeprefix("KIND_") == "GPU" else version
