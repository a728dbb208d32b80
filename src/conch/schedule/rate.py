"""Which instances may execute now: turns and resources, shared as Triton's rate limiter does. Pure.

An instance executes while it holds all its resources. Among those that wait, the one with the fewest executions times
priority is next (spec: operations 7). Where Triton lets the next one hold up all others, here it holds up only those
that need a resource of its own, and an instance that comes late begins where the others are: nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from conch.types.error import InferError, invalid


class Resource(NamedTuple):
    """A name and the device that it belongs to; None is a global one, which all devices share."""

    name: str
    device: int | None


@dataclass(frozen=True, slots=True)
class Limit:
    """How much there is of a resource, as the operator says: on `device`, or on every device (None)."""

    name: str
    count: int
    device: int | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What one instance needs while it executes. `priority` 2 gets half as many turns as 1."""

    resources: Mapping[Resource, int]
    priority: int = 1


class _State(Enum):
    RESTING = "resting"
    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class Ticket:
    """An instance's place in the limiter, which alone changes it."""

    __slots__ = ("demand", "ready_at", "state")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.state = _State.RESTING
        #: Executions times priority, never behind the limiter's clock when it begins to wait.
        self.ready_at = 0


class RateLimiter:
    """`limits` empty: of each resource there is as much as the most demanding instance needs.

    Calls that may let instances execute return their tickets; each returned ticket holds its resources until `done`.
    """

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limits = tuple(limits)
        self._tickets: list[Ticket] = []
        #: In the order in which they began to wait.
        self._waiting: list[Ticket] = []
        self._capacity: dict[Resource, int] = {}
        self._used: dict[Resource, int] = {}
        #: The largest `ready_at` that has executed.
        self._clock = 0

    def join(self, demands: Sequence[Demand]) -> list[Ticket]:
        """Places for new instances, all or none. Raises InferError (INVALID_ARG) where one could never execute."""
        tickets = [Ticket(demand) for demand in demands]
        self._capacity = self._capacities([*self._tickets, *tickets])
        self._tickets += tickets
        return tickets

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """The instance is gone, whatever it did; again does no harm."""
        if ticket.state is _State.GONE:
            return []
        if ticket.state is _State.RUNNING:
            self._give_back(ticket)
        elif ticket.state is _State.WAITING:
            self._waiting.remove(ticket)
        ticket.state = _State.GONE
        self._tickets.remove(ticket)
        self._capacity = self._capacities(self._tickets)
        return self._grant()

    def ask(self, ticket: Ticket) -> list[Ticket]:
        """The instance has something to execute."""
        if ticket.state is not _State.RESTING:
            raise ValueError(f"an instance that is {ticket.state.value} cannot ask")
        ticket.state = _State.WAITING
        ticket.ready_at = max(ticket.ready_at, self._clock)
        self._waiting.append(ticket)
        return self._grant()

    def done(self, ticket: Ticket) -> list[Ticket]:
        """The instance has executed. Ignored where it has left meanwhile."""
        if ticket.state is not _State.RUNNING:
            return []
        self._give_back(ticket)
        ticket.state = _State.RESTING
        return self._grant()

    def _give_back(self, ticket: Ticket) -> None:
        for resource, count in ticket.demand.resources.items():
            self._used[resource] -= count

    def _grant(self) -> list[Ticket]:
        granted: list[Ticket] = []
        if not self._waiting:
            return granted
        #: What somebody who comes earlier waits for.
        reserved: set[Resource] = set()
        for ticket in sorted(self._waiting, key=lambda each: each.ready_at):
            needs = ticket.demand.resources
            if any(
                resource in reserved or self._used.get(resource, 0) + count > self._capacity[resource]
                for resource, count in needs.items()
                if count
            ):
                reserved.update(resource for resource, count in needs.items() if count)
                continue
            for resource, count in needs.items():
                self._used[resource] = self._used.get(resource, 0) + count
            ticket.state = _State.RUNNING
            self._clock = max(self._clock, ticket.ready_at)
            ticket.ready_at += max(1, ticket.demand.priority)
            granted.append(ticket)
        if granted:
            self._waiting = [ticket for ticket in self._waiting if ticket.state is _State.WAITING]
        return granted

    def _capacities(self, tickets: Iterable[Ticket]) -> dict[Resource, int]:
        """How much there is of everything that `tickets` need. Raises InferError where it is too little."""
        most: dict[Resource, int] = {}
        for ticket in tickets:
            for resource, count in ticket.demand.resources.items():
                most[resource] = max(most.get(resource, 0), count)
        of_devices = {resource.name for resource in most if resource.device is not None}
        for resource in most:
            if resource.device is None and resource.name in of_devices:
                raise _two_kinds(resource.name)
        return {resource: self._limit(resource, needed) for resource, needed in most.items()} if self._limits else most

    def _limit(self, resource: Resource, needed: int) -> int:
        """What the limits do not mention is not there at all. The device of a global resource's limit is void."""
        counts = [
            limit.count
            for limit in self._limits
            if limit.name == resource.name and (resource.device is None or limit.device in {None, resource.device})
        ]
        count = max(counts, default=0)
        if count < needed:
            raise invalid(
                f'Resource count for "{resource.name}" is limited to {count} which will prevent scheduling of one or '
                f"more model instances, the minimum required count is {needed}",
                f"start the server with --rate-limit-resource={resource.name}:{needed}, or ask for less in the "
                "instance group's rate_limiter",
            )
        return count


def _two_kinds(name: str) -> InferError:
    return invalid(
        f'Resource "{name}" is present as both global and device-specific resource in the model configuration.',
        "say 'global' the same way in all instance groups that name it, or give one of them another name",
    )
