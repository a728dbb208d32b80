"""How much memory there is and what a model wants of it: `--memory-budget`, and the parameter `conch_memory`. Pure.

The `string_value` of the parameter is JSON, all of it optional:

    {"ram": "300MiB", "gpu:0": "2GiB", "pinned": true, "idle_seconds": 600, "load": "on_demand"}

`ram` and `gpu:<n>` are what the model takes, as long as that has not been measured. A `pinned` model stays loaded. One
with `idle_seconds` is put to sleep when nobody has asked it for so long. `load` is `start`, or `on_demand`: not before
the first request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conch.config.flag_values import FlagValueError
from conch.config.said import read_json
from conch.config.shown import is_number, shown
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid

PARAMETER: Final = "conch_memory"
RAM: Final = "ram"
_UNITS: Final = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for ending, base in (("B", 1000), ("iB", 1024), ("", 1024))
}
_AMOUNT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([KMGT]?(?:i?B)?)", re.ASCII)
_DEVICE: Final = re.compile(r"ram|gpu:[0-9]{1,3}", re.ASCII)
#: More bytes than any machine has.
_MOST: Final = 1 << 63
_EXAMPLE: Final = '{"ram": "300MiB", "pinned": true}'
_KEYS: Final = "'ram', 'gpu:<n>', 'pinned', 'idle_seconds' and 'load'"


@dataclass(frozen=True, slots=True)
class MemoryWish:
    """What one model wants. `takes` are bytes by device (`ram`, `gpu:<n>`), as the operator estimates them."""

    takes: Mapping[str, int] = field(default_factory=dict)
    pinned: bool = False
    #: None: it sleeps only where others need its room.
    idle_seconds: float | None = None
    on_demand: bool = False


def memory_budget(value: str) -> dict[str, int]:
    """The reader of `--memory-budget`: `6GiB`, or `ram=6GiB,gpu:0=40GiB`."""
    budget: dict[str, int] = {}
    for part in value.split(","):
        device, equals, amount = (each.strip() for each in part.rpartition("="))
        device = device if equals else RAM
        size = _bytes(amount)
        if not _DEVICE.fullmatch(device) or size is None or size <= 0:
            raise FlagValueError(
                f"Invalid option value. Got {value}: '{part.strip()}' is no amount of memory, expected such as 6GiB, "
                "or ram=6GiB,gpu:0=40GiB"
            )
        if device in budget:
            raise FlagValueError(f"Invalid option value. Got {value}: '{device}' is given twice")
        budget[device] = size
    return budget


def memory_wish(config: ModelConfig) -> MemoryWish | None:
    """None where the config says nothing. Raises InferError (INVALID_ARG) that names the field."""
    if PARAMETER not in config.parameters:
        return None
    text = config.parameters[PARAMETER].string_value
    given = read_json(text, lambda what, hint: _bad(config, what, hint), f"write {_EXAMPLE}")
    if not isinstance(given, dict):
        raise _bad(config, f"is {shown(given)}, expected a JSON object", f"write {_EXAMPLE}")
    if config.HasField("ensemble_scheduling"):
        raise _bad(
            config, "has no meaning for an ensemble", "ensembles take no memory: give it to the models of its steps"
        )
    wish = MemoryWish(
        takes={key: _amount(config, key, given[key]) for key in given if _DEVICE.fullmatch(key)},
        pinned=_pinned(config, given.get("pinned", False)),
        idle_seconds=_idle(config, given.get("idle_seconds")),
        on_demand=_load(config, given.get("load", "start")),
    )
    for key in given:
        if key not in {"pinned", "idle_seconds", "load"} and key not in wish.takes:
            raise _bad(config, f"has an unknown key {shown(key)}", f"known are {_KEYS}")
    if wish.pinned and wish.idle_seconds is not None:
        raise _bad(config, "has both 'pinned' and 'idle_seconds'", "a pinned model never sleeps: remove one of them")
    return wish


def memory_wish_is_sound(config: ModelConfig) -> None:
    """A rule of `config.rules`."""
    memory_wish(config)


def amount(size: int) -> str:
    """Bytes for people: 3.2 GiB, 60 MiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            number = size / factor
            return f"{number:.1f} {unit}" if unit == "GiB" or number < 10 else f"{number:.0f} {unit}"
    return f"{size} B"


def _bytes(text: str) -> int | None:
    """The bytes of `300MiB`, `1.5 GB` or `1048576`; None for what is no amount."""
    found = _AMOUNT.fullmatch(text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _amount(config: ModelConfig, key: str, given: Any) -> int:
    size = given if type(given) is int else _bytes(given) if isinstance(given, str) else None
    if size is None or not 0 <= size < _MOST:
        raise _bad(
            config, f"has {shown(given)} in '{key}', expected an amount of memory", f'write such as "{key}": "300MiB"'
        )
    return size


def _pinned(config: ModelConfig, given: Any) -> bool:
    if not isinstance(given, bool):
        raise _bad(config, f"has {shown(given)} in 'pinned', expected true or false", f"write {_EXAMPLE}")
    return given


def _idle(config: ModelConfig, given: Any) -> float | None:
    if given is None:
        return None
    if not is_number(given) or given <= 0:
        raise _bad(
            config,
            f"has {shown(given)} in 'idle_seconds', expected seconds above 0",
            'write such as "idle_seconds": 600',
        )
    return float(given)


def _load(config: ModelConfig, given: Any) -> bool:
    if given not in ("start", "on_demand"):
        raise _bad(
            config, f"has {shown(given)} in 'load', expected start or on_demand", 'write such as "load": "on_demand"'
        )
    return bool(given == "on_demand")


def _bad(config: ModelConfig, what: str, hint: str) -> InferError:
    return invalid(f"parameter '{PARAMETER}' of model '{config.name}' {what}", hint)
