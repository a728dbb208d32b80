"""What a PyTorch model says of its own inputs and outputs, as far as it does. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from conch.types.dtype import DataType


class Holds(Enum):
    """What an argument of `forward` takes."""

    TENSOR = "Tensor"
    TENSORS = "List[Tensor]"
    STRINGS = "List[str]"


@dataclass(frozen=True)
class Argument:
    """One tensor that the model takes. `aliases` are other names for it; type and shape are None where unknown.

    `shape` is complete, -1 stands for any size.
    """

    name: str
    holds: Holds = Holds.TENSOR
    required: bool = True
    aliases: tuple[str, ...] = ()
    datatype: DataType | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Result:
    """One tensor that the model gives. As `Argument`."""

    name: str
    datatype: DataType | None = None
    shape: tuple[int, ...] | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """`results` is None where it shows only when the model runs, `arguments` where the input is a `dictionary`."""

    arguments: tuple[Argument, ...]
    results: tuple[Result, ...] | None = None
    dictionary: bool = False
    #: Whether the model changes its own values as it runs, and whether it changes its inputs.
    keeps_state: bool = False
    writes_inputs: bool = False
    #: The fewest and most rows that an open first dimension may have; None for as many as one likes.
    rows: tuple[int, int | None] = (0, None)

    @property
    def batchable(self) -> bool:
        """Triton's rule for ONNX: every input and every output begins with a dimension of any size."""
        shapes = [each.shape for each in self.arguments] + [each.shape for each in self.results or ()]
        return self.rows[0] <= 1 and all(shape and shape[0] == -1 for shape in shapes)
