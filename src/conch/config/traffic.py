"""Traffic routes: how the requests for a model's name are shared among versions and models, read and checked. Pure.

A route is JSON, said in a model's config (`parameters` key `conch_traffic`), in the file of `--traffic-config` (an
object of routes by name), or by request at run time:

    {
      "arms":   [{"version": 1, "weight": 90}, {"model": "next", "version": 2, "weight": 10}],
      "sticky": "header:x-user",
      "shadow": [{"version": 3, "fraction": 0.1, "max_in_flight": 32,
                  "compare": {"relative_tolerance": 1e-5, "absolute_tolerance": 1e-6}}]
    }

All of it is optional: an arm is the latest version of the model itself with weight 1, a shadow gets every request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from conch.config.route import Arm, Shadow, Sticky, Target, TrafficRoute
from conch.config.said import read_json
from conch.config.shown import is_number, shown
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.difference import Tolerance
from conch.types.error import InferError, invalid

PARAMETER: Final = "conch_traffic"
Json = Any

#: A longer text is no route.
MAX_TEXT: Final = 1 << 20
MAX_ARMS: Final = 64
MAX_SHADOWS: Final = 8
_LEAST, _MOST = 1e-6, 1e9
_EXAMPLE: Final = '{"arms": [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]}'
_STICKY: Final = "expected 'header:<name>', 'parameter:<name>', 'sequence' or 'request_id'"


def traffic_of(config: ModelConfig, known_as: str = "") -> TrafficRoute | None:
    """The route that a model's config says; None for most. Raises InferError (INVALID_ARG) that names the field.

    `known_as` is what its arms mean by the model itself, where that is not its name (namespaces).
    """
    if PARAMETER not in config.parameters:
        return None
    text = config.parameters[PARAMETER].string_value
    return read_route(text, known_as or config.name, f"parameter '{PARAMETER}' of model '{config.name}'")


def traffic_is_sound(config: ModelConfig) -> None:
    """A rule of `config.rules`."""
    traffic_of(config)


def read_route(text: str | bytes, name: str, place: str) -> TrafficRoute:
    """The route of `name`. `place` is how an error calls where it was said. Raises InferError (INVALID_ARG)."""
    return _Reader(place).route(_parse(text, place), "", name)


def read_file(path: Path) -> Mapping[str, TrafficRoute]:
    """The routes in the file of `--traffic-config`, by name. Raises InferError, also for a file that is not there."""
    place = f"--traffic-config={path}"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise invalid(f"{place} cannot be read: {error.strerror or error}", "name a JSON file") from None
    given = _parse(text, place)
    reader = _Reader(place)
    if not isinstance(given, dict):
        raise reader.bad("", f"is {shown(given)}, expected routes by name", f'write {{"model": {_EXAMPLE}}}')
    return {_name(reader, name): reader.route(each, name, name) for name, each in given.items()}


def _parse(text: str | bytes, place: str) -> Json:
    if len(text) > MAX_TEXT:
        raise invalid(f"{place} has {len(text)} bytes, expected at most {MAX_TEXT}", f"a route is as {_EXAMPLE}")
    return read_json(text, lambda what, hint: invalid(f"{place} {what}", hint), f"write {_EXAMPLE}")


def _name(reader: _Reader, name: str) -> str:
    if not name or "/" in name or not name.isprintable():
        raise reader.bad("", f"names {shown(name)}, expected the name of a model or of an alias", "leave out '/'")
    return name


class _Reader:
    """Errors name the place and the field: `<place>: arms[1].weight is -3, expected ...`."""

    def __init__(self, place: str) -> None:
        self._place = place

    def bad(self, path: str, why: str, hint: str) -> InferError:
        return invalid(f"{self._place}: {path or 'it'} {why}", hint)

    def route(self, given: Json, path: str, name: str) -> TrafficRoute:
        self._keys(given, path, ("arms", "sticky", "shadow"))
        dot = f"{path}." if path else ""
        arms = tuple(self._arm(each, at, name) for each, at in self._list(given, dot, "arms", MAX_ARMS, default=[{}]))
        self._distinct(f"{dot}arms", [arm.target for arm in arms])
        if not arms or not any(arm.weight for arm in arms):
            why = "is empty" if not arms else "has weight 0 alone"
            raise self.bad(f"{dot}arms", f"{why}, expected an arm with a weight above 0", f"write {_EXAMPLE}")
        shadows = tuple(
            self._shadow(each, at, name) for each, at in self._list(given, dot, "shadow", MAX_SHADOWS, default=[])
        )
        self._distinct(f"{dot}shadow", [each.target for each in shadows])
        return TrafficRoute(arms, self._sticky(given.get("sticky"), f"{dot}sticky"), shadows)

    def _arm(self, given: Json, path: str, name: str) -> Arm:
        self._keys(given, path, ("model", "version", "weight"))
        weight = given.get("weight", 1)
        if not is_number(weight) or not (weight == 0 or _LEAST <= weight <= _MOST):
            raise self.bad(
                f"{path}.weight", f"is {shown(weight)}, expected 0 or a number from {_LEAST:g} to {_MOST:g}",
                "weights are shares of their sum: 90 and 10, or 0.9 and 0.1",
            )  # fmt: skip
        return Arm(self._target(given, path, name), weight)

    def _shadow(self, given: Json, path: str, name: str) -> Shadow:
        self._keys(given, path, ("model", "version", "fraction", "max_in_flight", "compare"))
        fraction = given.get("fraction", 1)
        if not is_number(fraction) or not (fraction == 0 or _LEAST <= fraction <= 1):
            raise self.bad(
                f"{path}.fraction", f"is {shown(fraction)}, expected 0 or a number from {_LEAST:g} to 1",
                "the share of requests that the shadow gets, such as 0.1",
            )  # fmt: skip
        most = given.get("max_in_flight", 32)
        if type(most) is not int or not 1 <= most <= 100_000:
            raise self.bad(
                f"{path}.max_in_flight", f"is {shown(most)}, expected a whole number from 1 to 100000",
                "copies beyond it are dropped and counted",
            )  # fmt: skip
        compare = given.get("compare", {})
        self._keys(compare, f"{path}.compare", ("relative_tolerance", "absolute_tolerance"))
        default = Tolerance()
        return Shadow(
            self._target(given, path, name),
            fraction,
            Tolerance(
                self._tolerance(compare, f"{path}.compare", "relative_tolerance", default.relative),
                self._tolerance(compare, f"{path}.compare", "absolute_tolerance", default.absolute),
            ),
            most,
        )

    def _tolerance(self, given: Mapping[str, Json], path: str, name: str, default: float) -> float:
        value: float = given.get(name, default)
        if not is_number(value) or not 0 <= value <= _MOST:
            raise self.bad(
                f"{path}.{name}", f"is {shown(value)}, expected a number from 0 to {_MOST:g}",
                "outputs agree where |a - b| <= absolute + relative * |a|",
            )  # fmt: skip
        return value

    def _target(self, given: Mapping[str, Json], path: str, name: str) -> Target:
        model, version = given.get("model", name), given.get("version")
        if not isinstance(model, str) or not model or not model.isprintable():
            raise self.bad(
                f"{path}.model", f"is {shown(model)}, expected a model's name", "leave it out for the model itself"
            )
        if isinstance(version, str) and version.isascii() and version.isdigit() and len(version) < 19:
            version = int(version)
        if version in (None, "latest") or (version == -1 and type(version) is int):
            return Target(model)
        if type(version) is not int or not 0 <= version < 1 << 63:
            raise self.bad(
                f"{path}.version", f"is {shown(version)}, expected a version's number or 'latest'",
                "leave it out for the latest version",
            )  # fmt: skip
        return Target(model, version)

    def _sticky(self, given: Json, path: str) -> Sticky | None:
        if given is None:
            return None
        if isinstance(given, dict):
            self._keys(given, path, ("by",))
            given, path = given.get("by"), f"{path}.by"
        if isinstance(given, str):
            kind, colon, name = given.partition(":")
            kind, name = kind.strip(), name.strip().lower()
            if not colon and kind in {"sequence", "request_id"}:
                return Sticky(kind)
            if kind in {"header", "parameter"} and name and name.isprintable():
                return Sticky("parameter", name, header=kind == "header")
        raise self.bad(path, f"is {shown(given)}, {_STICKY}", "such as 'header:x-user'")

    def _list(
        self, given: Mapping[str, Json], dot: str, name: str, most: int, *, default: list[Json]
    ) -> list[tuple[Json, str]]:
        """The members of a list with their paths; one object stands for a list of one."""
        found = given.get(name, default)
        if isinstance(found, dict):
            return [(found, f"{dot}{name}")]
        if not isinstance(found, list):
            raise self.bad(f"{dot}{name}", f"is {shown(found)}, expected a list of objects", f"write {_EXAMPLE}")
        if len(found) > most:
            raise self.bad(f"{dot}{name}", f"has {len(found)} members, expected at most {most}", "leave some out")
        return [(each, f"{dot}{name}[{number}]") for number, each in enumerate(found)]

    def _distinct(self, path: str, targets: list[Target]) -> None:
        for target in targets:
            if targets.count(target) > 1:
                raise self.bad(path, f"names {target.label} twice", "give each version of a model one weight")

    def _keys(self, given: Json, path: str, known: Collection[str]) -> None:
        names = ", ".join(known)
        if not isinstance(given, dict):
            raise self.bad(path, f"is {shown(given)}, expected an object", f"its members are {names}")
        for key in given:
            if key not in known:
                raise self.bad(path, f"has the unknown member {shown(key)}", f"its members are {names}")
