"""Whether an exported model gives what the model itself gives. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from conch.export.api import Array, ExportError, Tolerance


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest one of an output. `excess` is how much of the tolerance it uses up: above 1 is too much."""

    output: str
    largest: float
    excess: float


def compare(expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: Tolerance) -> list[Difference]:
    """One for each output. Raises ExportError where they cannot be compared."""
    if len(expected) != len(found):
        raise ExportError(
            f"the model has {len(expected)} outputs ({', '.join(expected)}), the exported one {len(found)} "
            f"({', '.join(found)})"
        )
    return [
        _one(name, array, other, tolerance)
        for (name, array), other in zip(expected.items(), found.values(), strict=True)
    ]


def _one(name: str, expected: Array, found: Array, tolerance: Tolerance) -> Difference:
    if expected.shape != found.shape:
        raise ExportError(
            f"output '{name}' has shape {list(expected.shape)}, that of the exported model {list(found.shape)}",
            "the exported graph has a size of the example built in: look for .view, .reshape and loops over shapes",
        )
    if expected.dtype.kind not in "fiub":
        wrong = np.asarray([str(a) != str(b) for a, b in zip(expected.ravel(), found.ravel(), strict=True)])
        return Difference(name, float(wrong.sum()), float(wrong.any()) * 2)
    wide, other = expected.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isnan(wide), np.isnan(other)):
        return Difference(name, float("nan"), float("inf"))
    # Infinities that are equal differ by nothing.
    with np.errstate(invalid="ignore"):
        apart = np.where(wide == other, 0.0, np.abs(np.nan_to_num(wide - other, nan=0.0)))
    # One that was infinite is as far apart as can be.
    allowed = tolerance.absolute + tolerance.relative * np.abs(np.nan_to_num(wide, posinf=0.0, neginf=0.0))
    with np.errstate(over="ignore"):
        excess = np.divide(apart, allowed, out=np.where(apart > 0, np.inf, 0.0), where=allowed > 0)
    return Difference(name, float(apart.max(initial=0.0)), float(excess.max(initial=0.0)))
