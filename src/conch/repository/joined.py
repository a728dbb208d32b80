"""Several model repositories as one: folders and URLs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from conch.repository.api import ModelStore, StoredModel, Survey
from conch.types.error import invalid, not_found
from conch.types.model import identity


class Part(ModelStore, Protocol):
    """A store that can be joined with others."""

    def places(self, name: str) -> list[str]:
        """Where models called so lie now, empty for nowhere; not asked where there are namespaces."""


class JoinedStore:
    """A name must be the only one of its kind in all of them, unless they are namespaces."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)

    @property
    def namespaces(self) -> Sequence[str]:
        return [space for part in self._parts for space in part.namespaces]

    def names(self) -> list[str]:
        return sorted({name for part in self._parts for name in part.names()})

    def duplicates(self) -> frozenset[str]:
        if self.namespaces:
            return frozenset()
        seen: set[str] = set()
        twice: set[str] = set()
        for part in self._parts:
            names = set(part.names())
            twice |= (seen & names) | part.duplicates()
            seen |= names
        return frozenset(twice)

    def survey(self) -> Survey:
        surveys = [part.survey() for part in self._parts]
        count = Counter(name for each in surveys for name in each.looks)
        duplicates = {name for each in surveys for name in each.duplicates}
        duplicates |= {name for name, times in count.items() if times > 1}
        looks = {name: look for each in surveys for name, look in each.looks.items() if name not in duplicates}
        return Survey(looks, frozenset(duplicates), all(each.complete for each in surveys))

    def contents(self, name: str) -> str:
        return self._holder(name).contents(name)

    def fetch(self, name: str) -> StoredModel:
        return self._holder(name).fetch(name)

    def fetch_override(self, name: str, config: str, files: Mapping[str, bytes]) -> StoredModel:
        if files:
            # Such a model is made of its files alone, so any part can make it.
            return (self._of_namespace(name) or self._parts[0]).fetch_override(name, config, files)
        return self._holder(name).fetch_override(name, config, files)

    def _holder(self, name: str) -> Part:
        if self.namespaces:
            part = self._of_namespace(name)
            if part is None:
                raise not_found(f"failed to poll model '{name}': model not found in any model repository.")
            return part
        found = [(part, places) for part in self._parts if (places := part.places(name))]
        places = [place for _, each in found for place in each]
        if not places:
            raise not_found(f"failed to poll model '{name}': model not found in any model repository.")
        if len(places) > 1:
            raise invalid(
                f"failed to poll model '{name}': not unique across all model repositories",
                "it lies in " + " and in ".join(places) + "; keep one of them",
            )
        return found[0][0]

    def _of_namespace(self, name: str) -> Part | None:
        for part in self._parts:
            if any(name.startswith(identity(space, "")) for space in part.namespaces):
                return part
        return None
