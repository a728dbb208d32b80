"""One version of a model as the memory budget keeps its books, and sums of memory. Pure values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from conch.types.error import InferError

#: Bytes by device, `ram` or `gpu:<n>`.
Amounts = Mapping[str, int]


class Stage(Enum):
    ASLEEP = "asleep"
    #: Somebody wants it, and there is no room yet.
    WAITING = "waiting"
    LOADING = "loading"
    AWAKE = "awake"
    #: Awake; new requests are held back until it has answered those that it has, and then it makes room.
    DRAINING = "draining"
    #: Being closed.
    LEAVING = "leaving"


#: The stages in which memory is taken.
HELD = frozenset({Stage.LOADING, Stage.AWAKE, Stage.DRAINING, Stage.LEAVING})


@dataclass(slots=True, eq=False)
class Tenant:
    """Times are seconds of one clock."""

    name: str
    #: What it takes: measured, or what is thought of it until then.
    takes: Amounts
    #: What it takes at least, as far as that is certain before it was measured.
    sure: Amounts = field(default_factory=dict)
    pinned: bool = False
    idle_seconds: float | None = None
    #: Whether `takes` was measured once, or else told by somebody who knows.
    known: bool = False
    told: bool = False
    #: Whether it shares a process with others, so that what it takes shows only while no other comes or goes.
    shares: bool = False
    stage: Stage = Stage.ASLEEP
    #: Since when it waits, or is awake.
    since: float = 0.0
    last_used: float = 0.0
    #: Somebody wants it, though it is on its way out.
    wanted: bool = False
    #: To be put to sleep as soon as it has been loaded.
    rests: bool = False

    @property
    def alone(self) -> bool:
        """Whether no other of this kind may be loaded at the same time, for the sake of measuring."""
        return self.shares or not self.known

    @property
    def held(self) -> bool:
        return self.stage in HELD


@dataclass(slots=True)
class Verdict:
    """What is to be done now. It is in the books already."""

    load: list[Tenant] = field(default_factory=list)
    sleep: list[Tenant] = field(default_factory=list)
    #: Whose new requests are held back from now on, and no more.
    drain: list[Tenant] = field(default_factory=list)
    resume: list[Tenant] = field(default_factory=list)
    refuse: list[tuple[Tenant, InferError]] = field(default_factory=list)


def total(parts: Iterable[Amounts]) -> dict[str, int]:
    result: dict[str, int] = {}
    for part in parts:
        for device, size in part.items():
            result[device] = result.get(device, 0) + size
    return result


def plus(first: Amounts, second: Amounts) -> dict[str, int]:
    return total((first, second))


def less(first: Amounts, second: Amounts) -> dict[str, int]:
    """May be below zero."""
    return {device: first.get(device, 0) - second.get(device, 0) for device in {*first, *second}}


def larger(first: Amounts, second: Amounts) -> dict[str, int]:
    return {device: max(first.get(device, 0), second.get(device, 0)) for device in {*first, *second}}


def fits(needs: Amounts, room: Amounts) -> bool:
    """Devices that `room` does not name are without limit."""
    return all(needs.get(device, 0) <= size for device, size in room.items())
