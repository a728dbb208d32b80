"""Classification: which values are chosen, in which order, and how they are written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.protocol.v2.classify import classify, top
from conch.types.dtype import ALL, BF16, BOOL, BYTES, FP16, FP32, FP64, INT32, UINT64, DataType
from conch.types.error import Code, InferError
from conch.types.tensor import Tensor, from_numpy, split_bytes

NUMBERS = [each for each in ALL if each not in (BOOL, BYTES, FP16, BF16)]


def classes(
    datatype: DataType, shape: tuple[int, ...], values: list[float], k: int, labels: tuple[bytes, ...] = (),
    batching: bool = True,
) -> tuple[tuple[int, ...], list[bytes]]:  # fmt: skip
    data = from_numpy(datatype, np.array(values, dtype=datatype.numpy))
    found = classify(Tensor("o", datatype, shape, data), k, labels, batching=batching)
    assert (found.name, found.datatype) == ("o", BYTES)
    return found.shape, split_bytes(found.data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_largest_come_first_and_equal_ones_by_index(choice: st.DataObject) -> None:
    """As sorting all of them would have it, whatever the type; NaN is the smallest."""
    datatype = choice.draw(st.sampled_from(NUMBERS))
    kind = datatype.numpy
    if kind.kind == "f":
        values = choice.draw(st.lists(st.floats(width=datatype.size * 8) | st.sampled_from([0.0, -0.0, 1.0, math.nan])))
    else:
        limits = np.iinfo(kind)
        few = st.sampled_from([0, 1, int(limits.min), int(limits.max)])
        values = choice.draw(st.lists(few | st.integers(int(limits.min), int(limits.max))))
    k = choice.draw(st.integers(0, 50))
    exact = [np.dtype(kind).type(value).item() for value in values]
    keys = [-math.inf if value != value else value for value in exact]
    wanted = sorted(range(len(keys)), key=lambda index: (-keys[index], index))[:k]
    assert top(np.array(values, dtype=kind), k) == wanted


@pytest.mark.parametrize(
    ("datatype", "values", "wanted"),
    [
        (FP32, [0.25, 2.0, -1.5], ["2.000000:1", "0.250000:0", "-1.500000:2"]),
        (FP32, [0.1234565, 1e10, 1e-10], ["10000000000.000000:1", "0.123457:0", "0.000000:2"]),
        (FP32, [math.inf, -math.inf, 1e38], ["inf:0", "99999996802856924650656260769173209088.000000:2", "-inf:1"]),
        (FP64, [0.1, 1e15, -1e-7], ["1000000000000000.000000:1", "0.100000:0", "-0.000000:2"]),
        (INT32, [3, -1, 2**31 - 1], ["2147483647:2", "3:0", "-1:1"]),
        (UINT64, [3, 2**63 + 5], ["9223372036854775813:1", "3:0"]),
    ],
)
def test_values_are_written_as_triton_writes_them(datatype: DataType, values: list[float], wanted: list[str]) -> None:
    """Floats with six decimals, integers plain (recorded from Triton)."""
    assert classes(datatype, (1, len(values)), values, 9) == ((1, len(values)), [each.encode() for each in wanted])


def test_each_batch_entry_has_classes_of_its_own() -> None:
    """With a batch dimension the answer is [batch, k], without [k]; dimensions behind it are flattened."""
    values = [1, 2, 3, 6, 5, 4]
    assert classes(INT32, (2, 3), values, 2) == ((2, 2), [b"3:2", b"2:1", b"6:0", b"5:1"])
    assert classes(INT32, (1, 3, 2), values, 2) == ((1, 2), [b"6:3", b"5:4"])
    assert classes(INT32, (2, 3), values, 2, batching=False) == ((2,), [b"6:3", b"5:4"])
    assert classes(INT32, (1, 0), [], 2) == ((1, 0), [])
    assert classes(INT32, (0,), [], 2, batching=False) == ((0,), [])


def test_labels_are_added_where_there_are_any() -> None:
    """An empty line is no label, and values past the last label have none."""
    assert classes(INT32, (1, 4), [1, 2, 3, 4], 4, (b"cat", b"", b"d \xff")) == (
        (1, 4), [b"4:3", b"3:2:d \xff", b"2:1", b"1:0:cat"],
    )  # fmt: skip


@pytest.mark.parametrize("datatype", [BOOL, BYTES, FP16, BF16])
def test_types_without_classes_are_refused(datatype: DataType) -> None:
    with pytest.raises(InferError) as caught:
        classify(Tensor("o", datatype, (1, 0), b""), 1, (), batching=True)
    text = f"class result not available for output due to unsupported type '{datatype.name}'"
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, text)


def test_too_many_values_are_refused() -> None:
    with pytest.raises(InferError, match="classification output tensor too large"):
        classes(INT32, (1, 1_000_001), [0] * 1_000_001, 1)
