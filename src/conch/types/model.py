"""What the server knows of a model: its tensors and limits, settled at load, and its line in the index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conch.types.dtype import DataType
from conch.types.padding import Padding


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as clients see it. `dims` has no batch dimension; -1 is any size."""

    name: str
    datatype: DataType
    dims: tuple[int, ...]
    optional: bool = False
    #: The shape that the backend sees instead of `dims`, where the config says `reshape`; None elsewhere.
    reshape: tuple[int, ...] | None = None
    #: What the values of an output stand for, by index, for classification; empty without a label file.
    labels: Sequence[bytes] = ()
    #: Whether requests of other shapes may share a batch; the backend then sees the elements of all, one after another.
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """What a sequence model asks of its requests: `control` takes the sequence's id, None where nothing does."""

    control: TensorSpec | None = None
    #: Whether a request may leave the id out, and is a sequence of its own.
    iterative: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of a model. With `max_batch_size` 0 shapes are complete; above, a batch dimension comes first."""

    name: str
    version: int
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoupled: bool = False
    #: What the server pads; None for most models.
    padding: Padding | None = None
    #: None for models that know no sequences.
    sequence: SequenceSpec | None = None


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index; a model never loaded has only a name (spec: protocol 1.4).

    `version` is the number as text; `state` one of UNKNOWN, READY, UNAVAILABLE, LOADING, UNLOADING.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


def carry_shape(shape: tuple[int, ...], dims: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`, which matches `dims`, written as `other` (the config's `reshape`): sizes at -1 are carried in order.

    Neither has a batch dimension.
    """
    carried = iter([size for size, dim in zip(shape, dims, strict=True) if dim == -1])
    return tuple(next(carried) if dim == -1 else dim for dim in other)


def shape_text(shape: Sequence[int]) -> str:
    """`[1,2,-1]`, as Triton prints shapes."""
    return f"[{','.join(map(str, shape))}]"


def identity(namespace: str, name: str) -> str:
    """What tells a model from its namesakes in other namespaces, as Triton shows it; `namespace` is empty for none."""
    return f"{namespace}::{name}" if namespace else name
