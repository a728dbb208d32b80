"""A traffic route, read and checked: who shares the requests for a name (how it is written: `config.traffic`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conch.types.difference import Tolerance

Json = Any


@dataclass(frozen=True, slots=True)
class Target:
    """A version of a model; None is the latest that is ready."""

    model: str
    version: int | None = None

    @property
    def label(self) -> str:
        """How people are told of it, and metrics: `model:2`, `model:latest`."""
        return f"{self.model}:{'latest' if self.version is None else self.version}"


@dataclass(frozen=True, slots=True)
class Arm:
    target: Target
    weight: float = 1


@dataclass(frozen=True, slots=True)
class Sticky:
    """What requests must have in common to be answered by the same arm.

    `kind` is `parameter` (of the request; a forwarded header is one; `name` in lower case), `sequence` or
    `request_id`.
    """

    kind: str
    name: str = ""
    #: Whether it was said as a header.
    header: bool = False

    @property
    def text(self) -> str:
        """As it is written in a route."""
        if self.kind != "parameter":
            return self.kind
        return f"{'header' if self.header else 'parameter'}:{self.name}"


@dataclass(frozen=True, slots=True)
class Shadow:
    """Gets copies of requests; its answers are compared and nobody else sees them."""

    target: Target
    #: The share of requests that it gets.
    fraction: float = 1
    tolerance: Tolerance = field(default_factory=Tolerance)
    #: Copies that may be on their way; more are dropped.
    max_in_flight: int = 32


@dataclass(frozen=True, slots=True)
class TrafficRoute:
    arms: tuple[Arm, ...]
    sticky: Sticky | None = None
    shadows: tuple[Shadow, ...] = ()


def write_route(route: TrafficRoute) -> dict[str, Json]:
    """The route as JSON that reads as itself, everything said."""
    return {
        "arms": [{**_write_target(arm.target), "weight": arm.weight} for arm in route.arms],
        **({"sticky": route.sticky.text} if route.sticky is not None else {}),
        **({"shadow": [_write_shadow(each) for each in route.shadows]} if route.shadows else {}),
    }


def _write_target(target: Target) -> dict[str, Json]:
    return {"model": target.model, "version": "latest" if target.version is None else target.version}


def _write_shadow(shadow: Shadow) -> dict[str, Json]:
    compare = {
        "relative_tolerance": shadow.tolerance.relative,
        "absolute_tolerance": shadow.tolerance.absolute,
    }
    return {
        **_write_target(shadow.target),
        "fraction": shadow.fraction,
        "max_in_flight": shadow.max_in_flight,
        "compare": compare,
    }
