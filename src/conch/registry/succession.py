"""Who goes on answering the sequences that began on a version before another took over from it. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from conch.registry.served import ServedVersion
from conch.schedule.api import Sequential


def succeed(old: Mapping[int, ServedVersion], new: Mapping[int, ServedVersion]) -> None:
    """Versions by number, before a swap and after it: those of `new` get elders, others lose what they had.

    A version takes over from the one of its number, and the latest also from what was the latest before: requests that
    name no version go there. Whoever takes over inherits the elders too.
    """
    before = {each for served in old.values() for each in (served, *elders_of(served))}
    for number, served in new.items():
        ancestors = [old[number]] if number in old else []
        if old and number == max(new):
            ancestors.append(old[max(old)])
        line = [each for ancestor in ancestors for each in (ancestor, *elders_of(ancestor))]
        known = dict.fromkeys([*line, *elders_of(served)])
        served.elders = [each for each in known if each is not served and keeps_sequences(each)]
    after = {each for served in new.values() for each in (served, *served.elders)}
    for each in before:
        each.reachable = each in after


def elders_of(version: object) -> Sequence[ServedVersion]:
    """The versions before this one that may still have sequences, the last one first."""
    if not isinstance(version, ServedVersion) or not version.elders:
        return ()
    known = version.elders
    found = []
    for each in tuple(known):
        if not each.closed:
            found.append(each)
            continue
        # From this list alone: a swap in another thread may just have given the version another one.
        with contextlib.suppress(ValueError):
            known.remove(each)
    return found


def keeps_sequences(version: ServedVersion) -> bool:
    return isinstance(version.scheduler, Sequential) and version.scheduler.sequential


def lingers(version: ServedVersion) -> bool:
    """Whether sequences that began on this version can still go on."""
    scheduler = version.scheduler
    return version.reachable and isinstance(scheduler, Sequential) and scheduler.sequences() > 0
