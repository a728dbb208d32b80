"""Classification: the largest values of an output as text, `<value>:<index>[:<label>]`. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.types.dtype import BF16, BOOL, BYTES, FP16
from conch.types.error import invalid
from conch.types.tensor import Tensor, join_bytes, to_numpy

#: Of one batch entry.
_MAX_ELEMENTS: Final = 1_000_000
_UNSUPPORTED: Final = frozenset({BF16, BOOL, BYTES, FP16})


def classify(tensor: Tensor, k: int, labels: Sequence[bytes], *, batching: bool) -> Tensor:
    """The `k` largest values of each batch entry, largest first; equal values in the order of their indexes.

    The answer is of type BYTES and has the shape [batch, k'] (without `batching` [k']), k' at most the number of
    values. NaN counts as the smallest value. Raises InferError for types that have no classes.
    """
    datatype, shape = tensor.datatype, tensor.shape
    if datatype in _UNSUPPORTED:
        raise invalid(
            f"class result not available for output due to unsupported type '{datatype.name}'",
            "ask for the output as it is",
        )
    rows = shape[0] if batching and shape else 1
    count = math.prod(shape[1:] if batching else shape)
    if count > _MAX_ELEMENTS:
        raise invalid("classification output tensor too large", f"it has {count} values, {_MAX_ELEMENTS} are the limit")
    values = to_numpy(datatype, (rows, count), tensor.data)
    k = min(k, count)
    kind = b"%f" if values.dtype.kind == "f" else b"%d"
    found = [_text(kind, row, index, labels) for row in values for index in top(row, k)]
    return Tensor(tensor.name, BYTES, (rows, k) if batching else (k,), join_bytes(found))


def top(values: np.ndarray[Any, Any], k: int) -> list[int]:
    """The indexes of the `k` largest of `values` (one dimension), largest first, equal ones ascending."""
    count = len(values)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), values.dtype.type(-np.inf), values)
    indexes = np.arange(count)
    if 0 < k < count:
        least = np.partition(values, count - k)[count - k]
        indexes = np.flatnonzero(values >= least)
        values = values[indexes]
    # Sorted backwards and read from the end: that is stable without negating, which integers may not survive.
    order = len(indexes) - 1 - np.argsort(values[::-1], kind="stable")[::-1]
    chosen: list[int] = indexes[order[:k]].tolist()
    return chosen


def _text(kind: bytes, row: np.ndarray[Any, Any], index: int, labels: Sequence[bytes]) -> bytes:
    text = b"%b:%d" % (kind % row[index].item(), index)
    return text + b":" + labels[index] if index < len(labels) and labels[index] else text
