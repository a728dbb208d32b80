"""scikit-learn estimators and pipelines, written as ONNX by skl2onnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conch.export.api import Array, Call, ExportError, Written
from conch.export.examples import Example
from conch.export.runtimes import need
from conch.types.dtype import FP32


def open_estimator(path: Path, *, trusted: bool) -> Any:
    """Raises ExportError; above all where nobody has said that the file may run code."""
    if not path.is_file():
        raise ExportError(f"there is no {path}")
    if not trusted:
        raise ExportError(
            f"{path} is a pickle: opening it runs whatever code is in it",
            "say --trusted if you made it yourself or trust who did",
        )
    joblib = need("joblib", "export")
    need("sklearn", "export")
    try:
        return joblib.load(path)
    except Exception as error:  # noqa: BLE001  a pickle raises what it likes
        raise ExportError(f"{path} cannot be opened: {type(error).__name__}: {error}") from None


def example(estimator: Any, given: list[Example]) -> Example:
    """The estimator's one input: rows of features. Raises ExportError."""
    if len(given) > 1:
        raise ExportError("an estimator has one input", "one --example x=FP32:8,FEATURES")
    count = getattr(estimator, "n_features_in_", None)
    if given:
        return given[0]
    if count is None:
        raise ExportError(
            f"{type(estimator).__name__} does not say how many features it takes",
            "fit it before saving, or say --example x=FP32:8,FEATURES",
        )
    return Example("x", FP32, (8, int(count)))


def caller(estimator: Any, name: str) -> Call:
    """What skl2onnx's graph gives, by the estimator itself."""

    def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs[name]
        if hasattr(estimator, "predict_proba"):
            return {
                "label": _labels(estimator.predict(x)),
                "probabilities": estimator.predict_proba(x).astype(np.float32),
            }
        if hasattr(estimator, "predict"):
            found = np.asarray(estimator.predict(x))
            if _classifies(estimator):
                scores = np.asarray(estimator.decision_function(x), np.float32)
                return {"label": _labels(found), "probabilities": scores}
            return {"variable": found.astype(np.float32).reshape(len(x), -1)}
        return {"variable": np.asarray(estimator.transform(x), np.float32)}

    return call


def write(estimator: Any, one: Example) -> Written:
    skl2onnx = need("skl2onnx", "export")
    options = {id(estimator): {"zipmap": False}} if _classifies(estimator) else None
    sample = np.zeros(one.shape, one.datatype.numpy)
    try:
        made = skl2onnx.to_onnx(estimator, sample, options=options, name="model", target_opset=17)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise ExportError(f"skl2onnx cannot write {type(estimator).__name__}: {text}") from error
    for entry in made.graph.input:
        _rename(made, entry, one.name)
    return Written("model.onnx", made.SerializeToString(), "onnxruntime")


def _rename(model: Any, entry: Any, name: str) -> None:
    """skl2onnx calls the input `X`."""
    old, entry.name = entry.name, name
    for node in model.graph.node:
        for place, each in enumerate(node.input):
            if each == old:
                node.input[place] = name


def _classifies(estimator: Any) -> bool:
    from sklearn.base import is_classifier  # noqa: PLC0415  it is there by now

    return bool(is_classifier(estimator))


def _labels(found: Any) -> Array:
    labels = np.asarray(found)
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels.astype(object)
