"""Which of the names that there are is the one that somebody meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Final

#: How alike two names must be (1 is equal), and how much more alike than any other.
_NEAR: Final = 0.72
_LEAD: Final = 0.06


def meant(name: str, names: Iterable[str]) -> str:
    """The one of `names` that `name` is a misspelling of; empty where there is none, or more than one."""
    ranked = sorted(
        ((SequenceMatcher(None, name.lower(), each.lower()).ratio(), each) for each in names if each != name),
        reverse=True,
    )
    if not ranked or ranked[0][0] < _NEAR:
        return ""
    return ranked[0][1] if len(ranked) == 1 or ranked[0][0] - ranked[1][0] >= _LEAD else ""
