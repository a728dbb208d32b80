"""Which requests of a batch run together, where a model is compiled for some batch sizes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Sizes that a model is compiled for beside "any": larger batches gain nothing, they run as several of these.
#: Measured with a CNN of 14 MB on one thread, CPU time per image: 473 us as a batch of 1 of any size, 401 as one of a
#: compiled size; 403 and 339 (2), 360 and 319 (4), 366 and 321 (8). Where sizes change from run to run, as they do in a
#: server, "any" costs half as much again.
SIZES: Final = (4, 2, 1)
#: Weights of a model that is worth it: each size has a copy of them.
MOST_BYTES: Final = 64 << 20
#: Multiply-adds of convolutions in one row: about 100 us on one core, beside which another run is cheap. Networks of
#: matrix products alone read all their weights for each run, whatever its rows: they are to have large ones.
LEAST_WORK: Final = 4_000_000


def sizes_for(max_batch_size: int, weights: int, work: int) -> tuple[int, ...]:
    """The sizes to compile for, largest first; none: any. `weights` in bytes, `work` as for `LEAST_WORK`."""
    if weights > MOST_BYTES or work < LEAST_WORK:
        return ()
    return tuple([size for size in SIZES if size <= max_batch_size])


def split(rows: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a batch, whose requests have so many `rows` each, at the borders of requests.

    The parts in order, as (number of requests, compiled size); size 0 stands for a request that fits none and runs
    alone. The rows of one request are never parted: they may mean something to each other.
    """
    parts = []
    begin = 0
    while begin < len(rows):
        count, fitting, total = 1, 0, 0
        for index in range(begin, len(rows)):
            total += rows[index]
            if total > sizes[0]:
                break
            if total in sizes:
                count, fitting = index - begin + 1, total
        parts.append((count, fitting))
        begin += count
    return parts
