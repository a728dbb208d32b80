"""config.pbtxt: what is read, and what is said about what cannot be read."""

from __future__ import annotations

import pytest

from conch.config.pbtxt import format_text, parse_text
from conch.types.error import Code, InferError
from support.configs import model

FULL = """
# A model as Triton's documentation shows it.
name: "m"  backend: "onnxruntime"  max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] label_filename: "labels.txt" } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
parameters: { key: "intra_op_thread_count" value: { string_value: "1" } }
"""


def refusal(text: str | bytes) -> InferError:
    with pytest.raises(InferError) as caught:
        parse_text(text, "/m/config.pbtxt")
    assert caught.value.code is Code.INVALID_ARG
    return caught.value


def test_documented_example() -> None:
    """The example of Triton's documentation is read whole."""
    config = parse_text(FULL, "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("m", "onnxruntime", 8)
    assert list(config.input[0].dims) == [3, 224, 224]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.parameters["intra_op_thread_count"].string_value == "1"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("dynamic_batching: {}", "dynamic_batching {}"),
        ("dynamic_batching <>", "dynamic_batching {}"),
        ("input { name: 'a' } input { name: 'b' }", "input [ { name: 'a' }, { name: 'b' } ]"),
        ("name: 'a', platform: 'b'; backend: 'c'", "name: 'a' platform: 'b' backend: 'c'"),
        ("name: 'a' \"b\" # comment\n 'c'", "name: 'abc'"),
        ("input { data_type: 11 }", "input { data_type: TYPE_FP32 }"),
        ("input { dims: 1 dims: 2 }", "input { dims: [ 1, 2 ] }"),
        ("input { dims: [] }", "input {}"),
        ("\ufeffname: 'a'\r\n", "name: 'a'"),
        (b"name: '\xc3\xa9'", "name: '\u00e9'"),
    ],
)
def test_traits_of_the_format(text: str | bytes, same: str) -> None:
    """Every way of writing that protobuf's text format allows means the same."""
    assert parse_text(text, "a") == parse_text(same, "b")


@pytest.mark.parametrize(
    ("text", "place", "found", "hint"),
    [
        ('name: "m"\n  max_batch: 4', "2:3", "unknown field 'max_batch' in ModelConfig", "'max_batch_size'"),
        ("input { dim: [1] }", "1:9", "unknown field 'dim' in ModelInput", "did you mean 'dims'?"),
        ("preferred_batch_size: 4", "1:1", "unknown field", "it belongs into dynamic_batching"),
        ("input { max_batch_size: 4 }", "1:9", "unknown field", "it belongs to the top level"),
        ("zzz: 4", "1:1", "unknown field", "ModelConfig has: name, platform"),
        ("input { data_type: FP32 }", "1:20", "unknown value FP32 for DataType", "did you mean 'TYPE_FP32'?"),
        ("instance_group { kind: CPU }", "1:24", "unknown value CPU for Kind", "did you mean 'KIND_CPU'?"),
        ("input { dims: [ 1, ] }", "1:20", "a comma before ']'", "remove the comma"),
        ("input [ { name: 'a' }, ]", "1:24", "a comma before ']'", "remove the comma"),
        ("input [ { name: 'a' } { name: 'b' } ]", "1:23", "expected ',' or ']', found '{'", "commas"),
        ("max_batch_size: 1.5", "1:17", "expected a whole number, found '1.5'", "whole number"),
        ("max_batch_size: '8'", "1:17", "expected a whole number", "without quotes"),
        ("max_batch_size: 3000000000", "1:17", "value out of range: '3000000000'", "smaller range"),
        ("name: m", "1:7", "expected a text in quotes, found 'm'", "in quotes"),
        ('name: "m', "1:7", "closing quote is missing", "close the quote"),
        ('name "m"', "1:6", "expected ':', found '\"m\"'", "colon"),
        ("name:", "1:6", "expected a text in quotes, found the end of the line", "in quotes"),
        ("input { optional: yes }", "1:19", "expected true or false, found 'yes'", "true or false"),
        ("dynamic_batching: true", "1:19", "expected '{', found 'true'", "write dynamic_batching { ... }"),
        ("parameters { key: 'a' value: 'b' }", "1:30", "expected '{', found ''b''", 'string_value: "..."'),
        ("input {", "1:7", "expected '}', found the end of the text", "add '}'"),
        ('name: "m"\n}', "2:1", "'}' closes nothing", "remove it"),
        ("@", "1:1", "expected the name of a field, found '@'", "name: value"),
        ("name: 'a'\nname: 'b'", "2:7", "field 'name' is specified more than once", "keep one"),
        ("dynamic_batching {} sequence_batching {}", "1:21", "along with field 'dynamic_batching'", "remove"),
        ("[a.b]: 1", "1:4", "a name in brackets", "without brackets"),
        ("name: '\\xff'", "1:13", "not valid UTF-8", "characters themselves"),
    ],
)
def test_mistakes(text: str, place: str, found: str, hint: str) -> None:
    """A mistake is told with its place, what was found there, and what to write instead."""
    error = refusal(text)
    assert error.message.startswith(f"failed to read text proto from /m/config.pbtxt:{place}: ")
    assert found in error.message
    assert hint in error.hint


def test_unknown_enum_numbers_are_refused() -> None:
    """An enum number without a name is a mistake, although protobuf would keep it."""
    error = refusal("input [ {}, { data_type: 99 } ]")
    assert error.message.endswith(": unknown value 99 for DataType in input[1].data_type")
    error = refusal('model_warmup { inputs { key: "x" value { data_type: -1 } } }')
    assert error.message.endswith("in model_warmup[0].inputs[x].data_type")


def test_bytes_that_are_no_text() -> None:
    """A file that is not UTF-8 is refused, not crashed on."""
    assert refusal(b"name: '\xff'").message.endswith("byte 7 is not UTF-8")


def test_long_values_are_cut() -> None:
    """An error text stays short whatever stands in the config."""
    assert len(refusal("max_batch_size: " + "9" * 100_000).message) < 400


def test_format_text_is_read_back() -> None:
    """What format_text writes reads back equal."""
    config = model(FULL.replace('name: "m"', "").replace('backend: "onnxruntime"', ""), tensors="")
    assert parse_text(format_text(config), "a") == config
