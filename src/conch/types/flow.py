"""How fast the client of a stream reads, told to whoever makes the answers, so that memory does not fill up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

_LOG: Final = logging.getLogger("conch")


class Flow:
    """One per stream, shared by its requests (`InferRequest.flow`). Everything happens on the loop's thread.

    The transport sets `full` when too much waits to be written and calls `release` when that is over or the stream has
    ended. Answers may still come while `full` is set: what is under way is bounded by the maker's own window.
    """

    __slots__ = ("_waiting", "full")

    def __init__(self) -> None:
        self.full = False
        self._waiting: list[Callable[[], None]] = []

    def wait(self, call: Callable[[], None]) -> None:
        """Have `call` called once, at the next `release`."""
        self._waiting.append(call)

    def release(self) -> None:
        self.full = False
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            # One maker's fault is not the next one's: the loop of a program that waits here may have ended.
            try:
                call()
            except Exception:  # noqa: BLE001  a maker's
                _LOG.exception("who waited to answer a stream could not go on")
