"""The config of an exported model, from what went in and came out at different sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conch.backend.complete import set_dims
from conch.export.api import Array, ExportError, Written
from conch.export.examples import Example
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import ALL, BF16, BYTES, DataType


def make_config(
    name: str,
    written: Written,
    examples: Sequence[Example],
    outputs: Mapping[str, Array],
    others: Mapping[str, Array],
    names: Mapping[str, str],
    max_batch_size: int,
) -> ModelConfig:
    """`outputs` and `others` are the model's, of two calls whose batch and open sizes differ; `names` says what an
    output is called in the exported model. Raises ExportError for outputs that no batch can be cut from."""
    config = ModelConfig(
        name=name, backend=written.backend, platform=written.platform, max_batch_size=max_batch_size,
        default_model_filename="" if written.filename.startswith("model.") else written.filename,
    )  # fmt: skip
    batching = max_batch_size > 0
    for each in examples:
        shape = [-1 if place in each.open else size for place, size in enumerate(each.shape)]
        set_dims(config.input.add(name=each.name, data_type=each.datatype.number), shape, batching)
    for key, array in outputs.items():
        other = others[key]
        if array.ndim != other.ndim or (batching and (not array.ndim or array.shape[0] == other.shape[0])):
            raise ExportError(
                f"output '{key}' has shape {list(array.shape)} and then {list(other.shape)}: its first dimension is no "
                "batch",
                "make the model keep the batch dimension, or say --no-batch",
            )
        shape = [size if size == found else -1 for size, found in zip(array.shape, other.shape, strict=True)]
        set_dims(config.output.add(name=names.get(key, key), data_type=_datatype(key, array).number), shape, batching)
    if max_batch_size > 1:
        config.dynamic_batching.SetInParent()
    return config


def _datatype(name: str, array: Array) -> DataType:
    if array.dtype.kind in "OSU":
        return BYTES
    for each in ALL:
        if each not in (BYTES, BF16) and each.numpy == array.dtype:
            return each
    raise ExportError(f"output '{name}' is of type {array.dtype}, which the inference protocol does not have")
