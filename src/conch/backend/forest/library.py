"""XGBoost and LightGBM themselves: their predictors, and Shapley values (what each feature adds to an answer).

The only importer of either. Both are optional: most forests need treelite alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conch.backend.forest.graph import UnwritableError
from conch.types.error import invalid, unsupported

Array = np.ndarray[Any, Any]
#: From (rows, features) to (rows, classes * (features + 1)): each class's contributions, then its bias.
Explain = Callable[[Array], Array]


def open_explainer(path: Path, kind: str, threads: int, model: str) -> Explain:
    """Raises InferError for formats that no library of ours explains, and where the library is missing."""
    if kind == "treelite_checkpoint":
        raise unsupported(
            f"unable to load model '{model}', output 'treeshap_output' needs a model file of XGBoost or LightGBM",
            "serve the file that the library saved, or remove the output",
        )
    try:
        return _explain_lightgbm(path, threads) if kind == "lightgbm" else _explain_xgboost(path, threads)
    except ImportError as error:
        raise invalid(
            f"unable to load model '{model}', output 'treeshap_output' needs the library that trained the model",
            f"pip install 'conch[forest]' ({error})",
        ) from None


def open_predictor(path: Path, kind: str, threads: int) -> Callable[[Array], Array]:
    """From (rows, features) to sums before the postprocessor. Raises UnwritableError."""
    if kind == "treelite_checkpoint":
        raise UnwritableError("a checkpoint of treelite has no library of its own")
    try:
        if kind == "lightgbm":
            trees = _lightgbm(path)
            return lambda x: np.asarray(trees.predict(x, raw_score=True, num_threads=threads))
        booster = _xgboost(path, threads)
        return lambda x: np.asarray(booster.inplace_predict(x, predict_type="margin", validate_features=False))
    except ImportError as error:
        raise UnwritableError(f"the library is not installed ({error})") from None


def _lightgbm(path: Path) -> Any:
    import lightgbm  # noqa: PLC0415  only for who asks for it

    return lightgbm.Booster(model_file=str(path))


def _xgboost(path: Path, threads: int) -> Any:
    import xgboost  # noqa: PLC0415  only for who asks for it

    booster = xgboost.Booster()
    # From memory it looks at the content, from a file at the name, which may be any.
    booster.load_model(bytearray(path.read_bytes()))
    booster.set_param({"nthread": threads})
    return booster


def _explain_lightgbm(path: Path, threads: int) -> Explain:
    booster = _lightgbm(path)
    return lambda x: np.asarray(booster.predict(x, pred_contrib=True, num_threads=threads))


def _explain_xgboost(path: Path, threads: int) -> Explain:
    booster = _xgboost(path, threads)
    import xgboost  # noqa: PLC0415  only for who asks for it

    # A booster may configure itself anew during a call.
    lock = threading.Lock()

    def explain(x: Array) -> Array:
        with lock:
            values = booster.predict(xgboost.DMatrix(x, nthread=threads), pred_contribs=True, validate_features=False)
        return np.asarray(values).reshape(len(x), -1)

    return explain
