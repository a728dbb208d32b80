"""What a sample backend asks of a model's config, in the words of Triton's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NUMBER, DataType
from conch.types.error import InferError, invalid
from conch.types.model import shape_text

_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`dims` None: any one dimension."""

    name: str
    datatype: DataType
    dims: tuple[int, ...] | None = (1,)


def check_tensors(config: ModelConfig, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Raises InferError at the first tensor that is not as it must be; their order matters, as in Triton."""
    groups: tuple[tuple[str, Any, Sequence[Tensor]], ...] = (
        ("input", config.input, inputs),
        ("output", config.output, outputs),
    )
    for kind, given, wanted in groups:
        if len(given) != len(wanted):
            names = ", ".join([f"{each.name} {each.datatype.config_name}" for each in wanted])
            plural = "" if len(wanted) == 1 else "s"
            raise _wrong(config, f"expected {len(wanted)} {kind}{plural}, got {len(given)}", f"it has {names}")
    for kind, given, wanted in groups:
        for place, (entry, tensor) in enumerate(zip(given, wanted, strict=True)):
            if entry.name != tensor.name:
                raise _wrong(
                    config, f"expected {_ORDINALS[place]} {kind} tensor name to be {tensor.name}, got {entry.name}"
                )
    for _, given, wanted in groups:
        for entry, tensor in zip(given, wanted, strict=True):
            dims = tuple(entry.dims)
            if tensor.dims is None and len(dims) != 1:
                raise _wrong(config, f"expected {tensor.name} shape to have one dimension, got {shape_text(dims)}")
            if tensor.dims is not None and dims != tensor.dims:
                raise _wrong(
                    config, f"expected {tensor.name} shape to be {shape_text(tensor.dims)}, got {shape_text(dims)}"
                )
    for _, given, wanted in groups:
        for entry, tensor in zip(given, wanted, strict=True):
            if entry.data_type != tensor.datatype.number:
                got = BY_NUMBER.get(entry.data_type)
                raise _wrong(
                    config,
                    f"expected {tensor.name} datatype to be {tensor.datatype}, got "
                    f"{got.config_name if got else 'TYPE_INVALID'}",
                )


def _wrong(config: ModelConfig, text: str, hint: str = "") -> InferError:
    return invalid(text, hint or f"change the config of model '{config.name}'")
