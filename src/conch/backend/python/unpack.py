"""From the data of an EXECUTE message to the arrays of its requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from conch.backend.python.channel import aligned
from conch.backend.python.request import Batch
from conch.backend.python.tensor import BYTES


def columns(
    batch: Batch, count: int, source: Any, begin: int, size: int, lengths: Sequence[int], bases: list[Any]
) -> None:
    """Cut data that lie input by input: one array per input, each request gets its rows of it.

    From a packet they are copied (it is read-only). In an area the arrays are views: `bases` then holds what all of
    them refer to.
    """
    form = batch.form
    assert form is not None
    shared = type(source) is not bytes
    if shared and size:
        source = np.frombuffer(source, np.uint8, begin + size)
        bases.append(source)
    found: list[Sequence[Any]] = []
    told = 0
    for _, kind, dtype, shape, each in form.inputs:
        if kind == BYTES:
            mine = lengths[told : told + count]
            told += count
            total = sum(mine)
            raw = memoryview(bytes(source[begin : begin + total]))
            cuts = []
            at = 0
            for length in mine:
                cuts.append(raw[at : at + length])
                at += length
            found.append(cuts)
        else:
            total = each * count
            array: np.ndarray[Any, Any]
            if count == 1:
                array = np.ndarray(shape, dtype, source, begin)
                found.append((array if shared else array.copy(),))
            else:
                array = np.ndarray((count, *shape), dtype, source, begin)
                if not shared:
                    array = array.copy()
                found.append(list(array) if shape else [array[row, ...] for row in range(count)])
        begin = aligned(begin + total) if shared else begin + total
    batch.columns = found


def rows(batch: Batch, source: Any, begin: int, size: int, lengths: Sequence[int], bases: list[Any]) -> None:
    """Cut data that lie request by request, whose forms differ."""
    shared = type(source) is not bytes
    if shared and size:
        source = np.frombuffer(source, np.uint8, begin + size)
        bases.append(source)
    found = []
    told = iter(lengths)
    for form in batch.forms:
        row: list[Any] = []
        for _, kind, dtype, shape, each in form.inputs:
            if kind == BYTES:
                total = next(told)
                row.append(memoryview(bytes(source[begin : begin + total])))
            else:
                total = each
                array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, source, begin)
                row.append(array if shared else array.copy())
            begin = aligned(begin + total) if shared else begin + total
        found.append(row)
    batch.rows = found


def references(bases: list[Any]) -> int:
    """How often the most wanted of `bases` is referred to, by whatever holds a view of it."""
    most = 0
    for base in bases:
        most = max(most, sys.getrefcount(base))
    return most
