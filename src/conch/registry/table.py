"""The versions that serve now, by name: what every request looks up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from conch.registry.served import ServedVersion
from conch.types.error import InferError, invalid

_INT64 = range(-(2**63), 2**63)


class ServingTable:
    """Readers take no lock: versions are swapped by assignment. Writers take turns (the registry's lock).

    `generation` grows after each change, so who reads it before a look-up never trusts an answer that is too old.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._latest: dict[str, ServedVersion] = {}
        self._versions: dict[str, Mapping[int, ServedVersion]] = {}
        #: The look-up of requests that name a version, by the version's usual text.
        self._by_text: dict[str, Mapping[str, ServedVersion]] = {}

    def find(self, name: str, version: str) -> ServedVersion | None:
        """The version that answers; None when there is none, or when `version` is not written the usual way."""
        if not version:
            return self._latest.get(name)
        versions = self._by_text.get(name)
        return versions.get(version) if versions is not None else None

    def versions(self, name: str) -> Mapping[int, ServedVersion]:
        return self._versions.get(name, {})

    def all(self) -> Iterable[ServedVersion]:
        return chain.from_iterable([versions.values() for versions in list(self._versions.values())])

    def swap(self, models: Mapping[str, Mapping[int, ServedVersion]]) -> None:
        """From now on exactly these versions of each of these models serve: one step, however many they are."""
        # Copies take the place of what readers may be looking at.
        every, by_text, latest = dict(self._versions), dict(self._by_text), dict(self._latest)
        for name, versions in models.items():
            if versions:
                every[name] = dict(sorted(versions.items()))
                by_text[name] = {str(number): served for number, served in versions.items()}
                latest[name] = versions[max(versions)]
            else:
                for table in (every, by_text, latest):
                    table.pop(name, None)
        self._versions, self._by_text, self._latest = every, by_text, latest
        self.generation += 1


def parse_version(text: str) -> int:
    """The number in a request's version. Raises InferError with Triton's texts."""
    try:
        number = int(text) if text.isascii() and "_" not in text else None
    except ValueError:
        number = None
    if number is None or number not in _INT64:
        raise _no_number(text)
    if number < 0:
        raise invalid(f"invalid model version specified '{text}' , version should be an integral value > 0")
    return number


def _no_number(text: str) -> InferError:
    # Triton shows what the C++ library says: the name of the function that refused.
    return invalid(
        f"failed to get model version from specified version string '{text}' (details: stol), "
        "version should be an integral value > 0"
    )
