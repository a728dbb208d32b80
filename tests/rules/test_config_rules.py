"""Every rule of model configs: what is refused, in which words."""

from __future__ import annotations

import pytest

from conch.config.rules import IO_RULES, MODEL_RULES, validate
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError
from support.configs import TENSORS, ensemble, model, step


def refusal(config: ModelConfig, *, check_io: bool = True) -> InferError:
    with pytest.raises(InferError) as caught:
        validate(config, check_io=check_io)
    return caught.value


MODELS = {
    "max_batch_size: -1": "'max_batch_size' must be non-negative value for m",
    'platform: "onnxruntime_onnx"': "unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, python",
    'platform: "ensemble"': "Ensemble model 'm' must have platform type 'ensemble' and empty backend type",
    "ensemble_scheduling {}": "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble",
    "response_cache { enable: true } sequence_batching {}":
        "Response Cache does not currently support model m with sequence batching scheduler. Please disable the "
        "response cache.",
    "response_cache { enable: true } model_transaction_policy { decoupled: true }":
        "Response Cache does not currently support model m with 'decoupled' transaction policy. Please disable the "
        "response cache.",
    'default_model_filename: "../../other/1/model.onnx"':
        "default_model_filename '../../other/1/model.onnx' of model 'm' is outside model directory",
    'default_model_filename: "/etc/passwd"':
        "default_model_filename '/etc/passwd' of model 'm' is outside model directory",
    'default_model_filename: "a/../../.."':
        "default_model_filename 'a/../../..' of model 'm' is outside model directory",
    'default_model_filename: ".."': "default_model_filename '..' of model 'm' is outside model directory",
    'default_model_filename: "a\\0b"': "default_model_filename 'a\\x00b' of model 'm' is outside model directory",
    "model_metrics { metric_control {} }": "metric control must specify 'metric_identifier'",
    "model_metrics { metric_control { metric_identifier {} } }": "metric identifier must specify non-empty 'family'",
    'model_metrics { metric_control { metric_identifier { family: "f" } } }':
        "metric control must specify 'histogram_options'",
    'model_metrics { metric_control { metric_identifier { family: "f" } histogram_options {} } }':
        "histogram options must specify non-empty 'buckets'",
    **{
        "model_metrics { metric_control { metric_identifier { family: 'nv_inference_first_response_histogram_ms' } "
        f"histogram_options {{ buckets: [ {buckets} ] }} }} }}":
            "buckets of metric family 'nv_inference_first_response_histogram_ms' of model 'm' must be finite numbers "
            f"in ascending order, got: {buckets}"
        for buckets in ("1, 8, 4", "1, 1", "nan", "1, inf", "-inf, 0.5")
    },
}  # fmt: skip

BATCHING = {
    "preferred_batch_size: [ 0 ]": "dynamic batching preferred size must be positive for m",
    "preferred_batch_size: [ 2, 5 ]": "dynamic batching preferred size must be <= max batch size for m",
    "priority_levels: 2": "default priority level must be in range [1, 2] for m",
    "priority_levels: 2 default_priority_level: 3": "default priority level must be in range [1, 2] for m",
    "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value {} }":
        "priority queue policy must have priority level in range [1, 2] for m",
    "preserve_ordering: true priority_levels: 2 default_priority_level: 1":
        "Only one priority level is allowed when 'preserve_ordering' is true for m",
    "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }":
        "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
    "preserve_ordering: true priority_queue_policy { key: 1 value { timeout_action: DELAY "
    "default_timeout_microseconds: 1 } }":
        "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m",
}  # fmt: skip

START = "kind: CONTROL_SEQUENCE_START"
CORRID = "kind: CONTROL_SEQUENCE_CORRID"
THREE = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"
STATE = 'input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: [ 1 ]'
INITIAL = 'name: "z" data_type: TYPE_FP32'

SEQUENCES = {
    f"control_input {{ control {{ {START} int32_false_true: [ 0, 1 ] }} }}":
        "sequence batching control tensor must have a name for m",
    f'control_input {{ name: "S" control {{ {START} int32_false_true: [ 0, 1 ] }} }} control_input {{ name: "S" }}':
        "sequence batching control tensor 'S' is specified for multiple control kinds for m",
    f'control_input {{ name: "S" control {{ {START} int32_false_true: [ 0, 1 ] }} }} '
    f'control_input {{ name: "T" control {{ {START} int32_false_true: [ 0, 1 ] }} }}':
        "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
    f'control_input {{ name: "S" control {{ {START} }} }}':
        f"sequence batching must specify either {THREE} for CONTROL_SEQUENCE_START for m",
    f'control_input {{ name: "S" control {{ {START} int32_false_true: [ 0, 1 ] bool_false_true: [ false, true ] }} }}':
        "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' "
        "for CONTROL_SEQUENCE_START for m",
    f'control_input {{ name: "S" control {{ {START} fp32_false_true: [ 0 ] }} }}':
        "sequence batching control 'fp32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_START for m",
    f'control_input {{ name: "S" control {{ {CORRID} int32_false_true: [ 0, 1 ] }} }}':
        f"sequence batching must not specify either {THREE} for CONTROL_SEQUENCE_CORRID for m",
    f'control_input {{ name: "S" control {{ {CORRID} data_type: TYPE_FP32 }} }}':
        "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. Allowed data types are TYPE_UINT64, "
        "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
    "oldest { preferred_batch_size: [ 0 ] }": "sequence batching preferred batch size must be positive for m",
    "oldest { preferred_batch_size: [ 5 ] }": "sequence batching preferred batch size must be <= max batch size for m",
    "direct { minimum_slot_utilization: 1.5 }":
        "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
    "direct { minimum_slot_utilization: nan }":
        "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
    f"state {{ {STATE} initial_state [ {{}}, {{}} ] }}":
        "initial_state field for state input 'i' must contain exactly one or zero element. Found '2' elements.",
    f'state {{ {STATE} initial_state {{ name: "z" data_type: TYPE_INT32 }} }}':
        "The data type used for 'initial_state' field of state 'i' does not match the state data type.",
    f"state {{ {STATE} initial_state {{ data_type: TYPE_FP32 }} }}":
        "Field 'name' must be set when using initial_state for state input 'i'.",
    f"state {{ {STATE} initial_state {{ {INITIAL} dims: [ -1 ] }} }}":
        "'initial_state' field for state input name 'i' contains variable dimensions.",
    f"state {{ {STATE} initial_state {{ {INITIAL} dims: [ 2 ] }} }}":
        "'initial_state' dim for input name 'i' doesn't match 'state' dim description. 2 != 1",
    f"state {{ {STATE} initial_state {{ {INITIAL} dims: [ 1 ] }} }}":
        "initial_state setting expects state'i' to have state_data set",
    'state { input_name: "i" data_type: TYPE_FP32 dims: [ 1 ] }':
        "sequence batching state 'i' must specify 'output_name' for m",
    'state { input_name: "i" output_name: "o" data_type: TYPE_FP32 }':
        "sequence batching state 'i' must specify 'dims' for m",
    f"state {{ {STATE} }} state {{ {STATE} }}":
        "sequence batching tensor 'i' is specified more than once among the inputs, controls and states of m",
    f'state {{ {STATE} }} state {{ input_name: "j" output_name: "o" data_type: TYPE_FP32 dims: [ 1 ] }}':
        "sequence batching state output 'o' is specified more than once for m",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MODELS.items())
def test_models(text: str, message: str) -> None:
    """Rules of the model as a whole."""
    assert refusal(model(text), check_io=False).message == message


@pytest.mark.parametrize(("text", "message"), BATCHING.items())
def test_dynamic_batching(text: str, message: str) -> None:
    """Rules of dynamic batching, for a model of batches up to 4."""
    error = refusal(model(f"max_batch_size: 4 dynamic_batching {{ {text} }}"), check_io=False)
    assert error.message == message
    assert error.hint


@pytest.mark.parametrize(("text", "message"), SEQUENCES.items())
def test_sequence_batching(text: str, message: str) -> None:
    """Rules of sequence batching, for a model of batches up to 4."""
    error = refusal(model(f"max_batch_size: 4 sequence_batching {{ {text} }}"), check_io=False)
    assert error.message == message
    assert error.hint


DIM = "must be integer >= 1, or -1 to indicate a variable-size dimension for m"
TYPED = 'name: "x" data_type: TYPE_FP32'

INPUTS = {
    "data_type: TYPE_FP32 dims: [ 1 ]": "model input must specify 'name' for m",
    'name: "x" dims: [ 1 ]': "model input 'x' must specify 'data_type' for m",
    TYPED: "model input 'x' must specify 'dims' for m",
    f"{TYPED} dims: [ 0 ]": f"model input 'x' dimension {DIM}",
    f"{TYPED} dims: [ 1, -2 ]": f"model input 'x' dimension {DIM}",
    f"{TYPED} dims: [ 4 ] format: FORMAT_NCHW": "model input NHWC/NCHW require 3 dims for m",
    f"{TYPED} dims: [ 4 ] is_shape_tensor: true": "shape tensors are only supported for TensorRT platform for m",
    f"{TYPED} dims: [ 4 ] is_non_linear_format_io: true":
        "Non-linear IO format is only supported for the TensorRT platform for m",
    f"{TYPED} dims: [ 4 ] reshape {{ shape: [ 0 ] }}": f"model input 'x' reshape dimensions {DIM}",
    f"{TYPED} dims: [ 4 ] reshape {{ shape: [ 5 ] }}": "model input 'x' has different size for dims and reshape for m",
    f"{TYPED} dims: [ 4 ] reshape {{ shape: [ -1 ] }}": "model input 'x' has different size for dims and reshape for m",
    f"{TYPED} dims: [ 4, -1 ] reshape {{ shape: [ -1, -1 ] }}":
        "model input 'x' has different number of variable-size dimensions for dims and reshape for m",
    f"{TYPED} dims: [ 4, -1 ] reshape {{ shape: [ -1, 4 ] }}":
        "model input 'x' has different size for dims and reshape for m",
    f"{TYPED} dims: [ 1 ] reshape {{}}":
        "model input 'x' cannot have empty reshape for non-batching model as scalar tensors are not supported for m",
    f"{TYPED} dims: [ 1 ] }} input {{ {TYPED} dims: [ 1 ]": "model input 'x' is specified more than once for m",
}  # fmt: skip

SCATTER = 'batch_output { target_name: "y"'
COUNT = 'batch_input { target_name: "t"'
MADE = {
    f"{COUNT} data_type: TYPE_FP32 }}": "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0 for m",
    f'{COUNT} data_type: TYPE_INT64 source_input: "x" }}':
        "batch input data type must be TYPE_INT32 or TYPE_FP32 for m",
    f'{COUNT} data_type: TYPE_FP32 source_input: "q" }}': "unknown source input name 'q' for m",
    f'{SCATTER} source_input: [ "x", "x" ] }}':
        "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 2 for m",
    f'{SCATTER} source_input: "q" }}': "unknown source input name 'q' for m",
    'batch_output { target_name: "q" source_input: "x" }': "unknown target output name 'q' for m",
    f'{SCATTER} target_name: "y" source_input: "x" }}': "target output name 'y' can only be specified once for m",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), INPUTS.items())
def test_inputs(text: str, message: str) -> None:
    """Rules of inputs; they wait until the backend has filled in what it knows."""
    config = model(tensors=f"input {{ {text} }}")
    assert refusal(config).message == message
    validate(config, check_io=False)


@pytest.mark.parametrize(("text", "message"), MADE.items())
def test_batch_tensors(text: str, message: str) -> None:
    """Rules of the tensors made from batches."""
    assert refusal(model(text)).message == message


def test_outputs_have_the_same_rules() -> None:
    """An output's errors say output."""
    config = model(tensors='output { name: "y" data_type: TYPE_FP32 }')
    assert refusal(config).message == "model output 'y' must specify 'dims' for m"


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "..", "a\\000b"])
def test_labels_outside(path: str) -> None:
    """A label file lies in the model's folder."""
    config = model(tensors=TENSORS.replace('"y"', f'"y" label_filename: "{path}"'))
    error = refusal(config)
    shown = path.replace("\\000", "\0")
    assert error.code is Code.UNSUPPORTED
    assert error.message == f"label file path '{shown}' for output 'y' in model 'm' is outside model directory"


@pytest.mark.parametrize("path", ["labels.txt", "a/../b", "..labels"])
def test_labels_inside(path: str) -> None:
    """Paths that stay in the model's folder are fine."""
    validate(model(tensors=TENSORS.replace('"y"', f'"y" label_filename: "{path}"')), check_io=True)


A = step({"x": "x"}, {"y": "y"})
ENSEMBLES = {
    "": "must specify 'step' for ensemble 'm'",
    step({"x": "x"}, {"y": "y"}, name=""): "must specify 'model_name' in step 0 of ensemble 'm'",
    f"{A}, {step({}, {'y': 'z'})}": "must specify 'input_map' in step 1 of ensemble 'm'",
    step({"x": "x"}, {}): "must specify 'output_map' in step 0 of ensemble 'm'",
    f"{A}, {A}": "ensemble tensor 'y' can appear in an output map only once for ensemble 'm' step 1",
    step({"x": "q"}, {"y": "y"}): "ensemble input 'x' for ensemble m' is not used",
    step({"x": "x"}, {"y": "q"}): "ensemble output 'y' for ensemble m' is not used",
    f"{A}, {step({'x': 'x'}, {'y': 'z'})}": "ensemble tensor 'z' is unused in ensemble 'm'",
    f"{step({'x': 'x'}, {'y': 'z'})}, {step({'x': 'z', 'w': 'w'}, {'y': 'y'})}":
        "output 'y' for ensemble 'm' is not written: at least one of its depending tensors, 'w', is not connected",
    f"{step({'x': 'x', 'w': 'y'}, {'y': 'z'})}, {step({'x': 'z'}, {'y': 'y'})}":
        "output 'y' for ensemble 'm' is not written: at least one of its depending tensors, 'z', is not connected",
}  # fmt: skip


@pytest.mark.parametrize(("steps", "message"), ENSEMBLES.items())
def test_ensembles(steps: str, message: str) -> None:
    """Rules of the data flow of ensembles."""
    assert refusal(ensemble(steps), check_io=False).message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instance_group {}", "instance group should not be specified for ensemble 'm'"),
        ("optimization {}", "optimization should not be specified for ensemble 'm'"),
        ("model_warmup {}", "model_warmup can not be specified for ensemble 'm'"),
    ],
)
def test_ensembles_run_nothing_themselves(text: str, message: str) -> None:
    """Blocks about execution belong to the models of the steps."""
    assert refusal(ensemble(A, text=text)).message == message


def test_ensemble_needs_steps() -> None:
    """The platform alone makes no ensemble."""
    message = "ensemble scheduling must be set for ensemble m whose platform is ensemble"
    assert refusal(ModelConfig(name="m", platform="ensemble")).message == message


def test_name_and_backend_are_needed() -> None:
    """A config without a name or a backend is refused, whatever else it says."""
    assert refusal(ModelConfig()).message == "model configuration must specify 'name'"
    assert refusal(ModelConfig(name="m", platform="foo")).message == "unexpected platform type 'foo' for m"


@pytest.mark.parametrize(
    "config",
    [
        model(),
        model('platform: "foo"'),
        model('platform: "onnxruntime_onnx"', backend="onnxruntime"),
        model("max_batch_size: 4 dynamic_batching { priority_queue_policy { key: 3 value {} } }"),
        model("max_batch_size: 4 sequence_batching { direct { minimum_slot_utilization: 1 } }"),
        model('max_batch_size: 1 input { name: "s" data_type: TYPE_FP32 dims: [ 1 ] reshape {} }'),
        model('input { name: "s" data_type: TYPE_FP32 dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] } }'),
        ensemble(f"{step({'x': 'x'}, {'y': 'z'})}, {step({'x': 'z'}, {'y': 'y'})}"),
        ensemble(f"{step({'x': 'z'}, {'y': 'y'})}, {step({'x': 'x'}, {'y': 'z'})}"),
        model('default_model_filename: "../shared.onnx"'),
        model('default_model_filename: "..data/model.onnx"'),
    ],
)
def test_sound_configs(config: ModelConfig) -> None:
    """Sound configs pass every rule."""
    validate(config, check_io=True)


def test_rules_are_named_once() -> None:
    """The table lists no rule twice."""
    rules = [*MODEL_RULES, *IO_RULES]
    assert len(set(rules)) == len(rules)
