"""Configs and ONNX signatures: what is filled in, and what is refused with which text."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.backend.agree import check_config
from conch.backend.complete import complete_config, default_max_batch_size, needs_file
from conch.backend.onnx.signature import read_slots
from conch.backend.signature import Signature, Slot
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.error import Code, InferError
from support.onnx_models import ONNX_TYPES, add_sub, graph, identity, scaled, serve


def parse(text: str) -> ModelConfig:
    return text_format.Parse('name: "m" ' + text, ModelConfig())


def fp32(name: str, *shape: int) -> Slot:
    return Slot(name, dtype.FP32, shape)


def completed(signature: Signature, text: str = "", default: int = 4) -> ModelConfig:
    config = parse(text)
    complete_config(config, signature, default)
    return config


def refusal(signature: Signature, text: str) -> str:
    with pytest.raises(InferError) as caught:
        check_config(parse(text), signature)
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


BATCHING = Signature((fp32("x", -1, 3),), (fp32("y", -1, 2),))
FIXED = Signature((fp32("x", 1, 3),), (fp32("y", -1, 2),))


class TestComplete:
    def test_batching_model(self) -> None:
        """A model that can batch gets Triton's default size, a dynamic batcher, and dims without the batch."""
        assert completed(BATCHING) == parse(
            """max_batch_size: 4 dynamic_batching {}
            input { name: "x" data_type: TYPE_FP32 dims: 3 } output { name: "y" data_type: TYPE_FP32 dims: 2 }"""
        )

    def test_one_fixed_first_dimension(self) -> None:
        """One tensor whose first dimension is fixed is enough not to batch: shapes stay complete."""
        assert completed(FIXED) == parse(
            """input { name: "x" data_type: TYPE_FP32 dims: [ 1, 3 ] }
            output { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ] }"""
        )

    def test_batch_size_for_a_model_that_cannot(self) -> None:
        """max_batch_size beside a model that cannot batch is a conflict."""
        with pytest.raises(InferError) as caught:
            completed(FIXED, "max_batch_size: 8")
        assert caught.value.message == (
            "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"
        )
        assert "'x' has shape [1, 3]" in caught.value.hint

    @pytest.mark.parametrize(("default", "size", "batcher"), [("16", 16, True), ("1", 1, False), ("0", 0, False)])
    def test_default_max_batch_size(self, default: str, size: int, batcher: bool) -> None:
        """The setting gives the size; a dynamic batcher comes only above 1."""
        config = completed(BATCHING, "", default_max_batch_size("onnxruntime", {"default-max-batch-size": default}))
        assert config.max_batch_size == size
        assert config.HasField("dynamic_batching") is batcher

    @pytest.mark.parametrize("text", ["-1", "four", ""])
    def test_wrong_default_max_batch_size(self, text: str) -> None:
        """A default that is no whole number is refused; the hint is the backend's own flag."""
        with pytest.raises(InferError, match="default-max-batch-size") as caught:
            default_max_batch_size("pytorch", {"default-max-batch-size": text})
        assert caught.value.hint == "--backend-config=pytorch,default-max-batch-size=4"

    def test_operators_values_win(self) -> None:
        """What the config has stays as it is; only what is missing is added."""
        own = 'max_batch_size: 8 sequence_batching {} output { name: "z" data_type: TYPE_INT8 dims: 9 }'
        config = completed(BATCHING, own)
        assert config == parse(own + ' input { name: "x" data_type: TYPE_FP32 dims: 3 }')

    def test_scalars(self) -> None:
        """No dims left: clients send one element; of a batch the model sees just the batch dimension."""
        assert (
            completed(Signature((fp32("x", -1),), (fp32("y", -1),))).input[0]
            == parse('input { name: "x" data_type: TYPE_FP32 dims: 1 reshape {} }').input[0]
        )
        assert (
            completed(Signature((fp32("x"),), ())).input[0]
            == parse('input { name: "x" data_type: TYPE_FP32 dims: 1 }').input[0]
        )

    def test_complete_configs_need_no_file(self) -> None:
        """With inputs and outputs given, nothing is filled in: max_batch_size stays what it is."""
        assert needs_file(parse('input { name: "x" }'))
        assert not needs_file(parse('input { name: "x" } output { name: "y" }'))

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(list(ONNX_TYPES)), st.lists(st.sampled_from([-1, 1, 2, 224]), max_size=4)),
            min_size=2,
            max_size=5,
        ),
        st.integers(1, 4),
    )
    def test_a_completed_config_fits_its_model(
        self, tensors: list[tuple[dtype.DataType, list[int]]], inputs: int
    ) -> None:
        """Whatever the signature, the config made from it agrees with it."""
        slots = [Slot(f"t{n}", kind, tuple(shape)) for n, (kind, shape) in enumerate(tensors)]
        signature = Signature(tuple(slots[:inputs]), tuple(slots[inputs:]))
        config = completed(signature)
        check_config(config, signature)
        assert (config.max_batch_size > 0) == signature.batchable
        assert all(len(entry.dims) > 0 for entry in config.input)


class TestCheck:
    X = 'input { name: "x" data_type: TYPE_FP32 dims: 3 }'
    Y = 'output { name: "y" data_type: TYPE_FP32 dims: 2 }'
    SIZE = "max_batch_size: 4 "

    def test_sizes_left_open_take_any_size(self) -> None:
        """A config may narrow a dimension that the model leaves open, and need not name every output."""
        signature = Signature((fp32("x", -1, -1),), (fp32("y", -1, 2), fp32("z", 1)))
        check_config(parse(self.SIZE + self.X + self.Y), signature)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (Y, "unable to load model 'm', configuration expects 0 inputs, model provides 1"),
            (X.replace('"x"', '"q"') + Y, "unexpected inference input 'q', allowed inputs are: x"),
            (X + Y.replace('"y"', '"q"'), "unexpected inference output 'q', allowed outputs are: y"),
            (
                X.replace("FP32", "STRING") + Y,
                (
                    "unable to load model 'm', configuration expects datatype TYPE_STRING for input 'x', "
                    "model provides TYPE_FP32"
                ),
            ),
            (
                X + Y.replace("FP32", "INT8"),
                (
                    "unable to load model 'm', configuration expects datatype TYPE_INT8 for output 'y', "
                    "model provides TYPE_FP32"
                ),
            ),
            (
                X.replace("dims: 3", "dims: [ 3, 1 ]") + Y,
                (
                    "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
                    "specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
                    "explicit tensor shape, making complete shape [-1,3,1])"
                ),
            ),
            (
                X.replace("dims: 3", "dims: -1") + Y,
                (
                    "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
                    "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
                    "explicit tensor shape, making complete shape [-1,-1])"
                ),
            ),
            (
                X.replace("dims: 3", "dims: 3 optional: true") + Y,
                "unable to load model 'm', configuration expects 0 inputs, model provides 1",
            ),
        ],
    )
    def test_disagreements_of_a_batching_model(self, text: str, message: str) -> None:
        """Each disagreement has Triton's text."""
        assert refusal(BATCHING, self.SIZE + text) == message

    def test_disagreement_without_batching(self) -> None:
        """Without batching the shapes are compared whole."""
        assert refusal(BATCHING, self.X + self.Y) == (
            "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
            "specifies 1 dimensions (shape [3])"
        )

    def test_batching_needs_an_open_first_dimension(self) -> None:
        """max_batch_size beside a fixed first dimension is refused."""
        assert refusal(FIXED, self.SIZE + self.X + self.Y).endswith(
            "at least 1 dimension and the first dimension must be -1; but shape expected by the model is [1,3]"
        )

    def test_scalar_dims(self) -> None:
        """A scalar may only be given dims of 1."""
        message = refusal(Signature((fp32("x"),), ()), self.X)
        assert message.startswith("unable to load model 'm', scalar tensor 'x', should only provide 1 in the model")

    def test_optional_input_while_batching(self) -> None:
        """Optional inputs and batching exclude each other (Triton)."""
        signature = Signature(BATCHING.inputs, BATCHING.outputs, (fp32("w", 3),))
        extra = ' input { name: "w" data_type: TYPE_FP32 dims: 3 optional: true }'
        assert refusal(signature, self.SIZE + self.X + extra + self.Y) == (
            "unable to load model 'm', optional input 'w' is not supported for models that support batching"
        )

    RAGGED = 'input { name: "x" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }'
    COUNTS = 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_INT32 source_input: "x" }'
    SCATTERED = 'batch_output { target_name: "y" source_input: "x" }'

    def test_ragged_batching(self) -> None:
        """Ragged inputs are one-dimensional in the model; batch inputs count as inputs; scattered outputs are free."""
        signature = Signature((fp32("x", -1), Slot("n", dtype.INT32, (-1,))), (fp32("y", -1),))
        output = 'output { name: "y" data_type: TYPE_FP32 dims: [ -1, 5 ] }'
        check_config(parse(self.SIZE + self.RAGGED + self.COUNTS + self.SCATTERED + output), signature)

    @pytest.mark.parametrize(
        ("signature", "text", "message"),
        [
            (
                Signature((fp32("x", -1, -1),), (fp32("y", -1, 2),)),
                RAGGED,
                (
                    "unable to load model 'm', configuration expects model provides input with shape [-1]  for ragged "
                    "input 'x', model provides [-1,-1]"
                ),
            ),
            (
                Signature((fp32("x", -1),), (fp32("y", -1, 2),)),
                RAGGED + COUNTS,
                "unable to load model 'm', configuration expects 2 inputs, model provides 1",
            ),
            (
                Signature((fp32("x", -1), fp32("k", -1)), (fp32("y", -1, 2),)),
                RAGGED + COUNTS,
                "unexpected inference input 'n', allowed inputs are: k, x",
            ),
            (
                Signature((fp32("x", -1), fp32("n", -1)), (fp32("y", -1, 2),)),
                RAGGED + COUNTS,
                (
                    "unable to load model 'm', configuration expects datatype TYPE_INT32 for input 'n', "
                    "model provides TYPE_FP32"
                ),
            ),
        ],
    )
    def test_ragged_disagreements(self, signature: Signature, text: str, message: str) -> None:
        """What does not agree has Triton's text."""
        assert refusal(signature, self.SIZE + text + self.Y) == message

    def test_optional_ragged_input(self) -> None:
        """An input that can be left out cannot be ragged."""
        signature = Signature((fp32("x", -1),), (fp32("y", -1, 2),), (fp32("w", -1),))
        extra = ' input { name: "w" data_type: TYPE_FP32 dims: -1 optional: true allow_ragged_batch: true }'
        x = 'input { name: "x" data_type: TYPE_FP32 dims: -1 }'
        y = 'output { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ] }'
        assert refusal(signature, x + extra + y).endswith("which is not supported for optional input")


class TestSignature:
    class Argument:
        def __init__(self, type: str) -> None:
            self.name, self.type, self.shape = "p", type, ["n", None, 3, -1]

    def test_open_dimensions(self) -> None:
        """Named and unknown dimensions are of any size."""
        assert read_slots("m", [self.Argument("tensor(float)")]) == (fp32("p", -1, -1, 3, -1),)

    @pytest.mark.parametrize(
        ("type", "message"),
        [
            (
                "seq(map(int64,tensor(float)))",
                "Unsupported ONNX Type 'ONNX_TYPE_SEQUENCE' for I/O 'p', expected 'ONNX_TYPE_TENSOR'.",
            ),
            (
                "tensor(complex64)",
                (
                    "unsupported datatype tensor(complex64) for I/O 'p' of model 'm': "
                    "the inference protocol has no such type"
                ),
            ),
        ],
    )
    def test_other_types(self, type: str, message: str) -> None:
        """What the protocol cannot carry is refused, with a hint."""
        with pytest.raises(InferError) as caught:
            read_slots("m", [self.Argument(type)])
        assert caught.value.message == message
        assert caught.value.code is Code.UNSUPPORTED
        assert caught.value.hint


class TestFiles:
    def test_from_the_file(self, tmp_path: Path) -> None:
        """A bare model.onnx gives a whole config."""
        config = serve(tmp_path, add_sub()).config
        assert config.max_batch_size == 4
        assert [entry.name for entry in config.input] == ["a", "b"]
        assert [entry.name for entry in config.output] == ["sum", "difference"]

    def test_overridable_initializers_are_not_inputs(self, tmp_path: Path) -> None:
        """An input with an initializer is left out: clients need not send it."""
        assert [entry.name for entry in serve(tmp_path, scaled()).config.input] == ["x"]

    def test_optional_must_have_an_initializer(self, tmp_path: Path) -> None:
        """A required model input cannot be made optional beside an initializer made mandatory."""
        text = """input { name: "x" data_type: TYPE_FP32 dims: 2 optional: true }
            input { name: "factor" data_type: TYPE_FP32 dims: 2 } output { name: "y" data_type: TYPE_FP32 dims: 2 }"""
        with pytest.raises(InferError, match="doesn't support optional input"):
            serve(tmp_path, scaled(), parse(text))

    def test_strings_and_bf16_in_one_model(self, tmp_path: Path) -> None:
        """The one mixture of types that the runtime's Python interface cannot carry is refused at load."""
        nodes = [*identity().graph.node, *identity().graph.node]
        nodes[1].input[0], nodes[1].output[0] = "s", "t"
        text, number = (dtype.BYTES, ["n"]), (dtype.BF16, ["n"])
        with pytest.raises(InferError, match="TYPE_BF16 and TYPE_STRING"):
            serve(tmp_path, graph(nodes, {"x": number, "s": text}, {"y": number, "t": text}))
