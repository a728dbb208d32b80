"""The door of the room: what a program's functions offer to be a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from conch.backend.api import Placement
from conch.backend.program.call import Call


class Copy(Protocol):
    """One executable copy; has a thread of its own, so it may block. It holds Python's lock while it computes."""

    def run(self, calls: Sequence[Call]) -> None:
        """Answer every call. What it raises is the error of those that have no answer yet."""

    def close(self) -> None: ...


@runtime_checkable
class AsyncCopy(Protocol):
    """One executable copy on an event loop of its own, where up to `concurrency` batches overlap."""

    concurrency: int

    async def answer(self, calls: Sequence[Call]) -> None:
        """Answer every call. What it raises is the error of those that have no answer yet."""

    def close(self) -> None: ...


class Program(Protocol):
    """One model."""

    def open(self, placement: Placement) -> Copy | AsyncCopy:
        """Blocking. What it raises fails the load."""
