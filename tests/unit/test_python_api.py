"""`triton_python_backend_utils`, as far as it needs no worker."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from conch.backend.python import pb_utils
from conch.backend.python.autocomplete import ModelConfig
from conch.backend.python.pb_utils import InferenceRequest, InferenceResponse, Tensor, TritonError, TritonModelException


@pytest.mark.parametrize(("number", "dtype"), sorted(pb_utils._NUMPY_BY_NUMBER.items()))
def test_types_by_number(number: int, dtype: Any) -> None:
    """Numbers and numpy types name each other."""
    assert pb_utils.triton_to_numpy_type(number) is dtype
    assert pb_utils.numpy_to_triton_type(dtype) == number
    assert Tensor("a", np.zeros(2, dtype)).triton_dtype() == number


def test_types_without_a_partner() -> None:
    """BF16 and complex numbers have none; fixed-width bytes are strings."""
    assert pb_utils.triton_to_numpy_type(14) is None
    assert pb_utils.numpy_to_triton_type(np.complex64) is None
    assert pb_utils.numpy_to_triton_type(np.bytes_) == 13
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    with pytest.raises(KeyError):
        pb_utils.triton_string_to_numpy("TYPE_BF16")


@pytest.mark.parametrize("arguments", [("a", [1.0]), (1, np.zeros(1)), ("a", np.float32(1))])
def test_a_tensor_needs_a_name_and_an_array(arguments: tuple[Any, Any]) -> None:
    """Anything else is a TypeError that shows what came."""
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        Tensor(*arguments)


@pytest.mark.parametrize("array", [np.zeros(1, np.complex64), np.zeros(1, "M8[s]"), np.zeros(1, [("a", "i4")])])
def test_a_tensor_needs_a_type_of_tritons(array: np.ndarray[Any, Any]) -> None:
    """Types that Triton has not are refused in its words."""
    with pytest.raises(TritonModelException, match=r"^NumPy dtype is not supported\.$"):
        Tensor("a", array)


def test_a_tensor_gives_back_its_array() -> None:
    """as_numpy is the very array, each time; the shape is a list."""
    array = np.zeros((2, 3), np.float32)
    tensor = Tensor("a", array)
    assert tensor.as_numpy() is array
    assert (tensor.name(), tensor.shape(), tensor.is_cpu(), tensor.__dlpack_device__()) == ("a", [2, 3], True, (1, 0))


def test_dlpack_both_ways() -> None:
    """Tensors are exchanged without a copy, as objects and as capsules."""
    array = np.arange(3, dtype=np.int64)
    tensor = Tensor.from_dlpack("a", array)
    array[0] = 7
    assert tensor.as_numpy().tolist() == [7, 1, 2]
    assert np.from_dlpack(Tensor("b", array)).tolist() == [7, 1, 2]
    assert Tensor.from_dlpack("c", Tensor("b", array).to_dlpack()).as_numpy().tolist() == [7, 1, 2]


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (lambda: Tensor.from_dlpack("a", 3), "Provided tensor is not supported. Tensor must be a DLPack capsule"),
        (lambda: Tensor.from_dlpack("a", np.zeros((2, 3)).T), "DLPack tensor is not contiguous."),
        (lambda: Tensor.from_dlpack("a", np.array([b"x"])), "DLPack does not have support for string tensors."),
        (lambda: Tensor("a", np.array([b"x"])).to_dlpack(), "TYPE_BYTES tensors cannot be converted to DLPack."),
    ],
)
def test_dlpack_refusals(attempt: Any, text: str) -> None:
    """What DLPack cannot carry is refused in Triton's words."""
    with pytest.raises(TritonModelException) as caught:
        attempt()
    assert str(caught.value).startswith(text)


def test_byte_tensors_are_serialised() -> None:
    """Four bytes of length before each element, in C order; the other way round gives one dimension."""
    raw = pb_utils.serialize_byte_tensor(np.array([[b"a", "\u00fc"], [3, b""]], dtype=object))
    assert raw == b"\1\0\0\0a\2\0\0\0\xc3\xbc\1\0\0\x003\0\0\0\0"
    assert pb_utils.deserialize_bytes_tensor(raw).tolist() == [b"a", "\u00fc".encode(), b"3", b""]
    assert pb_utils.serialize_byte_tensor(np.array([], dtype=object)) == ()
    assert pb_utils.serialize_byte_tensor(np.zeros(2)) is None


def test_lookups_by_name() -> None:
    """Tensors and properties are found by name, None stands for what is not there."""
    tensor = Tensor("a", np.zeros(1))
    request = InferenceRequest(model_name="m", requested_output_names=["x"], inputs=[tensor])
    config = {"input": [{"name": "a"}], "output": [{"name": "b"}], "model_transaction_policy": {"decoupled": True}}
    assert pb_utils.get_input_tensor_by_name(request, "a") is tensor
    assert pb_utils.get_input_tensor_by_name(request, "b") is None
    assert pb_utils.get_output_tensor_by_name(InferenceResponse([tensor]), "a") is tensor
    assert pb_utils.get_output_tensor_by_name(InferenceResponse(), "a") is None
    assert pb_utils.get_input_config_by_name(config, "a") == {"name": "a"}
    assert pb_utils.get_output_config_by_name(config, "a") is None
    assert pb_utils.get_input_config_by_name({}, "a") is None
    assert pb_utils.using_decoupled_model_transaction_policy(config)
    assert not pb_utils.using_decoupled_model_transaction_policy({})


def test_a_request_of_the_models_own() -> None:
    """Its accessors give what its constructor got."""
    request = InferenceRequest(
        model_name="m", requested_output_names=["x"], inputs=[], request_id="i", correlation_id="c", flags=1,
        timeout=5, parameters={"a": 1},
    )  # fmt: skip
    request.set_flags(2)
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == ("i", "c", 2, 5)
    assert (request.parameters(), request.requested_output_names(), request.inputs()) == ('{"a": 1}', {"x"}, [])
    assert not request.is_cancelled()
    with pytest.raises(TypeError, match="needs the arguments"):
        InferenceRequest(model_name="m")
    with pytest.raises(TritonModelException, match=r"^BLS is only supported during the 'execute' function\.$"):
        request.exec()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: InferenceResponse([1]),  # type: ignore[list-item]
        lambda: InferenceResponse([], error="x"),  # type: ignore[arg-type]
        lambda: InferenceResponse([], parameters=[1]),  # type: ignore[arg-type]
        lambda: InferenceResponse([], parameters={"a": [1]}),
        lambda: TritonError("x", 99),  # type: ignore[arg-type]
        lambda: pb_utils.Logger.log(3),  # type: ignore[arg-type]
        lambda: pb_utils.Logger.log("x", 99),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(attempt: Any) -> None:
    """They raise TypeError where they are made, not when the response is on its way."""
    with pytest.raises(TypeError):
        attempt()


WHERE = "auto-complete-config function for model 'm'"
COMPLETED = {"name": "m", "max_batch_size": 8, "input": [{"name": "A", "data_type": "TYPE_FP32", "dims": [4]}],
             "output": [], "sequence_batching": {}}  # fmt: skip


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (
            lambda c: c.add_input({"name": "A", "data_type": "TYPE_INT32", "dims": [4]}),
            (
                "unable to load model 'm', configuration expects datatype TYPE_FP32 for input 'A', "
                "model provides TYPE_INT32"
            ),
        ),
        (
            lambda c: c.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [5]}),
            "model 'm', tensor 'A': the model expects dims [5] but the model configuration specifies dims [4]",
        ),
        (
            lambda c: c.add_input({"name": "A", "x": 1}),
            f"input 'A' in {WHERE} contains property other than 'name', 'data_type', 'dims' and 'optional'.",
        ),
        (
            lambda c: c.add_output({"name": "A", "optional": True}),
            f"output 'A' in {WHERE} contains property other than 'name', 'data_type' and 'dims'.",
        ),
        (lambda c: c.add_input({"data_type": "TYPE_FP32"}), f"input in {WHERE} is missing 'name' property."),
        (
            lambda c: c.add_output({"name": "B", "data_type": "TYPE_FP32"}),
            f"output 'B' in {WHERE} is missing 'dims' property.",
        ),
        (
            lambda c: c.set_max_batch_size(4),
            f"configuration specified max_batch_size 8, but in {WHERE} specified max_batch_size 4",
        ),
        (
            lambda c: c.set_dynamic_batching(),
            (
                f"Configuration specified scheduling_choice as 'sequence_batching', but {WHERE} tries to set "
                "scheduling_choice as 'dynamic_batching'"
            ),
        ),
        (
            lambda c: c.set_model_transaction_policy({"x": 1}),
            f"model transaction property in {WHERE} contains property other than 'decoupled'.",
        ),
    ],
)
def test_auto_complete_contradictions(attempt: Any, text: str) -> None:
    """What contradicts the operator is refused word for word as by Triton."""
    with pytest.raises(ValueError, match="model 'm'") as caught:
        attempt(ModelConfig(json.dumps(COMPLETED)))
    assert str(caught.value) == text
