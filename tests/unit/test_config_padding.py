"""The parameter `conch_padding`: what it may say, and how each mistake in it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conch.config.padding import padding_of
from conch.config.rules import validate
from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError
from conch.types.padding import Cut, Mask, PaddedInput, Padding
from support.configs import model

TENSORS = """
input [
  { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }, { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "text" data_type: TYPE_STRING dims: [ -1 ] }, { name: "grid" data_type: TYPE_UINT8 dims: [ 3, -1 ] },
  { name: "wide" data_type: TYPE_FP32 dims: [ -1, -1 ] }
]
output [
  { name: "hidden" data_type: TYPE_FP32 dims: [ -1, 4 ] }, { name: "words" data_type: TYPE_STRING dims: [ -1 ] }
]
"""
IDS = {"ids": {"axis": 1}}


def config(declared: Any, text: str = "max_batch_size: 8 dynamic_batching { }", tensors: str = TENSORS) -> ModelConfig:
    made = model(text, tensors=tensors)
    made.parameters["conch_padding"].string_value = declared if isinstance(declared, str) else json.dumps(declared)
    return made


def test_whole_declaration() -> None:
    """Every part is read; axes count the batch dimension, or from the end; what is left out has its default."""
    declared = {
        "inputs": {"grid": {"axis": -1, "value": 255}, "ids": {"axis": 1, "value": 7, "buckets": [16, 32]}},
        "mask": {"name": "mask", "like": "ids"},
        "outputs": {"hidden": {"axis": 1, "like": "ids"}},
    }
    assert padding_of(config(declared)) == Padding(
        (PaddedInput("grid", 3, 2, 255, ()), PaddedInput("ids", 0, 1, 7, (16, 32))),
        (Mask("mask", 1, 1, 1, 1),),
        {"hidden": Cut(1, 1)},
    )


def test_models_without_the_parameter_are_not_padded() -> None:
    """No declaration, no padding."""
    assert padding_of(model()) is None


def test_without_batching_axes_begin_at_the_first_dimension() -> None:
    """max_batch_size 0: the shape that clients send has no batch dimension."""
    padding = padding_of(config({"inputs": {"ids": {"axis": 0}}}, ""))
    assert padding is not None
    assert padding.inputs[0].axis == 0


def test_masks_may_be_left_out_by_clients() -> None:
    """In the spec a mask is optional, whatever the config says, and nothing else changes."""
    spec = model_spec(config({"inputs": IDS, "mask": {"name": "mask"}}), 1)
    assert [tensor.name for tensor in spec.inputs if tensor.optional] == ["mask"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("{", "parameter 'conch_padding' is no JSON"),
        ([], "parameter 'conch_padding' is [], expected an object"),
        ({}, "inputs of parameter 'conch_padding' is None, expected the inputs to pad by name"),
        ({"inputs": IDS, "input": 1}, "parameter 'conch_padding' has the unknown key 'input'"),
        ({"inputs": {"x": {"axis": 1}}}, "inputs.x of parameter 'conch_padding' names 'x', which is no input"),
        ({"inputs": {"text": {"axis": 1}}}, "inputs.text of parameter 'conch_padding' names 'text' of TYPE_STRING"),
        ({"inputs": {"ids": {}}}, "inputs.ids.axis of parameter 'conch_padding' is None, expected a whole number"),
        (
            {"inputs": {"ids": {"axis": 2}}},
            "inputs.ids.axis of parameter 'conch_padding' is 2, expected a whole number",
        ),
        ({"inputs": {"ids": {"axis": 0}}}, "inputs.ids.axis of parameter 'conch_padding' is 0, the batch dimension"),
        ({"inputs": {"grid": {"axis": 1}}}, "inputs.grid.axis of parameter 'conch_padding' is 1, where 'grid' has"),
        ({"inputs": {"ids": {"axis": 1, "value": "x"}}}, "inputs.ids.value of parameter 'conch_padding' is 'x'"),
        ({"inputs": {"ids": {"axis": 1, "value": 0.5}}}, "inputs.ids.value of parameter 'conch_padding' is 0.5"),
        ({"inputs": {"grid": {"axis": 2, "value": 256}}}, "inputs.grid.value of parameter 'conch_padding' is 256"),
        (
            {"inputs": {"ids": {"axis": 1, "buckets": [3, 2]}}},
            "inputs.ids.buckets of parameter 'conch_padding' is [3, 2]",
        ),
        ({"inputs": {"ids": {"axis": 1, "buckets": [0]}}}, "inputs.ids.buckets of parameter 'conch_padding' is [0]"),
        ({"inputs": IDS, "mask": 3}, "mask of parameter 'conch_padding' is 3, expected an object"),
        ({"inputs": IDS, "mask": [{"name": "ids"}]}, "mask of parameter 'conch_padding' names 'ids', which is padded"),
        ({"inputs": IDS, "mask": {"name": "no"}}, "mask of parameter 'conch_padding' names 'no', which is no input"),
        ({"inputs": IDS, "mask": {"name": "wide"}}, "mask of parameter 'conch_padding' names input 'wide' with dims"),
        ({"inputs": IDS, "mask": {"name": "mask", "like": "x"}}, "mask.like of parameter 'conch_padding' is 'x'"),
        ({"inputs": IDS, "outputs": {"y": {"axis": 1}}}, "outputs.y of parameter 'conch_padding' is no output"),
        (
            {"inputs": IDS, "outputs": {"words": {"axis": 1}}},
            "outputs.words of parameter 'conch_padding' names 'words'",
        ),
        ({"inputs": IDS, "outputs": {"hidden": {"axis": 2}}}, "outputs.hidden.axis of parameter 'conch_padding' is 2"),
        ({"inputs": IDS, "max_waste": 1}, "max_waste of parameter 'conch_padding' is 1, expected a share"),
        ({"inputs": IDS, "max_waste": 0.1}, "max_waste of parameter 'conch_padding' needs buckets"),
    ],
)
def test_each_mistake_is_named(declared: Any, message: str) -> None:
    """The model does not load; the text says where the mistake stands, what was found and what was expected."""
    with pytest.raises(InferError) as caught:
        validate(config(declared), check_io=True)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.message.startswith(message)
    assert caught.value.message.endswith("for m")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "tensors", "what"),
    [
        ("max_batch_size: 8 sequence_batching { }", TENSORS, "'sequence_batching'"),
        (
            "max_batch_size: 8 dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
            TENSORS,
            "'dynamic_batching.priority_levels'",
        ),
        ("max_batch_size: 8", TENSORS.replace("dims: [ -1 ]", "dims: [ -1 ] allow_ragged_batch: true", 1), "ragged"),
        (
            "max_batch_size: 8",
            TENSORS.replace("dims: [ -1 ]", "dims: [ -1 ] reshape { shape: [ -1, 1 ] }", 1),
            "reshape",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, tensors: str, what: str) -> None:
    """Two rules for one thing are an error that names both."""
    with pytest.raises(InferError, match=what):
        padding_of(config({"inputs": IDS}, text, tensors))
