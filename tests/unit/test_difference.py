"""How far outputs are from each other: by tolerance, by name, whatever their type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from conch.types.difference import Tolerance, compare
from conch.types.dtype import ALL, BF16, BOOL, BYTES, FP16, FP32, FP64, INT32, INT64, UINT64, DataType
from conch.types.tensor import Tensor, from_numpy, join_bytes

INF = float("inf")


def tensor(values: list[object], kind: DataType = FP32, name: str = "y") -> Tensor:
    array = np.array(values, dtype=object if kind is BYTES else kind.numpy)
    return Tensor(name, kind, array.shape, bytes(from_numpy(kind, array)))


def differ(one: Tensor, other: Tensor, relative: float = 0.01, absolute: float = 0.1) -> tuple[str, float]:
    found = compare([one], [other], Tolerance(relative, absolute))
    return found.reason, found.largest


def test_numbers_agree_within_tolerance() -> None:
    """Absolute plus relative of what is expected; the largest difference is told all the same."""
    assert differ(tensor([1, 100]), tensor([1.1, 101]), absolute=0.11) == ("", 1.0)
    reason, largest = differ(tensor([1, 100, 5]), tensor([1, 102, 5.5]))
    assert reason == ("output 'y': 2 of 3 elements differ, most of all element 1: 102 instead of 100")
    assert largest == 2


@pytest.mark.parametrize("kind", [FP16, FP32, FP64])
def test_what_is_no_number_agrees_with_itself(kind: DataType) -> None:
    """NaN with NaN, an infinity with the same one, and with nothing else."""
    odd: list[object] = [np.nan, np.inf, -np.inf]
    assert differ(tensor([*odd, 1], kind), tensor([*odd, 1.05], kind), absolute=1)[0] == ""
    for one, other in ((np.nan, 1.0), (np.inf, -np.inf), (1.0, np.inf), (np.inf, 1.0), (2.0, np.nan)):
        reason, largest = differ(tensor([one], kind), tensor([other], kind), absolute=1e9)
        assert reason
        assert largest == INF


def test_types_with_their_own_ways() -> None:
    """BF16 by its value, integers beyond 2**53 exactly, booleans and strings exactly."""
    assert differ(Tensor("y", BF16, (1,), b"\x80\x3f"), Tensor("y", BF16, (1,), b"\x81\x3f")) == ("", 0.0078125)
    large = 1 << 60
    assert differ(tensor([large], INT64), tensor([large + 1], INT64), 0, 0)[0]
    assert differ(tensor([large], UINT64), tensor([large + 1], UINT64), 0, 1)[0] == ""
    assert differ(tensor([5], INT32), tensor([6], INT32), 0, 1) == ("", 1.0)
    assert differ(tensor([True], BOOL), tensor([False], BOOL), 9, 9)[0]
    assert differ(tensor([b"a", b"b"], BYTES), tensor([b"a", b"c"], BYTES))[0] == (
        "output 'y': element 1 is b'c' instead of b'b'"
    )
    short = Tensor("y", BYTES, (2,), join_bytes([b"a"]))
    assert differ(tensor([b"a", b"b"], BYTES), short)[0] == "output 'y': 1 elements instead of 2"


def test_outputs_are_compared_by_name() -> None:
    """Their order does not matter; what is missing or too much does, and type and shape."""
    a, b = tensor([1], name="a"), tensor([2], name="b")
    assert not compare([a, b], [b, a], Tolerance()).reason
    assert compare([a, b], [a], Tolerance()).reason == "output 'b' is missing"
    assert compare([a], [a, b], Tolerance()).reason == "output 'b' is there in addition"
    assert differ(tensor([1]), tensor([1], INT32))[0] == "output 'y': data type INT32 instead of FP32"
    assert differ(tensor([1]), tensor([1, 1]))[0] == "output 'y': shape [2] instead of [1]"


@given(st.sampled_from([each for each in ALL if each not in (BYTES, BF16, BOOL)]), st.data())
def test_every_tensor_agrees_with_itself(kind: DataType, data: st.DataObject) -> None:
    """At no tolerance at all; and what is found different has a difference."""
    shape = st.integers(0, 5)
    one = data.draw(arrays.arrays(kind.numpy, shape))
    other = data.draw(arrays.arrays(kind.numpy, one.shape))
    tensors = [Tensor("y", kind, one.shape, each.tobytes()) for each in (one, other)]
    assert differ(tensors[0], tensors[0], 0, 0) == ("", 0.0)
    reason, largest = differ(tensors[0], tensors[1], 0, 0)
    assert bool(reason) == (not np.array_equal(one, other, equal_nan=kind in (FP16, FP32, FP64)))
    # The gap of two numbers may be too small for any.
    assert largest >= 0 and (reason or largest == 0)  # noqa: PT018
