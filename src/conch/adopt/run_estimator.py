"""Runs a model with `predict` (scikit-learn, XGBoost, LightGBM) as a Python model; as a program it describes one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

#: Methods beside `predict` that make an output, and what they give.
_OTHERS: Final = ("predict_proba", "decision_function", "transform")


def load(path: Path, library: str) -> Any:
    """The model in the file. For files of scikit-learn this runs whatever code is in them."""
    if library == "xgboost":
        import xgboost  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  the model's own library

        booster = xgboost.Booster(model_file=str(path))
        return _Booster(booster, lambda rows: booster.predict(xgboost.DMatrix(rows)), booster.num_features())
    if library == "lightgbm":
        import lightgbm  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

        forest = lightgbm.Booster(model_file=str(path))
        return _Booster(forest, forest.predict, forest.num_feature())
    import joblib  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415

    return joblib.load(path)


class _Booster:
    """The library's own object behind the one method that is asked for."""

    def __init__(self, booster: Any, predict: Any, features: int) -> None:
        self.kind = type(booster).__name__
        self.predict = predict
        self.n_features_in_ = features


def methods(model: Any) -> list[str]:
    found = ["predict"] if callable(getattr(model, "predict", None)) else []
    return found + [name for name in _OTHERS if callable(getattr(model, name, None))]


def describe(model: Any) -> dict[str, Any]:
    """Input and outputs as JSON, found by asking the model once with a row of zeros."""
    features = int(getattr(model, "n_features_in_", -1))
    outputs = []
    names = methods(model)
    if not names:
        raise TypeError(f"{type(model).__name__} has neither predict nor transform")
    for name in names:
        if features < 0:
            raise TypeError(f"{type(model).__name__} does not say how many features it takes (n_features_in_)")
        made = np.asarray(getattr(model, name)(np.zeros((1, features), np.float64)))
        outputs.append({"name": name, "datatype": _datatype(made), "dims": [-1, *made.shape[1:]]})
    return {"type": getattr(model, "kind", type(model).__name__), "features": features, "outputs": outputs}


def _datatype(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.kind in "OUS":
        return "BYTES"
    names = {"f4": "FP32", "f8": "FP64", "i4": "INT32", "i8": "INT64", "b1": "BOOL", "u1": "UINT8"}
    name = names.get(array.dtype.str[1:])
    if name is None:
        raise TypeError(f"it gives an array of {array.dtype}, which no tensor can be")
    return name


def serve(file: Path, library: str) -> type:
    """The `TritonPythonModel` for the model in the file."""

    class TritonPythonModel:
        def initialize(self, args: dict[str, str]) -> None:
            self._model = load(file, library)
            self._methods = methods(self._model)
            self._batching = int(json.loads(args["model_config"])["max_batch_size"]) > 0

        def execute(self, requests: list[Any]) -> list[Any]:
            pb = sys.modules["triton_python_backend_utils"]
            rows = [request.inputs()[0].as_numpy() for request in requests]
            wanted = [set(request.requested_output_names()) or set(self._methods) for request in requests]
            cuts = np.cumsum([len(each) for each in rows])[:-1]
            together = np.concatenate(rows) if len(rows) > 1 else rows[0]
            try:
                made = {name: self._call(name, together, cuts) for name in set().union(*wanted)}
            except Exception as error:  # noqa: BLE001  the model's own code
                failure = pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))
                return [failure] * len(requests)
            return [
                pb.InferenceResponse([pb.Tensor(name, made[name][index]) for name in self._methods if name in names])
                for index, names in enumerate(wanted)
            ]

        def _call(self, name: str, rows: np.ndarray[Any, Any], cuts: Any) -> list[np.ndarray[Any, Any]]:
            array = np.asarray(getattr(self._model, name)(rows))
            if array.dtype.kind == "U":
                array = array.astype(object)
            # A config cannot say that a row is a scalar.
            return np.split(array.reshape(-1, 1) if self._batching and array.ndim == 1 else array, cuts)

    return TritonPythonModel


def main(arguments: list[str]) -> None:
    print(json.dumps(describe(load(Path(arguments[0]), arguments[1]))))  # noqa: T201  the answer of a helper process


if __name__ == "__main__":
    main(sys.argv[1:])
