"""Raw binary requests: the only input's shape is worked out from the config and the number of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.pb.model_config_pb2 import DataType, ModelConfig
from conch.protocol.v2.raw import input_of
from conch.types.error import InferError


def config(dims: list[int], data_type: int = DataType.TYPE_FP32, max_batch_size: int = 0) -> ModelConfig:
    made = ModelConfig(name="m", max_batch_size=max_batch_size)
    made.input.add(name="x", data_type=data_type, dims=dims)
    return made


@given(st.integers(0, 50), st.integers(1, 5), st.booleans())
def test_one_open_size_is_filled(rows: int, width: int, batching: bool) -> None:
    """The one dimension that the config leaves open takes what there is; a batch has one row."""
    body = bytes(4 * rows * width)
    found, data = input_of("m", config([-1, width], max_batch_size=8 if batching else 0), body)
    assert found.shape == ((1, rows, width) if batching else (rows, width))
    assert (found.name, found.datatype, found.parameters, data) == ("x", "FP32", {"binary_data_size": len(body)}, body)


def test_two_open_sizes_are_refused() -> None:
    """Triton's text, with the id that a raw request cannot have."""
    with pytest.raises(InferError) as caught:
        input_of("m", config([-1, -1]), b"aaaa")
    assert caught.value.message == (
        "[request id: <id_unknown>] The shape of the raw input 'x' can not be deduced because there are more than one "
        "variable-sized dimension"
    )


@pytest.mark.parametrize("dims", [[1], [-1]])
def test_a_string_is_the_whole_body(dims: list[int]) -> None:
    """BYTES: the body is the single element, without its length in front."""
    found, data = input_of("m", config(dims, DataType.TYPE_STRING), b"ab")
    assert (found.shape, found.datatype, bytes(data)) == ((1,), "BYTES", b"\2\0\0\0ab")


def test_several_strings_are_refused() -> None:
    """BYTES of any other shape cannot be told apart."""
    with pytest.raises(InferError, match="For BYTE datatype raw input 'x', the model must have input shape"):
        input_of("m", config([2], DataType.TYPE_STRING), b"ab")
