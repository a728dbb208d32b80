"""A value out of somebody's JSON as an error shows it: short, however large or deep it is. Pure."""

from __future__ import annotations

from typing import Any, Final

LONGEST: Final = 80


def shown(value: Any) -> str:
    try:
        return cut(repr(value))
    except RecursionError:
        return "a value that is nested too deeply"


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e308 < value < 1e308
