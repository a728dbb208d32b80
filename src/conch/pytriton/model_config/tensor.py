"""One input or output of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """`shape` is without the batch dimension, -1 is any size; `dtype` is numpy's, `bytes` for texts and bytes."""

    shape: Sequence[int]
    dtype: Any
    name: str | None = None
    optional: bool | None = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        dtype = np.dtype(self.dtype)
        object.__setattr__(self, "dtype", np.bytes_ if dtype.kind in "OSU" else dtype.type)
