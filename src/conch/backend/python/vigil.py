"""Keeps processors awake while models wait for one another, hop by hop.

A blocking call of one model to another (`exec`) is a chain of short steps in three processes, each of which waits for
the one before. Between the steps all processors are idle, and an idle processor takes longer to wake (tens of
microseconds where it is a virtual one) than a step takes. So for a moment after each step nobody goes to sleep
(`--backend-config=python,call-spin-microseconds`), and whoever else can run goes first.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref


class Vigil:
    """Of one event loop. Loop thread only."""

    __slots__ = ("_loop", "_turning", "_until")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # What `_vigils` holds must not keep its own key alive.
        self._loop = weakref.ref(loop)
        self._until = 0
        self._turning = False

    @property
    def kept(self) -> bool:
        """Whether a call of a model was seen a moment ago."""
        return self._turning

    def step(self, moment_ns: int) -> None:
        """A step of a chain has been seen or taken: the next one may come within `moment_ns`."""
        self._until = time.monotonic_ns() + moment_ns
        loop = self._loop()
        if not self._turning and loop is not None:
            self._turning = True
            loop.call_soon(self._turn)

    def _turn(self) -> None:
        loop = self._loop()
        if time.monotonic_ns() < self._until and loop is not None:
            # Whoever can run on this processor goes first.
            os.sched_yield()
            loop.call_soon(self._turn)
        else:
            self._turning = False


_vigils: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Vigil] = weakref.WeakKeyDictionary()


def vigil_of(loop: asyncio.AbstractEventLoop) -> Vigil:
    vigil = _vigils.get(loop)
    if vigil is None:
        vigil = _vigils[loop] = Vigil(loop)
    return vigil
