"""Rules of a model's inputs and outputs, and of the tensors made from batches."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence

from conch.pb.model_config_pb2 import BatchInput, BatchOutput, DataType, ModelConfig, ModelInput, ModelOutput
from conch.types.error import InferError, invalid, unsupported

_DIM = "must be integer >= 1, or -1 to indicate a variable-size dimension"
_TENSORRT = "tensorrt_plan"


def inputs_are_sound(config: ModelConfig) -> None:
    for tensor in config.input:
        _check_tensor(config, tensor, "model input")
        if tensor.format != ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            raise _refusal(config, "model input NHWC/NCHW require 3 dims", "give 3 dims, or remove 'format'")
        _check_tensorrt(config, tensor)


def outputs_are_sound(config: ModelConfig) -> None:
    for tensor in config.output:
        _check_tensor(config, tensor, "model output")
        _check_tensorrt(config, tensor)


def names_are_unique(config: ModelConfig) -> None:
    """Triton takes the first of two tensors of a name and forgets the other."""
    for kind, tensors in (("input", config.input), ("output", config.output)):
        seen = set()
        for tensor in tensors:
            if tensor.name in seen:
                raise _refusal(
                    config, f"model {kind} '{tensor.name}' is specified more than once", "remove or rename one of them"
                )
            seen.add(tensor.name)


def labels_stay_inside(config: ModelConfig) -> None:
    for output in config.output:
        path = posixpath.normpath(output.label_filename)
        if output.label_filename and (path.startswith("/") or path.split("/")[0] == ".." or "\0" in path):
            raise unsupported(
                f"label file path '{output.label_filename}' for output '{output.name}' in model '{config.name}' is "
                "outside model directory",
                "put the label file beside config.pbtxt and write its name alone",
            )


def batch_inputs_are_sound(config: ModelConfig) -> None:
    names = {tensor.name for tensor in config.input}
    for made in config.batch_input:
        if made.data_type == DataType.TYPE_INVALID:
            raise invalid("unexpected batch input data type 'TYPE_INVALID'", "set 'data_type': TYPE_INT32 or TYPE_FP32")
        _check_sources(config, made.source_input, f"batch input kind '{BatchInput.Kind.Name(made.kind)}'")
        if made.data_type not in (DataType.TYPE_INT32, DataType.TYPE_FP32):
            raise _refusal(config, "batch input data type must be TYPE_INT32 or TYPE_FP32", "set 'data_type'")
        _check_known(config, made.source_input, names)


def batch_outputs_are_sound(config: ModelConfig) -> None:
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for made in config.batch_output:
        _check_sources(config, made.source_input, f"batch output kind '{BatchOutput.Kind.Name(made.kind)}'")
        _check_known(config, made.source_input, inputs)
        for index, name in enumerate(made.target_name):
            if name not in outputs:
                raise _refusal(config, f"unknown target output name '{name}'", "name an output of the model")
            if name in made.target_name[:index]:
                raise _refusal(config, f"target output name '{name}' can only be specified once", "remove one of them")


def _refusal(config: ModelConfig, message: str, hint: str) -> InferError:
    return invalid(f"{message} for {config.name}", hint)


def _check_tensor(config: ModelConfig, tensor: ModelInput | ModelOutput, kind: str) -> None:
    if not tensor.name:
        raise _refusal(config, f"{kind} must specify 'name'", "give every tensor a name")
    who = f"{kind} '{tensor.name}'"
    if tensor.data_type == DataType.TYPE_INVALID:
        raise _refusal(config, f"{who} must specify 'data_type'", "such as data_type: TYPE_FP32")
    if not tensor.dims:
        raise _refusal(config, f"{who} must specify 'dims'", "such as dims: [ -1 ], without the batch dimension")
    if tensor.HasField("reshape") and not tensor.reshape.shape and config.max_batch_size == 0:
        raise _refusal(
            config,
            f"{who} cannot have empty reshape for non-batching model as scalar tensors are not supported",
            "remove 'reshape', or set max_batch_size",
        )
    if not all(dim >= 1 or dim == -1 for dim in tensor.dims):
        raise _refusal(config, f"{who} dimension {_DIM}", f"got {list(tensor.dims)}")
    if tensor.HasField("reshape"):
        _check_reshape(config, tensor, who)


def _check_reshape(config: ModelConfig, tensor: ModelInput | ModelOutput, who: str) -> None:
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    if not all(dim >= 1 or dim == -1 for dim in shape):
        raise _refusal(config, f"{who} reshape dimensions {_DIM}", f"got {shape}")
    hint = f"{dims} and {shape} must hold the same elements, with -1 at the same places"
    ours, theirs = _runs(dims), _runs(shape)
    if (len(ours) == 1) != (len(theirs) == 1):
        raise _refusal(config, f"{who} has different size for dims and reshape", hint)
    if len(ours) != len(theirs):
        raise _refusal(config, f"{who} has different number of variable-size dimensions for dims and reshape", hint)
    if ours != theirs:
        raise _refusal(config, f"{who} has different size for dims and reshape", hint)


def _runs(dims: Sequence[int]) -> list[int]:
    """The element counts of the parts between variable sizes: [2, 4, -1, 6] is [8, 6]."""
    runs: list[int] = []
    part: list[int] = []
    for dim in dims:
        if dim == -1:
            runs.append(math.prod(part))
            part = []
        else:
            part.append(dim)
    return [*runs, math.prod(part)]


def _check_tensorrt(config: ModelConfig, tensor: ModelInput | ModelOutput) -> None:
    tensorrt = config.platform == _TENSORRT
    if tensor.is_shape_tensor and not tensorrt:
        raise _refusal(config, "shape tensors are only supported for TensorRT platform", "remove 'is_shape_tensor'")
    if tensor.is_non_linear_format_io and not tensorrt:
        raise _refusal(
            config,
            "Non-linear IO format is only supported for the TensorRT platform",
            "remove 'is_non_linear_format_io'",
        )
    if tensor.is_non_linear_format_io and len(tensor.dims) != 3:
        raise _refusal(config, "Non-linear IO format requires 3 dims", f"got {len(tensor.dims)}")


def _check_sources(config: ModelConfig, sources: Sequence[str], who: str) -> None:
    if len(sources) != 1:
        raise _refusal(config, f"{who} expects 1 source input, got {len(sources)}", "list one name in 'source_input'")


def _check_known(config: ModelConfig, sources: Sequence[str], inputs: set[str]) -> None:
    for name in sources:
        if name not in inputs:
            raise _refusal(config, f"unknown source input name '{name}'", "name an input of the model")


RULES = (
    inputs_are_sound,
    outputs_are_sound,
    names_are_unique,
    labels_stay_inside,
    batch_inputs_are_sound,
    batch_outputs_are_sound,
)
