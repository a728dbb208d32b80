"""What a model is called with: `--example x=FP32:8,3,224,224`. Pure but for the random numbers, which have a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from conch.export.api import Array, ExportError
from conch.types.dtype import BF16, BY_NAME, BYTES, DataType

_HOW: Final = "write NAME=TYPE:DIMS, such as x=FP32:8,3,224,224 or ids=INT64:2,16+:0..1000 (16+: any size, 16 here)"
#: Whole numbers are below this where the example does not say.
_BELOW: Final = 10


@dataclass(frozen=True, slots=True)
class Example:
    """One input. `shape` is complete, the first dimension is the batch where the model batches.

    `open` are the places of further dimensions that may have any size; whole numbers lie in [low, high).
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    open: frozenset[int] = frozenset()
    low: int = 0
    high: int = _BELOW

    def sized(self, rows: int | None, more: int) -> Example:
        """With another number of rows, and `more` in each open dimension."""
        shape = [size + more if place in self.open else size for place, size in enumerate(self.shape)]
        return replace(self, shape=tuple([rows if rows is not None else shape[0], *shape[1:]] if shape else shape))

    def array(self, random: np.random.Generator) -> Array:
        if self.datatype.numpy.kind == "f":
            made: Any = random.standard_normal(self.shape)
        elif self.datatype.numpy.kind == "b":
            made = random.integers(0, 2, self.shape)
        else:
            made = random.integers(self.low, self.high, self.shape)
        return np.asarray(made, dtype=self.datatype.numpy)


def parse_example(text: str) -> Example:
    """Raises ExportError."""
    name, equals, rest = text.partition("=")
    type_name, _, rest = rest.partition(":")
    dims, _, span = rest.partition(":")
    datatype = BY_NAME.get(type_name.upper())
    if not name or not equals or datatype is None or datatype in (BYTES, BF16):
        known = ", ".join(sorted(each.name for each in BY_NAME.values() if each not in (BYTES, BF16)))
        raise ExportError(f"--example {text}: {_HOW}", f"types are {known}")
    shape: list[int] = []
    opened: set[int] = set()
    for place, dim in enumerate(dims.split(",") if dims else []):
        if dim.endswith("+"):
            opened.add(place)
        size = dim.removesuffix("+")
        if not size.isdecimal() or int(size) < 1:
            raise ExportError(f"--example {text}: '{dim}' is no size", _HOW)
        shape.append(int(size))
    low, high = _span(span, text) if span else (0, _BELOW)
    return Example(name, datatype, tuple(shape), frozenset(opened - {0}), low, high)


def arrays(examples: Sequence[Example], rows: int | None = None, more: int = 0, seed: int = 0) -> dict[str, Array]:
    """Random inputs; `rows` None leaves the examples' own."""
    random = np.random.default_rng(seed)
    return {each.name: each.sized(rows, more).array(random) for each in examples}


def _span(text: str, example: str) -> tuple[int, int]:
    low, dots, high = text.partition("..")
    if not dots or not low.lstrip("-").isdecimal() or not high.isdecimal() or int(low) >= int(high):
        raise ExportError(f"--example {example}: '{text}' is no range", "such as 0..1000: from 0 to 999")
    return int(low), int(high)
