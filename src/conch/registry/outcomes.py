"""What became of the versions of one load: those that failed, and those that the gate keeps out, with the reasons."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from typing import Protocol, TypeVar

from conch.registry.failure import tell, with_hint
from conch.registry.served import ServedVersion
from conch.types.error import InferError, foreign, unavailable

log = logging.getLogger("conch.registry")

_Made = TypeVar("_Made")


class Gate(Protocol):
    def __call__(self, new: ServedVersion, old: ServedVersion, /) -> None:
        """Raises InferError where `new` must not take over from `old`. Blocking."""


def let_through(new: ServedVersion, old: ServedVersion, /) -> None:
    """Without a gate."""


def outcome_of(future: Future[_Made], what: str, number: int, reasons: dict[int, InferError]) -> _Made | None:
    """What was made; None where that failed, and then `reasons` has why."""
    try:
        return future.result()
    except CancelledError:
        reasons[number] = unavailable("Server exiting")
    except BaseException as raised:  # noqa: BLE001  a model's code may raise anything
        error = reasons[number] = foreign(raised)
        tell(log, f"{what}: {error}", error.hint)
    return None


def rejected_by(
    gate: Gate, name: str, made: Mapping[int, ServedVersion], serving: Mapping[int, ServedVersion]
) -> dict[int, InferError]:
    """Those that must not take over from what serves, and why."""
    reasons: dict[int, InferError] = {}
    for number, served in made.items() if serving else ():
        try:
            gate(served, serving.get(number) or serving[max(serving)])
        except BaseException as raised:  # noqa: BLE001  whatever it was, the load ends as one that failed
            error = reasons[number] = foreign(raised)
            text = with_hint(f"the gate of '{name}' keeps version {number} out: {error}", error.hint)
            log.error("%s", text)  # noqa: TRY400
    return reasons
