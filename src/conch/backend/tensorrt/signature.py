"""What a TensorRT engine says of its inputs, outputs and profiles. Pure but for asking the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from conch.backend import signature
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import unsupported

#: TensorRT's names of data types.
DATATYPES: Final[Mapping[str, DataType]] = {
    "BF16": dtype.BF16,
    "BOOL": dtype.BOOL,
    "FLOAT": dtype.FP32,
    "HALF": dtype.FP16,
    "INT32": dtype.INT32,
    "INT64": dtype.INT64,
    "INT8": dtype.INT8,
    "UINT8": dtype.UINT8,
}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The shapes of one input that one profile was built for."""

    least: Shape
    best: Shape
    most: Shape

    def holds(self, shape: Shape) -> bool:
        return len(shape) == len(self.least) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Slot(signature.Slot):
    """`ranges` has one entry for each profile, for inputs alone."""

    ranges: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    profiles: int

    @property
    def batchable(self) -> bool:
        return bool(self.inputs) and all(slot.batches for slot in (*self.inputs, *self.outputs))

    def max_batch(self, profiles: tuple[int, ...]) -> int:
        """The largest batch that every input has in one of `profiles`."""
        return max(min(slot.ranges[profile].most[0] for slot in self.inputs) for profile in profiles)


def read_signature(model: str, engine: Any) -> Signature:
    """Of a `tensorrt.ICudaEngine`. Raises InferError for tensors that cannot be served."""
    inputs, outputs = [], []
    count = int(engine.num_optimization_profiles)
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.is_shape_inference_io(name):
            raise unsupported(
                f"unable to load model '{model}', tensor '{name}' is a shape tensor, which is not supported",
                "build the engine with shapes that follow from those of the other inputs",
            )
        kind = engine.get_tensor_dtype(name).name
        if kind not in DATATYPES:
            raise unsupported(
                f"unable to load model '{model}', tensor '{name}' has the data type {kind}, for which the inference "
                "protocol has no name",
                f"cast it to one of {', '.join(DATATYPES)} at the edge of the network",
            )
        layout = engine.get_tensor_format(name).name
        if layout != "LINEAR":
            raise unsupported(
                f"unable to load model '{model}', tensor '{name}' has the format {layout}, which is not supported",
                "build the engine with inputs and outputs in linear order (trtexec --inputIOFormats=fp32:chw)",
            )
        shape = tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name).name == "INPUT":
            ranges = [Range(*map(tuple, engine.get_tensor_profile_shape(name, profile))) for profile in range(count)]
            inputs.append(Slot(name, DATATYPES[kind], shape, tuple(ranges)))
        else:
            outputs.append(Slot(name, DATATYPES[kind], shape))
    return Signature(tuple(inputs), tuple(outputs), count)
