"""Which cached files go when there are too many bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CachedObject:
    """A complete file of the cache. `used_at` is on any clock; `in_use`: a model has it, or a load is about to."""

    key: str
    size: int
    used_at: float
    in_use: bool


def evict(objects: Iterable[CachedObject], limit: int, needed: int = 0) -> list[str]:
    """What to remove, least recently used first, so that `needed` more bytes fit below `limit`.

    Nothing in use is ever named; so the rest may still be too much.
    """
    known = list(objects)
    excess = sum([each.size for each in known]) + needed - limit
    gone: list[str] = []
    for each in sorted(known, key=lambda each: (each.used_at, each.key)):
        if excess <= 0:
            break
        if not each.in_use and each.size > 0:
            gone.append(each.key)
            excess -= each.size
    return gone
