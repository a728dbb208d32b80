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
    """`ranges` has one entry for each profile, for inputs alone: of shapes, or of values where it is a shape tensor.

    A shape tensor's values are sizes of other tensors. TensorRT reads and writes a `hosted` tensor on the host.
    """

    ranges: tuple[Range, ...] = ()
    shape_tensor: bool = False
    hosted: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    profiles: int

    @property
    def batchable(self) -> bool:
        return bool(self.inputs) and all(slot.batches for slot in (*self.inputs, *self.outputs))

    @property
    def hosted(self) -> tuple[Slot, ...]:
        return tuple([slot for slot in (*self.inputs, *self.outputs) if slot.hosted])

    def max_batch(self, profiles: tuple[int, ...]) -> int:
        """The largest batch that every input has in one of `profiles`."""
        return max(min(slot.ranges[profile].most[0] for slot in self.inputs) for profile in profiles)


def read_signature(model: str, engine: Any) -> Signature:
    """Of a `tensorrt.ICudaEngine`. Raises InferError for tensors that cannot be served."""
    inputs, outputs = [], []
    count = int(engine.num_optimization_profiles)
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
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
        shape_tensor = bool(engine.is_shape_inference_io(name))
        hosted = engine.get_tensor_location(name).name == "HOST"
        if (shape_tensor and not hosted) or (hosted and -1 in shape):
            raise unsupported(
                f"unable to load model '{model}', tensor '{name}' is one that only some of the shape tensors of "
                "TensorRT are: on the GPU, or of any size",
                "build the engine with shape tensors of a fixed size, which are on the host",
            )
        if engine.get_tensor_mode(name).name == "INPUT":
            ranges = [_range(model, engine, name, profile, values=shape_tensor) for profile in range(count)]
            inputs.append(Slot(name, DATATYPES[kind], shape, tuple(ranges), shape_tensor, hosted))
        else:
            outputs.append(Slot(name, DATATYPES[kind], shape, (), shape_tensor, hosted))
    return Signature(tuple(inputs), tuple(outputs), count)


def _range(model: str, engine: Any, name: str, profile: int, *, values: bool) -> Range:
    if not values:
        return Range(*map(tuple, engine.get_tensor_profile_shape(name, profile)))
    try:
        found = engine.get_tensor_profile_values(profile, name)
    except TypeError:
        # In TensorRT 10 and 11 the number comes first, and their documentation has it second.
        found = engine.get_tensor_profile_values(name, profile)
    if len(found) != 3:
        raise unsupported(
            f"unable to load model '{model}', profile {profile} of the engine has no values for shape tensor '{name}'",
            "build the engine with set_shape_input for it (trtexec --minShapes, --optShapes, --maxShapes)",
        )
    return Range(*map(tuple, found))
