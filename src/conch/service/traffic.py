"""Which names are routed: by request, by the file of `--traffic-config`, by their models' configs; in this order."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from conch.config.route import Sticky, TrafficRoute, write_route
from conch.config.traffic import read_route, traffic_of
from conch.observe.traffic import RouteCounts
from conch.registry.traffic import Pins
from conch.schedule.api import Version
from conch.service.routed import LiveArm, Pin, Routed
from conch.service.shadow import Comparer, LiveShadow
from conch.types.error import InferError, invalid, not_found

_log = logging.getLogger("conch.traffic")

#: Names that may be routed by request.
MAX_ROUTES: Final = 10_000
_MAX_NAME: Final = 1024

Report = dict[str, Any]


class Registry(Protocol):
    """What routes need to know of the registry."""

    @property
    def generation(self) -> int: ...
    def find(self, name: str, version: str) -> Version: ...
    def ready_versions(self, name: str = "") -> Iterable[Version]: ...
    def renew(self) -> None:
        """Have all forms prepared again."""


class Traffic:
    """Implements `service.api.TrafficPlane`, and finds the data plane its routes. Any thread."""

    def __init__(self, registry: Registry, files: Mapping[str, TrafficRoute], forwarded: Sequence[str] = ()) -> None:
        """`files` are the routes of `--traffic-config`, `forwarded` the patterns of headers that become parameters."""
        self._registry = registry
        self._files = dict(files)
        self._forwarded = [re.compile(pattern, re.IGNORECASE) for pattern in forwarded if pattern]
        self._comparer = Comparer()
        self._lock = threading.RLock()
        self._set: dict[str, TrafficRoute] = {}
        #: Routes in force, kept as long as they stay the same, and what outlives a change.
        self._routed: dict[str, Routed] = {}
        self._counts: dict[str, RouteCounts] = {}
        self._pins: dict[str, Pins[Pin]] = {}
        #: What is known of models' names at this generation.
        self._known: dict[str, Routed | None] = {}
        self._generation = -1
        for name, route in self._files.items():
            self._warn(name, route)

    # ---- for the data plane

    def find(self, name: str) -> Routed | None:
        """The route of `name`, settled; None for most."""
        generation = self._registry.generation
        if generation == self._generation:
            try:
                return self._known[name]
            except KeyError:
                pass
        with self._lock:
            if generation != self._generation:
                self._known = {}
                self._generation = generation
                self._forget()
            route, _ = self._route(name)
            found = None if route is None else self._at_work(name, route)
            if found is not None:
                found.settle(generation)
            else:
                self._routed.pop(name, None)
            if found is not None or self._is_model(name):
                # Names that mean nothing are not remembered: clients may think of many.
                self._known[name] = found
            return found

    # ---- for people

    def routes(self) -> list[Report]:
        """Every routed name, sorted."""
        return [self._report(routed) for routed in self._all()]

    def route(self, name: str) -> Report:
        """Raises InferError (NOT_FOUND) for a name without a route."""
        routed = self.find(name)
        if routed is None:
            raise not_found(f"no traffic route for '{name}'", "PUT one to this path")
        return self._report(routed)

    def put(self, name: str, text: bytes) -> Report:
        """Route `name` from now on. Raises InferError, and nothing has changed."""
        route = read_route(text, name, f"traffic route of '{_shown(name)}'")
        fault = self._fault(route.sticky)
        if fault:
            raise invalid(f"traffic route of '{name}': sticky is '{_text(route.sticky)}': {fault}", _FORWARD)
        with self._lock:
            if name not in self._set and len(self._set) >= MAX_ROUTES:
                raise invalid(f"{MAX_ROUTES} names are routed by request already", "delete some routes")
            if len(name) > _MAX_NAME:
                raise invalid(f"a name of {len(name)} characters cannot be routed, expected at most {_MAX_NAME}")
            self._try(name, route)
            self._set[name] = route
            self._changed()
        _log.info("traffic route of '%s' set by request: %s", name, write_route(route))
        return self.route(name)

    def delete(self, name: str) -> None:
        """Take back what was `put`; what the file or the model's config says holds again."""
        with self._lock:
            if name not in self._set:
                _, source = self._route(name)
                more = f"; its route is said in the {_SOURCES[source]}" if source else ""
                raise not_found(f"no traffic route was set for '{name}' by request{more}", "only such can be deleted")
            del self._set[name]
            self._changed()
            if self.find(name) is None:
                self._drop(name)
        _log.info("traffic route of '%s' deleted by request", name)

    def counts(self) -> Mapping[str, RouteCounts]:
        """What has happened so far, by name; for the metrics page."""
        self._all()
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Blocks until the answers that have come are compared."""
        self._comparer.close()

    # ---- inside

    def _route(self, name: str) -> tuple[TrafficRoute | None, str]:
        """What is in force for a name, and who said so."""
        for source, routes in (("request", self._set), ("file", self._files)):
            if name in routes:
                return routes[name], source
        try:
            version = self._registry.find(name, "")
            route = traffic_of(version.config, _identity(version))
        except InferError:
            return None, ""
        return route, "config" if route is not None else ""

    def _is_model(self, name: str) -> bool:
        try:
            self._registry.find(name, "")
        except InferError:
            return False
        return True

    def _at_work(self, name: str, route: TrafficRoute) -> Routed:
        routed = self._routed.get(name)
        if routed is None or routed.route != route:
            if name not in self._set and name not in self._files:
                self._warn(name, route)
            counts = self._counts.setdefault(name, RouteCounts())
            pins = self._pins.setdefault(name, Pins())
            routed = self._routed[name] = Routed(name, route, self._registry, self._comparer, counts, pins)
            counts.forget([arm.label for arm in routed.arms], [shadow.label for shadow in routed.shadows])
        return routed

    def _forget(self) -> None:
        """Models that were routed by their configs may be gone, and nobody asks for their names again."""
        for name in list(self._counts):
            if name not in self._set and name not in self._files and self._route(name)[0] is None:
                self._drop(name)

    def _drop(self, name: str) -> None:
        for known in (self._routed, self._counts, self._pins):
            known.pop(name, None)

    def _all(self) -> list[Routed]:
        names = {*self._set, *self._files}
        for version in self._registry.ready_versions():
            names.add(_identity(version))
        found = [self.find(name) for name in sorted(names)]
        return [each for each in found if each is not None]

    def _try(self, name: str, route: TrafficRoute) -> None:
        """Whether the route can be served at this moment. Raises InferError."""
        trial = Routed(name, route, self._registry, self._comparer, RouteCounts(), Pins())
        trial.settle(self._registry.generation)
        trial.default()
        parts: list[LiveArm | LiveShadow] = [*trial.arms, *trial.shadows]
        for each in parts:
            if each.misfit:
                raise invalid(
                    f"traffic route of '{name}': {each.label} cannot be used: {each.reason}",
                    "arms and shadows must take the same inputs and give the same outputs",
                )

    def _changed(self) -> None:
        self._known = {}
        self._generation = -1
        self._registry.renew()

    def _fault(self, sticky: Sticky | None) -> str:
        """Why nothing can stick by that; empty where something can."""
        if sticky is None or not sticky.header or any(each.search(sticky.name) for each in self._forwarded):
            return ""
        return f"the header '{sticky.name}' does not become a parameter of requests"

    def _warn(self, name: str, route: TrafficRoute) -> None:
        fault = self._fault(route.sticky)
        if fault:
            _log.warning(
                "traffic route of '%s': sticky is '%s', without effect: %s; %s",
                name, _text(route.sticky), fault, _FORWARD,
            )  # fmt: skip

    def _report(self, routed: Routed) -> Report:
        _, source = self._route(routed.name)
        return {
            "name": routed.name,
            "source": source,
            "route": write_route(routed.route),
            "arms": [
                {"arm": arm.label, **_standing(arm.version, arm.reason), "requests": arm.counts.results}
                for arm in routed.arms
            ],
            "shadow": [
                {
                    "shadow": shadow.label,
                    **_standing(shadow.version, shadow.reason),
                    "requests": dict(shadow.counts.outcomes),
                    "in_flight": shadow.counts.in_flight,
                    "largest_difference": _number(shadow.counts.largest),
                    "example": shadow.counts.example,
                }
                for shadow in routed.shadows
            ],
            "sequences": len(routed.pins),
        }


_FORWARD: Final = "start the server with --http-header-forward-pattern or --grpc-header-forward-pattern"
_SOURCES: Final = {"file": "file of --traffic-config", "config": "model's config"}


def _standing(version: Version | None, reason: str) -> Report:
    if version is None:
        return {"version": None, "state": "UNAVAILABLE", "reason": reason}
    return {"version": version.spec.version, "state": "READY" if version.ready() else "UNAVAILABLE", "reason": ""}


def _identity(version: Version) -> str:
    """What finds the model for certain: in a namespace that is not its name."""
    return cast("str", getattr(version, "identity", version.spec.name))


def _number(value: float) -> float | str:
    return "Infinity" if value == float("inf") else value


def _text(sticky: Sticky | None) -> str:
    return "" if sticky is None else sticky.text


def _shown(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:77]}..."
