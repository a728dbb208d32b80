"""Between tensors and the values of functions: nothing is changed on the way, nothing wrong passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from conch.functions.kinds import DATATYPES
from conch.functions.values import Field, ValueRefused, decode, encode

NUMBERS = [name for name in DATATYPES if name != "BYTES"]


@given(st.data())
def test_arrays_come_back_as_they_went(data: st.DataObject) -> None:
    """An array of the declared type and rank is the tensor itself, with its bits."""
    name = data.draw(st.sampled_from(NUMBERS))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    field = Field("x", name, tuple(data.draw(st.sampled_from([size, -1])) for size in shape), "array")
    array = data.draw(arrays.arrays(DATATYPES[name].numpy, tuple(shape)))
    sent = encode(field, array)
    assert sent.shape == (tuple(shape) or (1,))
    assert decode(field, sent).tobytes() == array.tobytes()


@given(st.lists(st.text()), st.lists(st.binary()))
def test_texts_and_bytes_come_back_as_they_went(texts: list[str], blobs: list[bytes]) -> None:
    """Any text, and any bytes with zeros at their end."""
    words, raw = Field("w", "BYTES", (-1,), "list", "str"), Field("b", "BYTES", (-1,), "list", "bytes")
    assert decode(words, encode(words, texts)) == texts
    assert decode(raw, encode(raw, blobs)) == blobs


@given(st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), st.text(), st.binary()))
def test_scalars_come_back_as_they_went(value: Any) -> None:
    """One value is a tensor of one element."""
    kind = {int: "INT64", float: "FP64", bool: "BOOL", str: "BYTES", bytes: "BYTES"}[type(value)]
    field = Field("x", kind, (), "scalar", type(value).__name__)
    sent = encode(field, value)
    assert sent.shape == (1,)
    assert decode(field, sent) == value


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_batch_has_as_many_rows_as_it_had(rows: int, given_rows: int) -> None:
    """The function must give a row for each row."""
    field = Field("y", "FP32", (-1,), "array")
    if rows == given_rows:
        assert encode(field, np.zeros(given_rows), rows=rows).shape == (rows, 1)
    else:
        with pytest.raises(ValueRefused, match=f"has {given_rows} rows, the batch has {rows}"):
            encode(field, np.zeros(given_rows), rows=rows)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (Field("y", "INT64", (-1,), "array"), np.array([1.5]), "declared INT64, the function gave an array of float64"),
        (Field("y", "FP32", (2,), "array"), [1.0, 2.0, 3.0], r"declared FP32\[2\], the function gave the shape \[3\]"),
        (Field("y", "FP32", (-1,), "array"), "text", "declared FP32, the function gave 'text'"),
        (Field("y", "BYTES", (), "scalar", "str"), 3, "declared str, the function gave 3"),
        (Field("y", "BYTES", (-1,), "list", "str"), "abc", r"declared list\[str\], the function gave the shape \[\]"),
        (Field("y", "FP64", (), "scalar", "float"), [1.0], r"declared float, the function gave the shape \[1\]"),
    ],
)
def test_what_was_not_declared_is_refused(field: Field, value: Any, said: str) -> None:
    """The text names the output, what it was declared and what came."""
    with pytest.raises(ValueRefused, match=said):
        encode(field, value)


def test_numbers_are_widened_and_narrowed_within_their_kind() -> None:
    """What numpy computes in is not always what was declared: same kinds are converted."""
    assert encode(Field("y", "FP32", (-1,), "array"), np.array([1.5])).dtype == np.float32
    assert encode(Field("y", "INT32", (-1,), "array"), [1, 2]).dtype == np.int32
    assert encode(Field("y", "FP32", (-1,), "array"), [1, 2]).dtype == np.float32


def test_bytes_that_are_no_text_are_the_clients_fault() -> None:
    """The error names the input."""
    field = Field("x", "BYTES", (), "scalar", "str")
    with pytest.raises(ValueRefused, match="input 'x' is no UTF-8 text"):
        decode(field, np.array([b"\xff"], dtype=object))
