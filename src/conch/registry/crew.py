"""The instances of one version: how each is made, and how their number changes while the version serves."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from conch.backend.api import Instance, LoadedModel, Placement
from conch.config.instances import InstanceGroup, Place
from conch.memory.thrift import THRIFT
from conch.schedule.api import Elastic
from conch.schedule.queue import Post
from conch.schedule.rate import Demand, Resource
from conch.schedule.turns import Turns, limited, pinned
from conch.types.error import invalid, unavailable

log = logging.getLogger("conch.registry")

#: How long the end of a version waits for instances that are on their way out, in seconds.
_FAREWELL = 30.0
_NOWHERE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the server puts around instances."""

    #: The rate limiter; None when it is off.
    turns: Turns | None = None
    #: Host policy -> the CPUs that its instances run on.
    policies: Mapping[str, frozenset[int]] = field(default_factory=dict)
    #: Whether a GPU has room for another instance (its number, the instance's name): raises InferError where not.
    admit: Callable[[int, str], None] | None = None


@dataclass(frozen=True, slots=True)
class _Kind:
    """All that tells one instance from another, less its name: those of equal kinds can stand in for each other."""

    kind: str
    device: int
    profile: tuple[str, ...]
    host_policy: str
    demand: tuple[tuple[Resource, int], ...]
    priority: int


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    kind: _Kind
    name: str
    instance: Instance


@dataclass(slots=True)
class Change:
    """New instances that are open and warm, and do nothing yet. Exactly one of `commit` and `cancel` is called."""

    commit: Callable[[], None]
    cancel: Callable[[], None]


class Crew:
    """Calls for one version must not overlap; `close` comes last, but may come while a change is made or committed."""

    def __init__(
        self, model: str, loaded: LoadedModel, equipment: Equipment, post: Post, warm: Callable[[Instance, str], None]
    ) -> None:
        self._model = model
        self._loaded = loaded
        self._equipment = equipment
        self._post = post
        #: Runs the model's samples on an instance.
        self._warm = warm
        self._members: list[_Member] = []
        self._scheduler: Elastic | None = None
        self._leaving: list[threading.Thread] = []
        #: A change takes force whole, or finds the version closing.
        self._lock = threading.Lock()

    @property
    def instances(self) -> list[Instance]:
        return [member.instance for member in self._members]

    @property
    def elastic(self) -> bool:
        """Whether the number of instances can change while they serve."""
        return self._scheduler is not None

    def open(self, groups: Sequence[InstanceGroup]) -> None:
        """Make all instances of `groups`. Raises InferError; then `close` closes those that were made."""
        places = list(_places(groups, self._model))
        self._make(places, len(places), self._members.append)

    def serve(self, scheduler: object) -> None:
        """`scheduler` gives the instances their work."""
        self._scheduler = scheduler if isinstance(scheduler, Elastic) else None

    def change(self, groups: Sequence[InstanceGroup]) -> Change:
        """Make the instances that `groups` have more. Those that they have no more go when the change is committed.

        Raises InferError, and then all is as it was.
        """
        scheduler = self._scheduler
        if scheduler is None:
            raise unavailable("Server exiting")
        places = list(_places(groups, self._model))
        spare = list(self._members)
        stay, wanted = [], []
        for kind, place in places:
            found = next((member for member in spare if member.kind == kind), None)
            if found is None:
                wanted.append((kind, place))
            else:
                spare.remove(found)
                stay.append(found)
        fresh: list[_Member] = []
        try:
            self._make(wanted, len(places), fresh.append)
        except BaseException:
            _close(fresh)
            raise

        def commit() -> None:
            idle = list(fresh)
            try:
                with self._lock:
                    # There is none where the server is stopping, and is closing the version meanwhile.
                    while idle and self._scheduler is not None:
                        scheduler.hire(idle[0].instance, idle[0].name)
                        self._members = [*self._members, idle.pop(0)]
                    if self._scheduler is not None:
                        self._members = [*stay, *fresh]
                        self._dismiss(scheduler, spare)
            finally:
                _close(idle)

        return Change(commit, lambda: _close(fresh))

    def close(self) -> None:
        """After the scheduler is closed. All are closed even if some raise; the last error is raised."""
        self.settle()
        members, self._members = self._members, []
        with contextlib.ExitStack() as stack:
            for member in members:
                stack.callback(member.instance.close)

    def settle(self) -> None:
        """Change no more, and wait for the instances that are on their way out; before the scheduler is closed."""
        with self._lock:
            self._scheduler = None
            leaving, self._leaving = self._leaving, []
        for thread in leaving:
            thread.join(_FAREWELL)

    def _dismiss(self, scheduler: Elastic, members: Sequence[_Member]) -> None:
        """In a thread: each finishes what it executes, then it is closed."""

        def leave() -> None:
            for member in members:
                try:
                    scheduler.dismiss(member.instance)
                    with THRIFT:
                        member.instance.close()
                except BaseException:
                    # Foreign code; the instance is gone either way.
                    log.exception("failed to close instance '%s' of model '%s'", member.name, self._model)

        if members:
            thread = threading.Thread(target=leave, name=f"{self._model} leaves", daemon=True)
            self._leaving = [each for each in self._leaving if each.is_alive()]
            self._leaving.append(thread)
            thread.start()

    def _make(self, places: Sequence[tuple[_Kind, Place]], count: int, made: Callable[[_Member], object]) -> None:
        """Give each instance to `made` as soon as it is there; `count` is how many the model will have in all."""
        turns = self._equipment.turns
        if turns is None:
            for kind, place in places:
                made(_Member(kind, place.name, self._equip(kind, place, count)))
            return
        tickets = turns.join([Demand(dict(kind.demand), kind.priority) for kind, _ in places])
        try:
            for (kind, place), ticket in zip(places, list(tickets), strict=True):
                instance = limited(self._equip(kind, place, count), turns, ticket, self._post)
                # From here on the ticket is given back when the instance is closed.
                tickets.remove(ticket)
                made(_Member(kind, place.name, instance))
        finally:
            for ticket in tickets:
                turns.leave(ticket)

    def _equip(self, kind: _Kind, place: Place, count: int) -> Instance:
        """One instance, warm and in its place."""
        cores = self._equipment.policies.get(kind.host_policy, _NOWHERE)
        if kind.kind == "GPU" and self._equipment.admit is not None:
            self._equipment.admit(place.device, place.name)
        with THRIFT, _on(cores):
            instance = self._loaded.instance(Placement(place.name, kind.kind, place.device, count, cores))
            try:
                self._warm(instance, place.name)
            except BaseException:
                _close_quietly(instance)
                raise
        return pinned(instance, cores) if cores else instance


def _places(groups: Sequence[InstanceGroup], model: str) -> Iterator[tuple[_Kind, Place]]:
    """Every instance. Passive groups have none: nothing would ever be given to them."""
    found = False
    for group in groups:
        if group.passive:
            continue
        for place in group.places():
            found = True
            demand = tuple(
                (Resource(claim.resource, None if claim.is_global else place.device), claim.count)
                for claim in group.claims
            )
            yield _Kind(group.kind, place.device, group.profile, place.host_policy, demand, group.priority), place
    if not found:
        raise invalid(
            f"model '{model}' has no instance that is not passive, so nothing can execute it",
            "remove 'passive' from an instance_group",
        )


@contextlib.contextmanager
def _on(cores: frozenset[int]) -> Iterator[None]:
    """This thread runs on `cores` meanwhile, and so does for ever what it starts: threads and processes."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _close(members: Sequence[_Member]) -> None:
    for member in members:
        _close_quietly(member.instance)


def _close_quietly(instance: Instance) -> None:
    """The error that led here is the one to report."""
    with contextlib.suppress(BaseException):
        instance.close()
