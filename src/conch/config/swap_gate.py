"""The gate of a reload as a model's config asks for it, by the parameter `conch_swap_gate`. Pure.

It is JSON, all of it optional: `{"requests": 64, "max_bytes": 67108864, "relative_tolerance": 1e-3,
"absolute_tolerance": 1e-5, "max_mismatches": 0, "outputs": ["scores"], "latency_factor": 1.5, "seconds": 30}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from conch.config.said import read_json
from conch.config.shown import is_number, shown
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.difference import Tolerance
from conch.types.error import InferError, invalid

PARAMETER: Final = "conch_swap_gate"
_EXAMPLE: Final = 'such as {"requests": 64, "relative_tolerance": 1e-3, "latency_factor": 1.5}'
_USUAL: Final = Tolerance(1e-3, 1e-5)
_WHOLE: Final = {"requests": (1, 10_000), "max_bytes": (1, 1 << 40), "max_mismatches": (0, 10_000)}
_NUMBERS: Final = {
    "relative_tolerance": (0.0, math.inf),
    "absolute_tolerance": (0.0, math.inf),
    "latency_factor": (0.01, 1e6),
    "seconds": (0.1, 3600.0),
}


@dataclass(frozen=True, slots=True)
class SwapGate:
    """What a new version has to prove before it takes over from one that serves."""

    #: So many of the last requests are kept, in at most so many bytes, and asked of both versions.
    requests: int = 64
    max_bytes: int = 64 << 20
    tolerance: Tolerance = _USUAL
    #: So many may be answered otherwise.
    max_mismatches: int = 0
    #: The outputs that are compared; empty for all.
    outputs: tuple[str, ...] = ()
    #: The new version's median latency may be so many times the old one's; None: any.
    latency_factor: float | None = None
    #: After this time no more requests are asked.
    seconds: float = 30.0


def swap_gate(config: ModelConfig) -> SwapGate | None:
    """None for most models. Raises InferError (INVALID_ARG) that names the field and what is expected."""
    if PARAMETER not in config.parameters:
        return None
    model = config.name
    given = _parse(model, config.parameters[PARAMETER].string_value)
    if config.HasField("sequence_batching") or config.HasField("ensemble_scheduling"):
        kind = "of sequences" if config.HasField("sequence_batching") else "that is an ensemble"
        raise _wrong(model, f"is set for a model {kind}", "requests that stand alone can be compared: remove it")
    if config.model_transaction_policy.decoupled:
        raise _wrong(model, "is set for a decoupled model", "one answer for each request can be compared: remove it")
    known = {*_WHOLE, *_NUMBERS, "outputs"}
    for name in given:
        if name not in known:
            raise _wrong(model, f"has an unknown field {shown(name)}", f"it has {', '.join(sorted(known))}")
    values = {name: _whole(model, given, name) for name in _WHOLE.keys() & given.keys()}
    numbers = {name: _number(model, given, name) for name in _NUMBERS.keys() & given.keys()}
    usual = SwapGate()
    return SwapGate(
        requests=values.get("requests", usual.requests),
        max_bytes=values.get("max_bytes", usual.max_bytes),
        tolerance=Tolerance(
            numbers.get("relative_tolerance", _USUAL.relative), numbers.get("absolute_tolerance", _USUAL.absolute)
        ),
        max_mismatches=values.get("max_mismatches", usual.max_mismatches),
        outputs=_outputs(config, given),
        latency_factor=numbers.get("latency_factor"),
        seconds=numbers.get("seconds", usual.seconds),
    )


def swap_gate_is_sound(config: ModelConfig) -> None:
    """A rule of `config.rules`."""
    swap_gate(config)


def _parse(model: str, text: str) -> dict[str, Any]:
    given = read_json(text or "{}", lambda what, hint: _wrong(model, what, hint), f"write an object, {_EXAMPLE}")
    if not isinstance(given, dict):
        raise _wrong(model, f"is {text[:60]}", f"write an object, {_EXAMPLE}")
    return given


def _whole(model: str, given: dict[str, Any], name: str) -> int:
    value = given[name]
    least, most = _WHOLE[name]
    if type(value) is not int or not least <= value <= most:
        raise _wrong(model, f"has {name} {shown(value)}", f"expected a whole number from {least} to {most}")
    return value


def _number(model: str, given: dict[str, Any], name: str) -> float:
    value = given[name]
    least, most = _NUMBERS[name]
    if not is_number(value) or not least <= value <= most:
        upper = "" if most == math.inf else f" to {most:g}"
        raise _wrong(model, f"has {name} {shown(value)}", f"expected a number from {least:g}{upper}")
    return float(value)


def _outputs(config: ModelConfig, given: dict[str, Any]) -> tuple[str, ...]:
    names = given.get("outputs", [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise _wrong(config.name, f"has outputs {shown(names)}", 'expected a list of names, such as ["scores"]')
    known = [each.name for each in config.output]
    for name in names:
        if known and name not in known:
            raise _wrong(config.name, f"names the output {shown(name)}", f"the model has {', '.join(known)}")
    return tuple(names)


def _wrong(model: str, what: str, hint: str) -> InferError:
    return invalid(f"parameter '{PARAMETER}' of model '{model}' {what}", hint)
