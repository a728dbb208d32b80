"""What a load has to do, and the states of a model's versions. Pure: decides, does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

#: The reason of a version that somebody unloaded; such a version does not count against readiness.
UNLOADED = "unloaded"
#: How the reason of a version begins that serves on because a newer one could not be loaded.
STALE = "load of a newer one failed: "


class State(Enum):
    """The state of a version in the index; the value is its text there."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Key:
    """All that decides how a version behaves: two loads with equal keys give the same thing."""

    #: The folder that the model's files lie in.
    directory: str
    #: The config, without its version policy.
    config: bytes
    #: Stamp of the files that all versions share.
    shared: str
    #: Stamp of the version's own folder.
    files: str
    #: The config's instance groups, which `config` is without: they can change while the version serves.
    instances: bytes = b""

    def same_model(self, other: Key | None) -> bool:
        """Whether at most the instances differ."""
        return other is not None and replace(self, instances=b"") == replace(other, instances=b"")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load must do: `load` these versions; `keep` those as they are; afterwards let `unload` go.

    A version in both `load` and `unload` is replaced: the old one serves until all of `load` is ready. Of those in
    `keep`, `change` get other instances.
    """

    load: tuple[int, ...]
    keep: tuple[int, ...]
    unload: tuple[int, ...]
    change: tuple[int, ...] = ()


def plan(
    serving: Mapping[int, Key],
    wanted: Mapping[int, Key],
    broken: Iterable[int] = (),
    elastic: Iterable[int] = (),
) -> Plan:
    """From what serves now and what shall serve. `broken` versions serve but cannot answer: they are made anew.

    The instances of `elastic` versions can change while they serve; others are made anew for that too.
    """
    lame = set(broken)
    keep = {number for number, key in wanted.items() if serving.get(number) == key and number not in lame}
    change = {
        number
        for number in set(elastic) - lame - keep
        if number in wanted and wanted[number].same_model(serving.get(number))
    }
    keep |= change
    return Plan(
        load=tuple(sorted(wanted.keys() - keep)),
        keep=tuple(sorted(keep)),
        unload=tuple(sorted(serving.keys() - keep)),
        change=tuple(sorted(change)),
    )


@dataclass(slots=True)
class Status:
    """Where one version stands. `turn` tells the unloads of one version apart: only the last one may end it."""

    state: State = State.UNKNOWN
    reason: str = ""
    turn: int = 0


@dataclass(slots=True)
class Lifecycle:
    """The states of one model's versions.

    A version that is READY stays READY while its successor loads, and when that load fails; its reason says so then.
    """

    versions: dict[int, Status] = field(default_factory=dict)
    #: Why the model as a whole could not be loaded (its config is broken, it has no version); empty otherwise.
    reason: str = ""
    #: Whether the model's config was ever understood: only then do clients hear of the model.
    known: bool = False

    def refused(self, reason: str, *, known: bool) -> None:
        """A load failed before it came to any version: those that serve go on, and say so."""
        self.reason = reason
        self.known = self.known or known
        for status in self.versions.values():
            if status.state is State.READY:
                status.reason = STALE + reason

    def load(self, numbers: Iterable[int]) -> None:
        """These versions begin to load."""
        self.reason, self.known = "", True
        for number in numbers:
            status = self.versions.setdefault(number, Status())
            if status.state is not State.READY:
                status.state, status.reason = State.LOADING, ""
                status.turn += 1

    def loaded(self, numbers: Iterable[int]) -> None:
        """All versions of a load are ready, and from now on serve, even if they were unloaded while it went on."""
        for number in numbers:
            status = self.versions[number]
            status.state, status.reason = State.READY, ""
            status.turn += 1
        for status in self.versions.values():
            # What serves on is what was asked for.
            if status.state is State.READY:
                status.reason = ""

    def failed(self, reasons: Mapping[int, str], numbers: Iterable[int], why: str = "") -> None:
        """A load failed with these reasons; its other versions (`numbers` are all of them) are given up with it.

        `why` says it where it was given up for something else.
        """
        because = "; ".join(dict.fromkeys(reasons.values())) or why
        for number in {*numbers, *reasons}:
            status = self.versions[number]
            if status.state is State.LOADING:
                status.state, status.reason = State.UNAVAILABLE, reasons.get(number, UNLOADED)
            elif status.state is State.READY:
                status.reason = STALE + reasons.get(number, because)

    def unload(self, numbers: Iterable[int]) -> dict[int, int]:
        """These versions stop serving; returns each one's turn, to be given to `unloaded`."""
        turns = {}
        for number in numbers:
            status = self.versions[number]
            if status.state is not State.READY:
                raise ValueError(f"version {number} is {status.state.value}, only a READY one can be unloaded")
            status.state, status.reason = State.UNLOADING, ""
            status.turn += 1
            turns[number] = status.turn
        return turns

    def unloaded(self, number: int, turn: int) -> None:
        """The last request of an unloaded version is answered. Ignored if the version was loaded again or forgotten
        meanwhile."""
        status = self.versions.get(number)
        if status is not None and status.turn == turn and status.state is State.UNLOADING:
            status.state, status.reason = State.UNAVAILABLE, UNLOADED

    def forgive(self) -> None:
        """The operator unloaded the model: what failed no longer counts as a failure."""
        self.reason = ""
        for status in self.versions.values():
            if status.state is State.UNAVAILABLE:
                status.reason = UNLOADED

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop versions whose folders are gone, unless something of them is still alive."""
        for number in numbers:
            status = self.versions.get(number)
            if status is not None and status.state in {State.UNAVAILABLE, State.UNKNOWN}:
                del self.versions[number]

    def unloaded_whole(self) -> bool:
        """Whether the operator has unloaded all that there is of the model."""
        return not self.reason and all(
            status.state is State.UNLOADING or (status.state is State.UNAVAILABLE and status.reason == UNLOADED)
            for status in self.versions.values()
        )

    def settled(self) -> bool:
        """Whether every version is READY or was unloaded on purpose, and no load failed that left nothing serving.

        A model whose config was never understood is nobody's yet, as in Triton: its arrival changes nothing.
        """
        states = self.versions.values()
        if self.reason and self.known and not any(status.state is State.READY for status in states):
            return False
        return all(
            status.state is State.READY or (status.state is State.UNAVAILABLE and status.reason == UNLOADED)
            for status in states
        )
