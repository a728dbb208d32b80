"""What a model says of its own inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from conch.types.dtype import DataType


@dataclass(frozen=True, slots=True)
class Slot:
    """One input or output of the model: its shape is complete, -1 stands for any size, () also for an unknown rank."""

    name: str
    datatype: DataType
    shape: tuple[int, ...]

    @property
    def batches(self) -> bool:
        return bool(self.shape) and self.shape[0] == -1


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    #: Initializers that a request may replace (ONNX: a graph input with a default). They are optional inputs.
    overridable: tuple[Slot, ...] = ()

    @property
    def batchable(self) -> bool:
        """Triton's rule: every input and every output begins with a dimension of any size."""
        return all(slot.batches for slot in (*self.inputs, *self.outputs))

    @property
    def takes(self) -> dict[str, Slot]:
        """All inputs that a request may carry."""
        return {slot.name: slot for slot in (*self.inputs, *self.overridable)}
