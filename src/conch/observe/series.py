"""Which series of metrics a version of a model has: its labels, and what counts there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from conch.observe.gpu_stats import on_gpu, whole
from conch.observe.stats import ModelStats

#: What a label's name cannot hold.
_NO_NAME = re.compile(r"[^A-Za-z0-9_]")


class Metered(Protocol):
    """One version of a model, as the page sees it."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def stats(self) -> ModelStats: ...
    @property
    def namespace(self) -> str:
        """The repository that the model lies in, where that matters; else empty."""

    @property
    def tags(self) -> Mapping[str, str]:
        """The config's `metric_tags`."""

    @property
    def gpus(self) -> Sequence[int]:
        """The GPUs that its instances are on."""

    def pending(self) -> int:
        """Requests that wait for an instance."""


@dataclass(frozen=True, slots=True)
class Series:
    """The lines of one set of labels; `cached` is whether the model has a response cache.

    `gpu`: they are of the instances on one GPU, where nobody waits, nothing is loaded and no response is a first one.
    """

    labels: Mapping[str, str]
    stats: ModelStats
    pending: int
    cached: bool
    gpu: bool


def series_of(versions: Iterable[Metered], gpus: Mapping[int, str]) -> list[Series]:
    """In the order of `versions`: each version's own, then one for each of its GPUs that has a name in `gpus`.

    What is done on GPUs without a name is the version's.
    """
    found = []
    for version in versions:
        stats, labels = version.stats, _labels(version)
        found.append(Series(labels, whole(stats, gpus), version.pending(), stats.cached, gpu=False))
        found += [
            Series({**labels, "gpu_uuid": gpus[device]}, on_gpu(stats, device), 0, stats.cached, gpu=True)
            for device in (version.gpus if gpus else ())
            if device in gpus
        ]
    return found


def _labels(version: Metered) -> dict[str, str]:
    # A tag's key may be anything; one odd key must not make the whole page unreadable. Two underscores are reserved.
    tags = {"_" + _NO_NAME.sub("_", key).lstrip("_"): value for key, value in version.tags.items()}
    space = {"namespace": version.namespace} if version.namespace else {}
    return {**tags, **space, "model": version.name, "version": str(version.version)}
