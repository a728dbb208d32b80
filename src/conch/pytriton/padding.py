"""Makes the outputs of several batches equal in shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class ConstantPadder:
    """Fills up with a constant, after the values, in all dimensions but the first; BYTES with empty ones."""

    def __init__(self, pad_value: Any = 0) -> None:
        self.pad_value = pad_value

    def __call__(self, batches: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> list[dict[str, np.ndarray[Any, Any]]]:
        names = list(dict.fromkeys(name for each in batches for name in each))
        padded: list[dict[str, np.ndarray[Any, Any]]] = [{} for _ in batches]
        for name in names:
            arrays = [each[name] for each in batches if name in each]
            kind = np.result_type(*arrays)
            shape = np.max([array.shape[1:] for array in arrays], axis=0)
            fill = b"" if kind.kind in "OSU" else self.pad_value
            for into, each in zip(padded, batches, strict=True):
                if name in each:
                    array = each[name].astype(kind)
                    wide = [(0, 0), *[(0, int(size) - have) for have, size in zip(array.shape[1:], shape, strict=True)]]
                    into[name] = np.pad(array, wide, mode="constant", constant_values=fill)
        return padded
