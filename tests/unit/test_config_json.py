"""Model configs as JSON: the answers of the config calls, and configs in load requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conch.config.json import parse_json, to_json
from conch.config.pbtxt import parse_text
from conch.types.error import Code, InferError
from support.configs import model


def as_object(text: str) -> Any:
    return json.loads(to_json(parse_text(text, "a")))


def test_defaults_are_printed() -> None:
    """Scalars and lists are always there, unset messages never."""
    assert json.loads(to_json(model())) == {
        "name": "m", "platform": "", "backend": "python", "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 0,
        "input": [{
            "name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [4], "is_shape_tensor": False,
            "allow_ragged_batch": False, "optional": False, "is_non_linear_format_io": False,
        }],
        "output": [{
            "name": "y", "data_type": "TYPE_FP32", "dims": [4], "label_filename": "", "is_shape_tensor": False,
            "is_non_linear_format_io": False,
        }],
        "batch_input": [], "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT", "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True}, "gather_kernel_buffer_threshold": 0, "eager_batching": False,
        },
        "instance_group": [], "default_model_filename": "", "cc_model_filenames": {}, "metric_tags": {},
        "parameters": {}, "model_warmup": [],
    }  # fmt: skip


def test_order_is_that_of_the_messages() -> None:
    """Fields stand in the order in which Triton writes them, without spaces between."""
    start = b'{"name":"m","platform":"","backend":"python","runtime":"","version_policy":{"latest":{"num_versions":1}},'
    assert to_json(model()).startswith(start + b'"max_batch_size":0,"input":[{"name":"x","data_type":"TYPE_FP32",')


def test_64_bit_integers() -> None:
    """64-bit integers are numbers in the fields that Triton lists, strings elsewhere."""
    config = as_object("""
        input { dims: [ -1 ] reshape { shape: [ 1 ] } }
        version_policy { specific { versions: [ 1, 3 ] } }
        dynamic_batching {
            max_queue_delay_microseconds: 5 priority_levels: 2 default_priority_level: 1
            default_queue_policy { default_timeout_microseconds: 7 }
            priority_queue_policy { key: 2 value { default_timeout_microseconds: 9 } }
        }
        model_warmup { inputs { key: "x" value { dims: [ 4 ] zero_data: true } } }
        instance_group { secondary_devices { device_id: 3 } }
        optimization { cuda { graph_spec { input { key: "x" value { dim: [ 6 ] } } } } }
    """)
    assert config["input"][0]["dims"] == [-1]
    assert config["input"][0]["reshape"] == {"shape": [1]}
    assert config["version_policy"] == {"specific": {"versions": [1, 3]}}
    batching = config["dynamic_batching"]
    assert (batching["max_queue_delay_microseconds"], batching["priority_levels"]) == (5, 2)
    assert batching["default_queue_policy"]["default_timeout_microseconds"] == 7
    assert batching["priority_queue_policy"]["2"]["default_timeout_microseconds"] == 9
    assert config["model_warmup"][0]["inputs"]["x"] == {"data_type": "TYPE_INVALID", "dims": [4], "zero_data": True}
    assert config["instance_group"][0]["secondary_devices"][0]["device_id"] == "3"
    assert config["optimization"]["cuda"]["graph_spec"][0]["input"]["x"]["dim"] == ["6"]


def test_64_bit_integers_of_sequences_and_ensembles() -> None:
    """The same rule holds in sequence batching and in ensembles."""
    sequences = as_object("""sequence_batching {
        oldest { max_queue_delay_microseconds: 5 } max_sequence_idle_microseconds: 6
        state { dims: [ 7 ] initial_state { dims: [ 8 ] data_file: "f" } }
    }""")["sequence_batching"]
    assert sequences["oldest"]["max_queue_delay_microseconds"] == 5
    assert sequences["max_sequence_idle_microseconds"] == 6
    assert sequences["state"][0]["dims"] == [7]
    assert sequences["state"][0]["initial_state"][0]["dims"] == ["8"]
    assert "direct" not in sequences
    assert "zero_data" not in sequences["state"][0]["initial_state"][0]
    ensemble = as_object("ensemble_scheduling { step { model_version: -1 } }")["ensemble_scheduling"]
    assert ensemble["step"][0]["model_version"] == -1


@pytest.mark.parametrize(
    ("text", "printed"), [("0.3", b"0.3"), ("1", b"1"), ("nan", b'"NaN"'), ("inf", b'"Infinity"'), ("0.1", b"0.1")]
)
def test_floats_are_short(text: str, printed: bytes) -> None:
    """Floats are printed as briefly as reads back equal; what JSON cannot say becomes a string."""
    config = parse_text(f"sequence_batching {{ direct {{ minimum_slot_utilization: {text} }} }}", "a")
    assert b'"minimum_slot_utilization":' + printed + b"}" in to_json(config)


def test_reads_what_it_writes() -> None:
    """A config that the server printed can be sent back to it."""
    config = model("dynamic_batching { max_queue_delay_microseconds: 100 } parameters { key: 'a' value {} }")
    assert parse_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('{"max_batch_size": 4}', "max_batch_size: 4"),
        ('{"maxBatchSize": "4"}', "max_batch_size: 4"),
        ('{"max_batch_size": 4.0}', "max_batch_size: 4"),
        ('{"input": [{"name": "x", "dataType": "type_fp32", "dims": ["1", -1]}]}',
         'input { name: "x" data_type: TYPE_FP32 dims: [ 1, -1 ] }'),
        ('{"input": [{"data_type": 11}]}', "input { data_type: TYPE_FP32 }"),
        ('{"instance_group": [{"kind": "kind_cpu"}]}', "instance_group { kind: KIND_CPU }"),
        ('{"dynamic_batching": {}, "name": null}', "dynamic_batching {}"),
        ('{"dynamicBatching": {"priorityQueuePolicy": {"3": {}}}}',
         "dynamic_batching { priority_queue_policy { key: 3 value {} } }"),
        ('{"parameters": {"a": {"string_value": "b"}}}', 'parameters { key: "a" value { string_value: "b" } }'),
        ('{"metric_tags": {"a": "b"}}', 'metric_tags { key: "a" value: "b" }'),
        ("{}", ""),
    ],
)  # fmt: skip
def test_override_spellings(text: str, same: str) -> None:
    """Enums in any case, both spellings of fields, 64-bit integers as numbers or strings."""
    assert parse_json(text) == parse_text(same, "a")


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        ("{", "not JSON: ", "one JSON object"),
        ("[]", "the config: expected an object, got a list", ""),
        ("null", "the config: expected an object, got null", ""),
        ('{"max_batch": 1}', "no such field: 'max_batch'", "max_batch_size"),
        ('{"input": [{"dim": 1}]}', "no such field: 'input[0].dim'", "did you mean 'dims'?"),
        ('{"max_batch_size": "x"}', "max_batch_size: expected a whole number, got 'x'", ""),
        ('{"max_batch_size": 1.5}', "max_batch_size: expected a whole number, got 1.5", ""),
        ('{"max_batch_size": true}', "max_batch_size: expected a number, got a boolean", ""),
        ('{"max_batch_size": 4000000000}', "max_batch_size: ", ""),
        ('{"name": 5}', "name: expected a string, got a number", "in quotes"),
        ('{"input": {"name": "x"}}', "input: expected a list, got an object", "[ ... ]"),
        ('{"input": [null]}', "input[0]: expected an object, got null", ""),
        ('{"input": [{"data_type": "FP32"}]}', "unknown value 'FP32' for DataType", "did you mean 'TYPE_FP32'?"),
        ('{"input": [{"data_type": 99}]}', "unknown value 99 for DataType", "use one of"),
        ('{"input": [{"optional": 1}]}', "input[0].optional: expected true or false, got a number", ""),
        ('{"dynamic_batching": {}, "sequence_batching": {}}', "cannot both be set", "keep one"),
        ('{"max_batch_size": 1, "maxBatchSize": 2}', "cannot both be set", "keep one"),
        ('{"parameters": []}', "parameters: expected an object, got a list", ""),
        ('{"dynamic_batching": {"priority_queue_policy": {"x": {}}}}', "expected a whole number, got 'x'", ""),
        ('{"dynamic_batching": {"priority_queue_policy": {"-1": {}}}}', "priority_queue_policy['-1']: ", ""),
        ("[" * 100_000, "not JSON: ", ""),
    ],
)
def test_override_mistakes(text: str, found: str, hint: str) -> None:
    """A config that cannot be read is refused with the path of the field at fault."""
    with pytest.raises(InferError) as caught:
        parse_json(text)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.message.startswith("Invalid config override: ")
    assert found in caught.value.message
    assert hint in caught.value.hint
