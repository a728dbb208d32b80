"""Which parts of one piece of memory are free: first fit, aligned, freed in any order. Pure."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

#: Bytes: what copies to and from GPUs and all vector instructions are content with.
ALIGNMENT: Final = 256


class Spans:
    """`size` bytes from 0 on. Positions are multiples of `ALIGNMENT`; one thread at a time."""

    def __init__(self, size: int) -> None:
        size -= size % ALIGNMENT
        #: Begin and end of what is free, ascending; no two of them touch.
        self._free: list[tuple[int, int]] = [(0, size)] if size else []
        #: Begin -> end of what is taken.
        self._taken: dict[int, int] = {}

    def take(self, size: int) -> int | None:
        """Where `size` bytes begin that were free; None where there is no such room in one piece."""
        size = max(ALIGNMENT, size + -size % ALIGNMENT)
        for index, (begin, end) in enumerate(self._free):
            cut = begin + size
            if cut <= end:
                self._free[index : index + 1] = [(cut, end)] if cut < end else []
                self._taken[begin] = cut
                return begin
        return None

    def give_back(self, begin: int) -> None:
        """What `take` has returned is free again."""
        end = self._taken.pop(begin)
        index = bisect_left(self._free, (begin, end))
        last = index
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free[index][1]
            last = index + 1
        if index and self._free[index - 1][1] == begin:
            index -= 1
            begin = self._free[index][0]
        self._free[index:last] = [(begin, end)]

    @property
    def free(self) -> int:
        """Bytes."""
        return sum([end - begin for begin, end in self._free])

    @property
    def taken(self) -> list[tuple[int, int]]:
        """Begin and end of each."""
        return sorted(self._taken.items())
