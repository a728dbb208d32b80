"""Forests of every format agree with the libraries that trained them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import ensemble

from conch.backend.forest import backend
from conch.types.error import InferError
from support.forests import (
    ask,
    data,
    forest_config,
    lightgbm_model,
    load,
    with_missing,
    write_sklearn,
    xgboost_model,
)

pytestmark = pytest.mark.slow

#: Sums of the same leaves in another order and in 32 bits.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ENGINES = ["auto", "treelite", "library"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("filename", ["xgboost.json", "xgboost.ubj", "xgboost.model"])
def test_xgboost_probabilities(tmp_path: Path, filename: str, engine: str) -> None:
    """A file of XGBoost in any of its formats gives XGBoost's own probabilities, values missing or not."""
    model = xgboost_model()

    def save(path: str) -> None:
        # XGBoost takes the format from the name, and warns of names that it does not know.
        written = Path(path).with_suffix(".json" if path.endswith(".json") else ".ubj")
        model.save_model(written)
        written.rename(path)

    served = load(tmp_path, save, filename, forest_config(predict_proba="true", conch_forest_engine=engine))
    x = with_missing(data("breast_cancer")[0])
    np.testing.assert_allclose(ask(served, x), model.predict_proba(x), **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_lightgbm_probabilities(tmp_path: Path, name: str, engine: str) -> None:
    """A text file of LightGBM gives LightGBM's own probabilities, for two classes and for three."""
    model = lightgbm_model(name)
    config = forest_config(predict_proba="true", conch_forest_engine=engine)
    served = load(tmp_path, model.booster_.save_model, "model.txt", config)
    x = with_missing(data(name)[0])
    np.testing.assert_allclose(ask(served, x), model.predict_proba(x), **CLOSE)


@pytest.mark.parametrize(("engine", "kept"), [("auto", False), ("treelite", True)])
def test_one_copy_of_the_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, kept: bool) -> None:
    """treelite's is let go of where another engine computes, as long as the model is served."""
    read: list[weakref.ref[Any]] = []
    models = []

    class Kept(backend.ForestModel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            read.append(weakref.ref(self._forest))
            models.append(self)

    monkeypatch.setattr(backend, "ForestModel", Kept)
    config = forest_config(predict_proba="true", conch_forest_engine=engine)
    load(tmp_path, xgboost_model().save_model, "xgboost.json", config)
    gc.collect()
    assert [(model() is not None) for model in read] == [kept]


def test_one_against_all(tmp_path: Path) -> None:
    """Scores that are no distribution stay as the library has them."""
    model = lightgbm_model("iris", objective="multiclassova")
    served = load(tmp_path, model.booster_.save_model, "model.txt", forest_config(predict_proba="true"))
    x, _ = data("iris")
    np.testing.assert_allclose(ask(served, x), model.booster_.predict(x), **CLOSE)


@pytest.mark.parametrize("engine", ["auto", "treelite"])
@pytest.mark.parametrize(
    "estimator",
    [
        ensemble.RandomForestClassifier(12, random_state=0),
        ensemble.ExtraTreesClassifier(12, random_state=0),
        ensemble.GradientBoostingClassifier(n_estimators=12, random_state=0),
        ensemble.HistGradientBoostingClassifier(max_iter=12, random_state=0),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_sklearn_classifiers(tmp_path: Path, estimator: Any, name: str, engine: str) -> None:
    """A forest of scikit-learn's, as treelite's checkpoint, gives scikit-learn's own probabilities."""
    x, y = data(name)
    estimator.fit(x, y)
    served = load(
        tmp_path,
        lambda path: write_sklearn(estimator, Path(path)),
        "checkpoint.tl",
        forest_config(predict_proba="true", conch_forest_engine=engine),
    )
    np.testing.assert_allclose(ask(served, x), estimator.predict_proba(x), **CLOSE)


@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_classes(tmp_path: Path, name: str) -> None:
    """Without predict_proba a classifier answers with classes, one number a row, in one dimension as FIL has it."""
    model = xgboost_model(name)
    served = load(tmp_path, model.save_model, "xgboost.json")
    x, _ = data(name)
    answers = ask(served, x)
    assert answers.shape == (len(x),)
    np.testing.assert_array_equal(answers, model.predict(x))


def test_threshold(tmp_path: Path) -> None:
    """`threshold` is the score above which a binary classifier says 1."""
    model = xgboost_model()
    served = load(tmp_path, model.save_model, "xgboost.json", forest_config(threshold="0.8"))
    x, _ = data("breast_cancer")
    np.testing.assert_array_equal(ask(served, x), model.predict_proba(x)[:, 1] > 0.8)


def test_scores_of_a_classifier_as_of_a_regressor(tmp_path: Path) -> None:
    """With is_classifier false a binary classifier answers with its score."""
    model = xgboost_model()
    served = load(tmp_path, model.save_model, "xgboost.json", forest_config(is_classifier="false"))
    x, _ = data("breast_cancer")
    np.testing.assert_allclose(ask(served, x), model.predict_proba(x)[:, 1], **CLOSE)


def test_one_score_of_two(tmp_path: Path) -> None:
    """A binary classifier whose output has dims [ 1 ] says the score of class 1 alone."""
    model = xgboost_model()
    config = forest_config(predict_proba="true")
    config.output.add(name="output__0", data_type="TYPE_FP32", dims=[1])
    served = load(tmp_path, model.save_model, "xgboost.json", config)
    x, _ = data("breast_cancer")
    np.testing.assert_allclose(ask(served, x), model.predict_proba(x)[:, 1], **CLOSE)


@pytest.mark.parametrize("objective", ["reg:squarederror", "count:poisson", "reg:gamma", "reg:absoluteerror"])
def test_xgboost_regression(tmp_path: Path, objective: str) -> None:
    """Regressors answer with what their objective says, not with its logarithm."""
    model = xgboost_model("diabetes", objective=objective)
    served = load(tmp_path, model.save_model, "xgboost.ubj")
    x, _ = data("diabetes")
    np.testing.assert_allclose(ask(served, x), model.predict(x), rtol=1e-4)


def test_lightgbm_regression(tmp_path: Path) -> None:
    """Numbers of 64 bits are added up as such where the output asks for them."""
    model = lightgbm_model("diabetes")
    config = forest_config()
    config.input.add(name="input__0", data_type="TYPE_FP64", dims=[10])
    config.output.add(name="output__0", data_type="TYPE_FP64", dims=[1])
    config.max_batch_size = 1024
    served = load(tmp_path, model.booster_.save_model, "model.txt", config)
    x = data("diabetes")[0].astype(np.float64)
    np.testing.assert_allclose(ask(served, x), model.predict(x), rtol=1e-12)


def test_several_targets(tmp_path: Path) -> None:
    """A forest that was trained on several targets answers with all of them."""
    x, y = data("diabetes")
    both = np.stack([y, -y], axis=1)
    estimator = ensemble.RandomForestRegressor(12, random_state=0).fit(x, both)
    served = load(tmp_path, lambda path: write_sklearn(estimator, Path(path)), "checkpoint.tl")
    np.testing.assert_allclose(ask(served, x), estimator.predict(x), rtol=1e-5)


def test_isolation_forest(tmp_path: Path) -> None:
    """An isolation forest answers with the outlier scores of its trees' depths."""
    x, _ = data("iris")
    estimator = ensemble.IsolationForest(n_estimators=12, random_state=0).fit(x)
    served = load(tmp_path, lambda path: write_sklearn(estimator, Path(path)), "checkpoint.tl")
    np.testing.assert_allclose(ask(served, x), -estimator.score_samples(x), rtol=1e-4)


def test_categories(tmp_path: Path) -> None:
    """Splits by categories, which ONNX's trees do not have, are computed all the same."""
    lightgbm = pytest.importorskip("lightgbm", reason="pip install lightgbm")
    chance = np.random.default_rng(0)
    x = np.column_stack([chance.integers(0, 12, 600), chance.normal(size=600)]).astype(np.float32)
    y = np.isin(x[:, 0], [1, 4, 7]) ^ (x[:, 1] > 1)
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, "cat_smooth": 1.0},
        lightgbm.Dataset(x, y, categorical_feature=[0]),
        12,
    )
    served = load(tmp_path, booster.save_model, "model.txt", forest_config(is_classifier="false"))
    x[::7, 0] = 99
    x[::9, 0] = np.nan
    np.testing.assert_allclose(ask(served, x), booster.predict(x), **CLOSE)


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize(("name", "width"), [("breast_cancer", 31), ("iris", 15)])
def test_shapley_values(tmp_path: Path, library: str, name: str, width: int) -> None:
    """An output called treeshap_output holds what each feature adds, and the bias, for each class."""
    model = xgboost_model(name) if library == "xgboost" else lightgbm_model(name)
    save = model.save_model if library == "xgboost" else model.booster_.save_model
    config = forest_config(predict_proba="true")
    config.max_batch_size = 1024
    x, y = data(name)
    config.output.add(name="output__0", data_type="TYPE_FP32", dims=[y.max() + 1])
    config.output.add(name="treeshap_output", data_type="TYPE_FP32", dims=[width])
    served = load(tmp_path, save, "xgboost.json" if library == "xgboost" else "model.txt", config)
    values = ask(served, x, "treeshap_output")
    assert values.shape == (len(x), width)
    # They add up to the score before it is made a probability.
    classes = width // (x.shape[1] + 1)
    sums = values.reshape(len(x), classes, -1).sum(axis=2)
    proba = ask(served, x)
    expected = np.log(proba) - np.log(proba).mean(axis=1, keepdims=True)
    if classes == 1:
        np.testing.assert_allclose(sums[:, 0], np.log(proba[:, 1] / proba[:, 0]), rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(sums - sums.mean(axis=1, keepdims=True), expected, rtol=1e-3, atol=1e-3)


def test_a_batch_of_requests(tmp_path: Path) -> None:
    """Requests that share a batch get their own rows."""
    model = xgboost_model("iris")
    served = load(tmp_path, model.save_model, "xgboost.json", forest_config(predict_proba="true"))
    x, _ = data("iris")
    parts = [x[:1], x[1:4], x[4:5]]
    outcomes = served.run(*[served.request({"input__0": part}) for part in parts])
    for part, outcome in zip(parts, outcomes, strict=True):
        assert not isinstance(outcome, InferError)
        tensor = outcome["output__0"]
        answer = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
        np.testing.assert_allclose(answer, model.predict_proba(part), **CLOSE)


def test_unaligned_bytes(tmp_path: Path) -> None:
    """A tensor that begins at any byte of a body is read all the same."""
    model = xgboost_model("iris")
    served = load(tmp_path, model.save_model, "xgboost.json", forest_config(predict_proba="true"))
    x, _ = data("iris")
    request = served.request({"input__0": x})
    request.data = (memoryview(b"\0" + x.tobytes())[1:],)
    outcome = served.run(request)[0]
    assert isinstance(outcome, dict)
    answers = np.frombuffer(outcome["output__0"].data, np.float32).reshape(-1, 3)
    np.testing.assert_allclose(answers, model.predict_proba(x), **CLOSE)


def test_a_model_that_does_not_batch(tmp_path: Path) -> None:
    """With max_batch_size 0 rows are a dimension of the config."""
    model = xgboost_model("iris")
    config = forest_config(predict_proba="true")
    config.input.add(name="input__0", data_type="TYPE_FP32", dims=[-1, 4])
    served = load(tmp_path, model.save_model, "xgboost.json", config)
    x, _ = data("iris")
    assert served.config.max_batch_size == 0
    np.testing.assert_allclose(ask(served, x), model.predict_proba(x), **CLOSE)
