"""What a request must satisfy before its bytes are looked at, and Triton's words for what it breaks."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.service import checks
from conch.types.dtype import BYTES, FP32, INT64
from conch.types.error import Code, InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InputHead, RequestHead
from conch.types.tensor import join_bytes

NOTE = checks._BATCH_NOTE


def make_spec(max_batch_size: int = 4, optional: bool = False) -> ModelSpec:
    inputs = (TensorSpec("a", FP32, (3,)), TensorSpec("b", INT64, (-1,), optional=optional))
    return ModelSpec("m", 1, max_batch_size, inputs, (TensorSpec("y", FP32, (3,)),))


def make_head(
    *inputs: tuple[str, str, tuple[int, ...]], outputs: tuple[str, ...] = (), **parameters: object
) -> RequestHead:
    heads = [InputHead(name, datatype, shape) for name, datatype, shape in inputs]
    return RequestHead("m", "", "7", heads, outputs, parameters)  # type: ignore[arg-type]


GOOD = (("b", "INT64", (2, 5)), ("a", "FP32", (2, 3)))


def refusal(spec: ModelSpec, head: RequestHead) -> str:
    with pytest.raises(InferError) as caught:
        checks.check_inputs(spec, head)
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


def test_inputs_are_put_in_the_order_of_the_config() -> None:
    """Whatever order the client sends, positions are the config's; sizes are bytes, the batch key the free dims."""
    inputs = checks.check_inputs(make_spec(), make_head(*GOOD))
    assert inputs.positions == (0, 1)
    assert inputs.order == (1, 0)
    assert inputs.shapes == ((2, 3), (2, 5))
    assert inputs.sizes == (24, 80)
    assert inputs.rows == 2
    assert inputs.batch_key == (None, ((5,),))


def test_optional_input_may_be_left_out() -> None:
    """Requests meet only with others that carry the same inputs."""
    inputs = checks.check_inputs(make_spec(optional=True), make_head(("a", "FP32", (1, 3))))
    assert inputs.positions == (0,)
    assert inputs.batch_key == ((0,), ())


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            GOOD[:1],
            (
                "[request id: 7] expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['b'], but missing "
                "required input(s) ['a']. Please provide all required input(s)."
            ),
        ),
        ((GOOD[0], GOOD[0]), "[request id: 7] input 'b' already exists in request"),
        ((GOOD[0], ("z", "FP32", (2, 3))), "unexpected inference input 'z' for model 'm'"),
        (
            (GOOD[0], ("a", "INT32", (2, 3))),
            "[request id: 7] inference input 'a' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            (GOOD[0], ("a", "FP32", (2, 4))),
            f"[request id: 7] unexpected shape for input 'a' for model 'm'. Expected [-1,3], got [2,4]. {NOTE}",
        ),
        (
            (GOOD[0], ("a", "FP32", ())),
            "[request id: 7] input 'a' has no shape but model requires batch dimension for 'm'",
        ),
        ((GOOD[0], ("a", "FP32", (1, 3))), "[request id: 7] input 'a' batch size does not match other inputs for 'm'"),
        (
            (("b", "INT64", (9, 5)), ("a", "FP32", (9, 3))),
            "[request id: 7] inference request batch-size must be <= 4 for 'm'",
        ),
        (
            (("b", "INT64", (0, 5)), ("a", "FP32", (0, 3))),
            "[request id: 7] input byte size mismatch for input 'b' for model 'm'. Expected 40, got 0",
        ),
        (
            (("b", "INT64", (2, -1)), ("a", "FP32", (2, 3))),
            "[request id: 7] All input dimensions should be specified for input 'b' for model 'm', got [2,-1]",
        ),
    ],
)
def test_wrong_inputs_are_refused_in_tritons_words(
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...], text: str
) -> None:
    """Each rule has its text, with the request's id in front where Triton's core puts it."""
    assert refusal(make_spec(), make_head(*inputs)) == text


def test_without_batching_the_shape_is_complete_and_the_note_is_left_out() -> None:
    """max_batch_size 0: no batch dimension, and the text ends in a dot and a space, as Triton's does."""
    text = refusal(make_spec(0), make_head(("a", "FP32", (2, 3)), ("b", "INT64", (1,))))
    assert text == "[request id: 7] unexpected shape for input 'a' for model 'm'. Expected [3], got [2,3]. "


def test_unknown_and_repeated_outputs_are_refused() -> None:
    """A requested output must be the model's, once."""
    with pytest.raises(InferError, match="unexpected inference output 'q' for model 'm'"):
        checks.check_outputs(make_spec(), make_head(outputs=("q",)))
    with pytest.raises(InferError, match="output 'y' already exists in request"):
        checks.check_outputs(make_spec(), make_head(outputs=("y", "y")))


def test_parameters_that_steer_are_told_from_the_models() -> None:
    """Priority, timeout and sequence parameters steer the server; the rest goes to the model."""
    steering = checks.steering(make_head(priority=2, timeout=5, sequence_id="s", sequence_end=True, mine=1.5))
    assert steering == checks.Steering(2, 5, "s", 2, {"mine": 1.5})


@pytest.mark.parametrize(
    "parameters", [{"priority": -1}, {"timeout": "x"}, {"sequence_start": 1}, {"sequence_id": True}]
)
def test_steering_parameters_of_a_wrong_type_are_refused(parameters: dict[str, object]) -> None:
    """The error names the parameter."""
    with pytest.raises(InferError, match=next(iter(parameters))):
        checks.steering(make_head(**parameters))


def string_refusal(count: int, data: bytes) -> str:
    spec = ModelSpec("m", 1, 0, (TensorSpec("s", BYTES, (-1,)),), ())
    with pytest.raises(InferError) as caught:
        checks.check_strings(spec, 0, count, data, "7")
    return caught.value.message


def test_string_elements_are_counted() -> None:
    """Too few, too many, and lengths that run past the end have Triton's texts."""
    one = struct.pack("<I", 2) + b"ab"
    head = "[request id: 7] "
    assert string_refusal(2, one) == head + "expected 2 string elements for inference input 's' for model 'm', got 1"
    assert string_refusal(1, one + one) == (
        head + "unexpected number of string elements 2 for inference input 's' for model 'm', expecting 1"
    )
    assert string_refusal(2, one + b"\0\0").startswith(
        head + "incomplete string length indicator for inference input 's' for model 'm', expecting 4 bytes but only 2 "
    )


def test_ragged_inputs_do_not_separate() -> None:
    """Requests that differ in a ragged input alone share a batch; other inputs of any size still count."""
    inputs = (TensorSpec("r", FP32, (-1,), ragged=True), TensorSpec("b", INT64, (-1,)))
    spec = ModelSpec("m", 1, 4, inputs, ())
    keys = [
        checks.check_inputs(spec, make_head(("r", "FP32", (1, size)), ("b", "INT64", (1, other)))).batch_key
        for size, other in ((3, 2), (9, 2), (3, 5))
    ]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_any_strings_pass_their_own_check(elements: list[bytes]) -> None:
    """What `join_bytes` makes of n elements is n elements."""
    spec = ModelSpec("m", 1, 0, (TensorSpec("s", BYTES, (-1,)),), ())
    checks.check_strings(spec, 0, len(elements), join_bytes(elements), "")


@given(st.binary(max_size=40), st.integers(0, 6))
def test_any_bytes_are_taken_or_refused(data: bytes, count: int) -> None:
    """No content of a BYTES input raises anything but a refusal."""
    spec = ModelSpec("m", 1, 0, (TensorSpec("s", BYTES, (-1,)),), ())
    with contextlib.suppress(InferError):
        checks.check_strings(spec, 0, count, data, "")
