"""The areas in which a worker's answers come, and who still reads them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from conch.backend.python.channel import Area
from conch.types.tensor import Buffer

#: From this size on, the contents of an answer are lent rather than copied.
LARGE = 1 << 18


class Lending:
    """Large answers are views of the area that the worker wrote them to; it writes the next ones to another area.

    An area is free again when nothing refers to what was lent of it: when the responses have been sent, and dropped.
    While all others are lent, the contents of the current one are copied. Loop thread only.
    """

    __slots__ = ("_areas", "_borrowers", "number")

    def __init__(self, areas: Sequence[Area]) -> None:
        self._areas = areas
        self._borrowers: list[weakref.ref[np.ndarray[tuple[int], np.dtype[np.uint8]]] | None] = [None] * len(areas)
        #: Of the area for the next answer, which is free.
        self.number = 0

    def view(self, size: int) -> memoryview:
        """At least the first `size` bytes of the current area, until the next batch is sent."""
        return self._areas[self.number].view(size)

    def take(self, begin: int, end: int) -> Buffer:
        """These bytes of the current area, to keep."""
        view = self.view(end)
        if end - begin >= LARGE and (other := self._free()) is not None:
            lent = np.frombuffer(view, np.uint8, end - begin, begin)
            self._borrowers[self.number] = weakref.ref(lent)
            self.number = other
            return lent.data.toreadonly()
        return bytes(view[begin:end])

    def _free(self) -> int | None:
        """An area other than the current one that nobody reads."""
        for number, borrower in enumerate(self._borrowers):
            if number != self.number and (borrower is None or borrower() is None):
                return number
        return None
