"""Loads that are under way, by model: an unload puts those out of date that began before it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conch.registry.lease import Read
from conch.types.error import Code, InferError


class OutdatedError(InferError):
    """The model was unloaded while it was being loaded."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.INVALID_ARG,
            f"load failed for model '{name}': Newer operation has been applied to the model lifecycle, current load "
            "operation is out-dated.\n",
        )


class Attempt:
    """One load of one model."""

    __slots__ = ("name", "outdated")

    def __init__(self, name: str) -> None:
        self.name = name
        self.outdated = False

    def check(self) -> None:
        """Raises OutdatedError."""
        if self.outdated:
            raise OutdatedError(self.name)


@dataclass(frozen=True, slots=True)
class Report:
    """What a load has read of a model."""

    attempt: Attempt
    #: The models of an ensemble's steps.
    needs: Sequence[str]
    #: Whether somebody named the model, and whether with parameters.
    asked: bool
    overridden: bool
    #: Of an ensemble, to make it anew.
    read: Read | None = None


class Attempts:
    """Calls must not overlap."""

    def __init__(self) -> None:
        self._under_way: dict[str, list[Attempt]] = {}

    def begin(self, name: str) -> Attempt:
        attempt = Attempt(name)
        self._under_way.setdefault(name, []).append(attempt)
        return attempt

    def end(self, attempt: Attempt) -> None:
        left = self._under_way[attempt.name]
        left.remove(attempt)
        if not left:
            del self._under_way[attempt.name]

    def outdate(self, name: str) -> None:
        for attempt in self._under_way.get(name, ()):
            attempt.outdated = True
