"""What a model that OpenVINO has read says of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import unsupported

#: OpenVINO's element types by the names that it prints.
DATATYPES: Final[Mapping[str, DataType]] = {
    "boolean": dtype.BOOL,
    "u8": dtype.UINT8,
    "u16": dtype.UINT16,
    "u32": dtype.UINT32,
    "u64": dtype.UINT64,
    "i8": dtype.INT8,
    "i16": dtype.INT16,
    "i32": dtype.INT32,
    "i64": dtype.INT64,
    "f16": dtype.FP16,
    "f32": dtype.FP32,
    "f64": dtype.FP64,
    "bf16": dtype.BF16,
}
#: And back.
ELEMENTS: Final[Mapping[DataType, str]] = {datatype: name for name, datatype in DATATYPES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """One input or output, number `index` of the model. `shape` is complete, -1 stands for any size.

    A tensor may have several names; `name` is the first by alphabet, which stays the same from load to load.
    """

    index: int
    names: tuple[str, ...]
    datatype: DataType
    #: None where the model does not even say how many dimensions there are.
    shape: tuple[int, ...] | None
    #: Whether the model's layout says that the first dimension counts the rows of a batch.
    layout_batch: bool = False

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def batches(self) -> bool:
        return bool(self.shape) and (self.layout_batch or self.shape[0] == -1)  # type: ignore[index]


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]

    @property
    def batchable(self) -> bool:
        """Every input and every output begins with a dimension of any size, or has a layout that says "batch"."""
        return all(slot.batches for slot in (*self.inputs, *self.outputs))


def find_slot(slots: Sequence[Slot], name: str) -> Slot | None:
    return next((slot for slot in slots if name in slot.names), None)


def read_signature(model: str, network: Any) -> Signature:
    """The signature of an `openvino.Model`. Raises InferError for types that cannot be served."""
    return Signature(read_slots(model, network.inputs, "input"), read_slots(model, network.outputs, "output"))


def read_slots(model: str, ports: Iterable[Any], role: str) -> tuple[Slot, ...]:
    return tuple([_slot(model, index, port, role) for index, port in enumerate(ports)])


def _slot(model: str, index: int, port: Any, role: str) -> Slot:
    names = tuple(sorted(port.get_names())) or (_node_name(port, index, role),)
    element = port.get_element_type().get_type_name()
    datatype = DATATYPES.get(element)
    if element == "string":
        raise unsupported(
            f"unable to load model '{model}', {role} '{names[0]}' holds strings, which the openvino backend does not "
            "support: OpenVINO's Python interface ends the process when it frees them",
            'give the model numbers (tokens), or run it with backend: "onnxruntime"',
        )
    if datatype is None:
        raise unsupported(
            f"unable to load model '{model}', {role} '{names[0]}' has type {element}, which the inference protocol "
            "does not know",
            f"convert it to one of {', '.join(DATATYPES)} in the model",
        )
    shape = port.get_partial_shape()
    known = None
    if shape.rank.is_static:
        known = tuple([each.get_length() if each.is_static else -1 for each in shape])
    return Slot(index, names, datatype, known, _has_batch(port))


def _node_name(port: Any, index: int, role: str) -> str:
    """Of a tensor without a name (Triton refuses those): its node's, which OpenVINO's tools show."""
    node = port.get_node()
    source = node.input_value(0).get_node() if node.get_type_name() == "Result" else node
    return str(source.get_friendly_name()) or f"{role}_{index}"


def _has_batch(port: Any) -> bool:
    node = port.get_node()
    layout = getattr(node, "layout", None)
    text = "" if layout is None else layout.to_string()
    return text.startswith("[N")
