"""When it is measured what models and the server take, and what follows for the books."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from conch.registry.budget import Budget
from conch.registry.resident import Gauge, Resident
from conch.registry.tenant import Stage, Tenant, larger, less, total

#: While somebody waits for room, or a model is loaded that nobody knows, all is measured so often; seconds.
WATCHING: Final = 0.1
#: And else so often, unless that takes more than this part of the time.
_RESTING, _SHARE = 2.0, 0.02


class Scales:
    """On the steward's thread."""

    def __init__(self, budget: Budget, gauge: Gauge, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._gauge = gauge
        self._clock = clock
        self._at: float | None = None
        self._took = 0.0
        #: When each model had been used when all was measured the last time.
        self._used: dict[Tenant, float] = {}

    def forget(self) -> None:
        """What was measured is no longer true."""
        self._at = None

    def look(self, now: float, residents: Mapping[Tenant, Resident]) -> None:
        """Measure if it is time: models grow, and so does the server."""
        waiting = watching = moving = False
        for each in self._budget:
            waiting |= each.stage is Stage.WAITING
            watching |= each.stage is Stage.LOADING and not each.known
            moving |= each.alone and each.stage in {Stage.LOADING, Stage.LEAVING}
        used = {tenant: tenant.last_used for tenant in residents}
        if self._at is not None:
            wait = WATCHING if watching or waiting else _RESTING
            if now - self._at < max(wait, self._took / _SHARE):
                return
            if used == self._used and not (watching or waiting):
                return
        self._used, self._at = used, now
        awake = [each for each in residents.values() if each.tenant.stage in {Stage.AWAKE, Stage.DRAINING}]
        self._models([each for each in awake if not each.tenant.shares])
        if not moving:
            whole = self._gauge.whole()
            inside = total(
                [
                    each.tenant.takes
                    if each.tenant.shares
                    else {device: size for device, size in each.tenant.takes.items() if device in whole}
                    for each in awake
                ]
            )
            own = less(self._gauge.server(), inside)
            self._budget.measured_own({device: max(0, size) for device, size in own.items()})
        elif watching:
            self._watch()
        self._took = self._clock() - now

    def _models(self, awake: list[Resident]) -> None:
        """Those that have processes of their own."""
        heads = {each: each.processes() for each in awake}
        found = self._gauge.families([pid for pids in heads.values() for pid in pids])
        # Of a GPU that is measured whole it takes what it took when it was loaded.
        whole = self._gauge.whole()
        for each, pids in heads.items():
            if pids:
                kept = {device: size for device, size in each.tenant.takes.items() if device in whole}
                takes = total([*[found[pid] for pid in pids], kept])
                each.tenant.takes = takes
                each.outline.stats.memory = takes

    def _watch(self) -> None:
        """A model that nobody knows is being loaded: it takes whatever nobody else does."""
        newcomer = next(each for each in self._budget if each.stage is Stage.LOADING and not each.known)
        others = total([self._budget.own, *[each.takes for each in self._budget if each.held and each is not newcomer]])
        rest = less(self._gauge.everything(), others)
        newcomer.takes = larger(newcomer.takes, {device: max(0, size) for device, size in rest.items()})
