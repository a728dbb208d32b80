"""The end of the registry: requests in flight are answered, then everything is closed, within a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from conch.registry.ensembles import Held
from conch.registry.lanes import Lanes
from conch.registry.reaper import Reaper
from conch.registry.roster import Roster
from conch.registry.served import ServedVersion

log = logging.getLogger("conch.registry")

#: How often to look whether something has ended.
_GLANCE = 0.01

#: Whether it is over, and the lines to log.
Report = tuple[bool, list[str]]


def drain(roster: Roster, lanes: Lanes, reaper: Reaper, seconds: float, tick: float) -> bool:
    """Stop all schedulers, wait, unload all; False when `seconds` were too short. Logs each `tick` seconds."""
    end = time.monotonic() + seconds
    log.info("Waiting for in-flight requests to complete.")
    stopped: set[int] = set()
    idle = _watch(end, tick, lambda: _inflight(roster, stopped))
    log.info("All models are stopped, unloading models")
    _unload_all(roster)

    def live() -> Report:
        # In this order: a load that ends leaves what must be unloaded, and what is unloaded must be closed.
        loads = lanes.busy()
        _unload_all(roster)
        models = reaper.alive()
        return not models and not loads, [f"Found {models} live models and {loads} in-flight non-inference requests"]

    return _watch(end, tick, live) and idle


def _unload_all(roster: Roster) -> None:
    for name in {served.identity for served in roster.table.all()}:
        roster.unload(name)


def stop_next(versions: Sequence[ServedVersion], stopped: set[int]) -> bool:
    """Stop what no request can come to any more but from outside; `stopped` are the serials of those that are.

    Ensembles come before the models of their steps, which still run for what has begun. Whether all are stopped.
    """
    needed = {
        member.serial
        for served in versions
        if isinstance(served.loaded, Held) and (served.serial not in stopped or served.scheduler.inflight() > 0)
        for member in served.loaded.everyone()
    }
    for served in versions:
        if served.serial not in needed:
            served.scheduler.stop()
            stopped.add(served.serial)
    return all(served.serial in stopped for served in versions)


def _inflight(roster: Roster, stopped: set[int]) -> Report:
    all_stopped = stop_next(list(roster.table.all()), stopped)
    busy = [(served, count) for served in roster.table.all() if (count := served.scheduler.inflight()) > 0]
    lines = [f"Found {len(busy)} model versions that have in-flight inferences"]
    lines += [
        f"Model '{served.name}' (version {served.version}) has {count} in-flight inferences" for served, count in busy
    ]
    return all_stopped and not busy, lines


def _watch(end: float, tick: float, report: Callable[[], Report]) -> bool:
    """Log the report each tick until it says that it is over; False when the time is."""
    speak_at = time.monotonic()
    while True:
        over, lines = report()
        now = time.monotonic()
        if over or now >= speak_at:
            log.info("Timeout %d: %s", max(0, round(end - now)), lines[0])
            for line in lines[1:]:
                log.info("%s", line)
            speak_at += tick
        if over or now >= end:
            return over
        time.sleep(min(_GLANCE, max(0.0, end - now)))
