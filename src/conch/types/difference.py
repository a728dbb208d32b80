"""How far the outputs of two executions are from each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from conch.types.dtype import BF16, BOOL, BYTES
from conch.types.tensor import Buffer, Tensor, split_bytes, to_numpy

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Numbers a (expected) and b agree where |a - b| <= absolute + relative * |a|."""

    relative: float = 1e-5
    absolute: float = 1e-6


_EXACT: Final = Tolerance(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Difference:
    """`reason` says the first thing that is different beyond tolerance; empty where all agrees.

    `largest` is the largest |a - b| of all numbers, within tolerance or not; infinite where one of the two is no
    finite number and the other is another.
    """

    reason: str = ""
    largest: float = 0.0


def compare(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: Tolerance) -> Difference:
    """Outputs are compared by name. NaN agrees with NaN. Numbers by tolerance, booleans and BYTES exactly."""
    others = {tensor.name: tensor for tensor in found}
    reasons = []
    largest = 0.0
    for tensor in expected:
        other = others.pop(tensor.name, None)
        if other is None:
            reasons.append(f"output '{tensor.name}' is missing")
            continue
        difference = _compare(tensor, other, tolerance)
        largest = max(largest, difference.largest)
        if difference.reason:
            reasons.append(f"output '{tensor.name}': {difference.reason}")
    reasons += [f"output '{name}' is there in addition" for name in others]
    return Difference(reasons[0] if reasons else "", largest)


def _compare(expected: Tensor, found: Tensor, tolerance: Tolerance) -> Difference:
    if found.datatype is not expected.datatype:
        return Difference(f"data type {found.datatype.name} instead of {expected.datatype.name}")
    if tuple(found.shape) != tuple(expected.shape):
        return Difference(f"shape {list(found.shape)} instead of {list(expected.shape)}")
    if _equal(expected.data, found.data):
        return Difference()
    if expected.datatype is BYTES:
        return _compare_strings(split_bytes(expected.data), split_bytes(found.data))
    one, other = _raw(expected), _raw(found)
    if expected.datatype is BOOL:
        tolerance = _EXACT
    return _compare_numbers(one, other, tolerance)


def _equal(one: Buffer, other: Buffer) -> bool:
    # By numpy, which lets other threads run meanwhile.
    return len(one) == len(other) and bool((np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)).all())


def _compare_strings(expected: Sequence[bytes], found: Sequence[bytes]) -> Difference:
    for place, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return Difference(f"element {place} is {other[:40]!r} instead of {one[:40]!r}")
    return Difference(f"{len(found)} elements instead of {len(expected)}" if len(found) != len(expected) else "")


def _compare_numbers(one: _Array, other: _Array, tolerance: Tolerance) -> Difference:
    expected, found = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(expected - found)
        same = (one == other) | (np.isnan(expected) & np.isnan(found))
        if one.dtype.kind in "iub":
            # Large integers are not all doubles.
            gap = np.maximum(gap, 1.0)
        gap[same] = 0.0
        # What is left without a number is NaN or an infinity against something else.
        gap[np.isnan(gap)] = np.inf
        wrong = ~same & ~(gap <= tolerance.absolute + tolerance.relative * np.abs(expected))
        wrong |= np.isinf(gap)
    largest = float(gap.max(initial=0.0))
    if not wrong.any():
        return Difference("", largest)
    place = int(np.argmax(np.where(wrong, gap, -1.0)))
    return Difference(
        f"{int(wrong.sum())} of {gap.size} elements differ, most of all element {place}: "
        f"{found[place]:.9g} instead of {expected[place]:.9g}",
        largest,
    )


def _raw(tensor: Tensor) -> _Array:
    raw = to_numpy(tensor.datatype, (-1,), tensor.data)
    if tensor.datatype is BF16:
        # The upper half of a single-precision number.
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw
