"""Loads versions that share a memory budget, or are loaded on demand: whoever has no room sleeps until it is asked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from conch.config.gpus import Gpu
from conch.config.memory import RAM, MemoryWish, memory_wish
from conch.observe.footprint import Gauge, GpuReader
from conch.observe.gpu import open_nvml
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.budget import Budget
from conch.registry.lifecycle import Key
from conch.registry.loader import Outline
from conch.registry.resident import Gauge as Measures
from conch.registry.resident import Resident
from conch.registry.served import ServedVersion
from conch.registry.sleeper import Sleeper
from conch.registry.steward import Steward
from conch.registry.tenant import Amounts, Stage, Tenant
from conch.repository.api import StoredModel
from conch.schedule.alarm import Later
from conch.schedule.api import Scheduler
from conch.schedule.dynamic import default_policy
from conch.schedule.queue import Post
from conch.types.error import foreign, invalid

_log = logging.getLogger("conch.registry")
#: At least so many models are woken at a time, if there is room: one may need the others while it is loaded.
_LOADS: Final = 4


class Halves(Protocol):
    """What is needed of the loader (`registry.loader.Loader`)."""

    def load(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None], /
    ) -> ServedVersion: ...
    def outline(self, config: ModelConfig, stored: StoredModel, version: int, key: Key, /) -> Outline: ...
    def open(self, outline: Outline, release: Callable[[], None], /) -> ServedVersion: ...
    def front(self, scheduler: Scheduler, outline: Outline, /) -> Scheduler: ...


class MakeSleeper(Protocol):
    """Makes the scheduler of a version; `call` is to be told that somebody waits for it."""

    def __call__(self, config: ModelConfig, stats: ModelStats, call: Callable[[], object], /) -> Sleeper: ...


class Residency:
    """Implements `registry.loading.VersionLoader`. `limited` is whether there is a budget; where there is none, models
    that do not ask for anything are loaded as ever."""

    def __init__(
        self, loader: Halves, steward: Steward, gauge: Measures, sleeper: MakeSleeper, *, limited: bool
    ) -> None:
        self._loader = loader
        self._steward = steward
        self._gauge = gauge
        self._sleeper = sleeper
        self._limited = limited
        #: The last that was made of a version, to learn from: by folder and number.
        self._last: WeakValueDictionary[tuple[Path, str, int], Resident] = WeakValueDictionary()

    def load(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None]
    ) -> ServedVersion:
        """See `Loader.load`. A version that has no room is made all the same, and then sleeps. Raises InferError where
        it never has."""
        wish = memory_wish(config) or MemoryWish()
        if not self._limited:
            if wish.pinned or wish.takes:
                _log.warning(
                    "model '%s': 'pinned', 'ram' and 'gpu:<n>' in the parameter conch_memory have no effect without "
                    "--memory-budget",
                    config.name,
                )
            if not wish.on_demand and wish.idle_seconds is None:
                return self._loader.load(config, stored, version, key, release)
        place = (stored.directory, stored.identity, version)
        before = self._last.get(place)
        files = _size(stored.directory / str(version))
        tenant = Tenant(stored.identity, {**files, **wish.takes}, pinned=wish.pinned, idle_seconds=wish.idle_seconds)
        tenant.told = RAM in wish.takes
        # What a Python model makes of its files is its own affair; others hold them in memory.
        tenant.sure = {**({} if config.backend == "python" else files), **wish.takes}
        if before is not None and not before.closed:
            tenant.rests = before.tenant.stage is Stage.ASLEEP
            if before.tenant.known and not tenant.told:
                tenant.takes, tenant.told = before.tenant.takes, True
        try:
            self._steward.admit(tenant)
            resident, takes = self._make(config, stored, version, key, tenant, wish)
        except BaseException:
            self._steward.gone(tenant)
            raise
        try:
            self._steward.settle(resident, takes)
            outline = resident.outline
            served = ServedVersion(
                outline.spec,
                outline.config,
                stats=outline.stats,
                scheduler=self._loader.front(resident.sleeper, outline),
                loaded=resident,
                key=key,
                release=release,
                namespace=stored.namespace,
            )
        except BaseException as raised:
            # The load's own error is the one to report.
            with contextlib.suppress(BaseException):
                resident.close()
            raise foreign(raised) from raised
        self._last[place] = resident
        return served

    def lend(self, until: Future[None]) -> None:
        """See `Registry.lend`."""
        self._steward.lend(until)

    def _make(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, tenant: Tenant, wish: MemoryWish
    ) -> tuple[Resident, Amounts | None]:
        """The version, and what it takes; None where it is loaded on demand alone."""
        outline = self._loader.outline(config, stored, version, key)
        steward = self._steward
        sleeper = self._sleeper(outline.config, outline.stats, lambda: steward.call(tenant))
        resident = Resident(outline, tenant, sleeper, self._loader.open, self._gauge, lambda: steward.gone(tenant))
        if wish.on_demand:
            return resident, None
        return resident, resident.wake()


def open_residency(
    loader: Halves, limit: Amounts, post: Post, later: Later, loads: int = 4, gpus: Sequence[Gpu] = ()
) -> tuple[Residency, Steward]:
    """What loads versions, and what keeps the books: it is to be stopped before the registry, and closed after it.

    `limit` is `--memory-budget`, `gpus` are those that models may use. Raises InferError where the limit names GPUs
    that cannot be measured.
    """
    gauge = Gauge(_gpus(limit, gpus))
    loads = max(_LOADS, loads)
    steward = Steward(Budget(limit, loads), gauge, loads)

    def sleeper(config: ModelConfig, stats: ModelStats, call: Callable[[], object]) -> Sleeper:
        sequential = config.HasField("sequence_batching")
        return Sleeper(stats, default_policy(config), call, post, later, sequential=sequential)

    return Residency(loader, steward, gauge, sleeper, limited=bool(limit)), steward


def _gpus(limit: Amounts, gpus: Sequence[Gpu]) -> GpuReader | None:
    named = limit.keys() - {RAM}
    if not named:
        return None
    try:
        reader = GpuReader(open_nvml(gpus))
    except LookupError as error:
        raise invalid(
            f"--memory-budget names {', '.join(sorted(named))}, and what models take there cannot be measured: {error}",
            "install nvidia-ml-py (the extra 'gpu') beside NVIDIA's driver, or give RAM alone",
        ) from error
    for device in sorted(named - reader.devices):
        _log.warning(
            "--memory-budget=%s=... has no effect: there is no such GPU for models, there are: %s",
            device, ", ".join(sorted(reader.devices)) or "none",
        )  # fmt: skip
    return reader


def _size(folder: Path) -> dict[str, int]:
    """The bytes of all files in it."""
    try:
        return {RAM: sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())}
    except OSError:
        return {}
