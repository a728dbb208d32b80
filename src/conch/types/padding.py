"""How a model's inputs of varying length are made equal: which axes are padded, to which sizes, and what says so."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from conch.types.error import invalid

Shape = tuple[int, ...]


class Bucket(NamedTuple):
    """A batch key: requests of equal `rest` can be padded to one shape, those of equal `sizes` need no more for it."""

    rest: object
    #: The bucket's size for each padded input, 0 where the input has no buckets or is absent.
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PaddedInput:
    """One input that is filled up with `value` at the end of `axis` (counted in the full shape, batch included)."""

    name: str
    #: Position in `ModelSpec.inputs`.
    position: int
    axis: int
    value: float = 0
    #: Allowed sizes, ascending. Empty: the longest of the batch decides.
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Mask:
    """An input that says which elements are real: made by the server where the client does not send it."""

    name: str
    position: int
    axis: int
    #: Index in `Padding.inputs` of the input that it masks.
    like: int
    #: What stands for a real element; padding is 0.
    real: float = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """An output that is cut back at `axis` to the length that the request's own input `like` had."""

    axis: int
    like: int


@dataclass(frozen=True, slots=True)
class Padding:
    """What a config declares. `outputs` by name. No input is both padded and a mask."""

    inputs: tuple[PaddedInput, ...]
    masks: tuple[Mask, ...] = ()
    outputs: Mapping[str, Cut] | None = None
    #: A batch may take requests of smaller buckets in as long as no larger share of it becomes padding; 0: never.
    max_waste: float = 0.0

    def lengths(self, positions: Sequence[int], shapes: Sequence[Shape]) -> tuple[int, ...]:
        """For each padded input its size at its axis, -1 where it is absent."""
        found = []
        for each in self.inputs:
            present = each.position in positions
            found.append(shapes[positions.index(each.position)][each.axis] if present else -1)
        return tuple(found)

    def sizes(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """The bucket of each length; 0 where there are no buckets or no input.

        Raises InferError (INVALID_ARG) for an input that is longer than its largest bucket.
        """
        return tuple([_bucket(each, length) for each, length in zip(self.inputs, lengths, strict=True)])

    def bucket(self, dims: Sequence[Shape], lead: int, positions: Sequence[int], shapes: Sequence[Shape]) -> Bucket:
        """The batch key of a request; `dims` are the config's, for every input, `lead` is 1 for a model that batches.

        Raises InferError (INVALID_ARG) for lengths that cannot be padded, and for a mask that does not fit its input.
        """
        lengths = self.lengths(positions, shapes)
        for each in self.masks:
            if lengths[each.like] < 0:
                raise invalid(f"input '{self.inputs[each.like].name}', which input '{each.name}' masks, is missing")
        axes = {each.position: each.axis for each in self.inputs}
        masks = {each.position: each for each in self.masks}
        rest = []
        for position, shape in zip(positions, shapes, strict=True):
            mask = masks.get(position)
            if mask is not None:
                self._check_mask(mask, shape, lengths)
                continue
            free = [
                size
                for axis, (size, dim) in enumerate(zip(shape[lead:], dims[position], strict=True), lead)
                if dim == -1 and axis != axes.get(position)
            ]
            rest.append((position, *free))
        return Bucket(tuple(rest), self.sizes(lengths))

    def _check_mask(self, mask: Mask, shape: Shape, lengths: Sequence[int]) -> None:
        length = lengths[mask.like]
        if shape[mask.axis] != length:
            raise invalid(
                f"input '{mask.name}' has size {shape[mask.axis]} in dimension {mask.axis}, expected {length}, the "
                f"length of input '{self.inputs[mask.like].name}' whose mask it is",
                f"send as many elements, or leave '{mask.name}' out: the server then makes it",
            )


def _bucket(padded: PaddedInput, length: int) -> int:
    buckets = padded.buckets
    if not buckets or length < 0:
        return 0
    if length > buckets[-1]:
        raise invalid(
            f"input '{padded.name}' has size {length} in dimension {padded.axis}, more than {buckets[-1]}, its largest "
            "bucket",
            "send a shorter input, or add a larger bucket to the model's 'conch_padding'",
        )
    return buckets[bisect_left(buckets, length)]
