"""What a forest's config says, what is filled into it, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from sklearn import ensemble

from conch.backend.forest.options import plan_forest
from conch.backend.forest.reading import treelite
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError
from support.forests import data, forest_config, lightgbm_model, load, open_forest, write_sklearn, xgboost_model

pytestmark = pytest.mark.slow


def refused(call: Callable[[], Any]) -> InferError:
    with pytest.raises(InferError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [
        ("breast_cancer", {}, 1),
        ("breast_cancer", {"predict_proba": "true"}, 2),
        ("breast_cancer", {"is_classifier": "false"}, 1),
        ("iris", {}, 1),
        ("iris", {"predict_proba": "true"}, 3),
        ("iris", {"output_class": "false"}, 3),
        ("diabetes", {}, 1),
    ],
)
def test_a_config_without_tensors_is_completed(
    tmp_path: Path, name: str, parameters: dict[str, str], width: int
) -> None:
    """Names, features, the output's width and a batcher come from the file."""
    model = xgboost_model(name)
    config = load(tmp_path, model.save_model, "xgboost.json", forest_config(**parameters)).config
    expected = ModelConfig()
    text_format.Parse(
        f"""name: "forest" backend: "fil" max_batch_size: 8192 dynamic_batching {{}}
        input {{ name: "input__0" data_type: TYPE_FP32 dims: {data(name)[0].shape[1]} }}
        output {{ name: "output__0" data_type: TYPE_FP32 dims: {width} }}""",
        expected,
    )
    for key, value in parameters.items():
        expected.parameters[key].string_value = value
    assert config == expected


def test_the_operators_batch_size_wins(tmp_path: Path) -> None:
    """`default-max-batch-size` of the command line takes the place of ours, and the config's of both."""
    save = xgboost_model("iris").save_model
    settings = {"default-max-batch-size": "16"}
    assert load(tmp_path, save, "xgboost.json", None, settings).config.max_batch_size == 16
    config = forest_config()
    config.max_batch_size = 3
    assert load(tmp_path, save, "xgboost.json", config, settings).config.max_batch_size == 3


def test_a_file_of_any_name(tmp_path: Path) -> None:
    """default_model_filename names the file, its ending the format."""
    config = forest_config()
    config.default_model_filename = "mine.json"
    assert load(tmp_path, xgboost_model("iris").save_model, "mine.json", config).config.input[0].dims == [4]


@pytest.mark.parametrize(
    ("parameters", "code", "message"),
    [
        ({"model_type": "onnx"}, Code.UNSUPPORTED, "onnx not recognized as a valid serialization format."),
        (
            {"predict_proba": "yes"},
            Code.INTERNAL,
            "Expected 'true' or 'false' for parameter 'predict_proba', got: 'yes'",
        ),
        ({"threshold": "half"}, Code.INVALID_ARG, "Bad input for parameter threshold"),
        ({"threshold": "nan"}, Code.INVALID_ARG, "Bad input for parameter threshold"),
        ({"cpu_nthread": "two"}, Code.INVALID_ARG, "Bad input for parameter cpu_nthread"),
        ({"storage_type": "THICK"}, Code.INVALID_ARG, "Bad input for parameter storage_type"),
        ({"blocks_per_sm": "many"}, Code.INVALID_ARG, "Bad input for parameter blocks_per_sm"),
        (
            {"conch_forest_engine": "abacus"},
            Code.INVALID_ARG,
            (
                "parameter 'conch_forest_engine' of model 'forest' is 'abacus', "
                "expected one of auto, library, onnxruntime, treelite"
            ),
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_values_out_of_range(parameters: dict[str, str], code: Code, message: str) -> None:
    """A parameter that cannot be meant is refused, in FIL's words."""
    error = refused(lambda: plan_forest(forest_config(**parameters), {}))
    assert (error.code, error.message) == (code, message)


def test_what_has_no_effect_is_named() -> None:
    """Parameters of GPUs, and those that nobody knows, are accepted with a note."""
    config = forest_config(algo="NAIVE", storage_type="SPARSE", blocks_per_sm="2", colour="red", conch_padding="{}")
    assert plan_forest(config, {"depth": "3", "auto-complete-config": "true"}).notes == (
        "model 'forest': algo, blocks_per_sm, storage_type steer GPUs and have no effect: forests run on CPUs here",
        "model 'forest': parameter 'colour' is not one that the fil backend knows, it has no effect",
        "model 'forest': backend setting 'depth' is not one that the fil backend knows, it has no effect",
    )


def test_notes_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are written to the log at load, once."""
    with caplog.at_level(logging.WARNING):
        load(tmp_path, xgboost_model("iris").save_model, "xgboost.json", forest_config(algo="NAIVE"))
    assert [record.getMessage() for record in caplog.records] == [
        "model 'forest': algo steer GPUs and have no effect: forests run on CPUs here"
    ]


IN = 'input { name: "input__0" data_type: TYPE_FP32 dims: 4 }'
OUT = 'output { name: "output__0" data_type: TYPE_FP32 dims: 1 }'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            IN.replace("dims: 4", "dims: 5") + OUT,
            "'input__0' has dims [5], the model has 4 features a row",
        ),
        (
            IN.replace("TYPE_FP32", "TYPE_INT32") + OUT,
            "'input__0' has data_type TYPE_INT32",
        ),
        (IN.replace("input__0", "x") + OUT, "configuration has the inputs ['x'], forests have one: 'input__0'"),
        (
            IN + OUT.replace("output__0", "y"),
            "configuration has the outputs ['y'], forests have 'output__0' and may have 'treeshap_output'",
        ),
        (IN + OUT.replace("dims: 1", "dims: 3"), "'output__0' has dims [3], the model has 1 values a row"),
        (
            IN + OUT + OUT.replace("output__0", "treeshap_output"),
            "'treeshap_output' has dims [1], the model has 15 Shapley values a row",
        ),
    ],
)
def test_tensors_that_the_forest_does_not_have(tmp_path: Path, text: str, message: str) -> None:
    """A config that does not fit its forest is refused with both sides named."""
    config = text_format.Parse(text, forest_config())
    config.max_batch_size = 8
    error = refused(lambda: load(tmp_path, xgboost_model("iris").save_model, "xgboost.json", config))
    assert (error.code, error.message) == (Code.INVALID_ARG, f"unable to load model 'forest', {message}")


def test_probabilities_of_a_regressor(tmp_path: Path) -> None:
    """predict_proba asks for something that a regressor does not have."""
    save = xgboost_model("diabetes").save_model
    error = refused(lambda: load(tmp_path, save, "xgboost.json", forest_config(predict_proba="true")))
    assert error.message == "unable to load model 'forest', predict_proba is true for a model that is no classifier"


def test_shapley_values_of_a_checkpoint(tmp_path: Path) -> None:
    """Checkpoints have no library that could explain them."""
    estimator = ensemble.RandomForestClassifier(3, random_state=0).fit(*data("iris"))
    config = text_format.Parse(
        IN + OUT + OUT.replace("output__0", "treeshap_output").replace("dims: 1", "dims: 15"), forest_config()
    )
    config.max_batch_size = 8
    error = refused(lambda: load(tmp_path, lambda path: write_sklearn(estimator, Path(path)), "checkpoint.tl", config))
    assert (error.code, error.message) == (
        Code.UNSUPPORTED,
        "unable to load model 'forest', output 'treeshap_output' needs a model file of XGBoost or LightGBM",
    )


def test_no_file(tmp_path: Path) -> None:
    """A folder without the file that the format has is refused with the path that was looked for."""
    pytest.importorskip("treelite", reason="pip install 'conch[forest]'")
    (tmp_path / "1").mkdir()
    error = refused(lambda: open_forest(tmp_path))
    assert (error.code, error.message) == (
        Code.UNAVAILABLE,
        f"unable to find '{tmp_path}/1/xgboost.model' for model 'forest'",
    )


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    """A pickle would run code: the error says how to convert it."""
    pytest.importorskip("treelite", reason="pip install 'conch[forest]'")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.pkl").touch()
    error = refused(lambda: open_forest(tmp_path))
    assert "'model.pkl' is a pickle, which runs code when it is read" in error.message
    assert 'serialize("checkpoint.tl")' in error.hint


@pytest.mark.parametrize("filename", ["xgboost.json", "xgboost.ubj", "model.txt", "checkpoint.tl"])
@pytest.mark.parametrize("content", ["cut", "text", "empty"])
def test_broken_files(tmp_path: Path, filename: str, content: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that is cut off, or no forest at all, is one error that names the file and the format."""
    estimator = ensemble.RandomForestClassifier(9, random_state=0).fit(*data("iris"))
    save = {
        "model.txt": lightgbm_model("iris").booster_.save_model,
        "checkpoint.tl": lambda path: write_sklearn(estimator, Path(path)),
    }.get(filename, xgboost_model("iris").save_model)

    def spoil(path: str) -> None:
        save(path)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(
            {"cut": whole[: len(whole) * 2 // 3], "text": b"no forest\n" * 99, "empty": b""}[content]
        )

    error = refused(lambda: load(tmp_path, spoil, filename))
    assert error.code is Code.UNKNOWN
    assert error.message.startswith(f"unable to read '{tmp_path}/1/{filename}' as ")
    assert "\n" not in error.message


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without treelite the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "treelite", None)
    error = refused(treelite)
    assert error.message.startswith("unable to find backend library for backend 'fil'")
    assert error.hint.startswith("pip install 'conch[forest]'")


def test_without_onnx_runtime_treelite_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing package makes forests slower, not absent, and the log says so."""
    save = xgboost_model("iris").save_model
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with caplog.at_level(logging.INFO):
        served = load(tmp_path, save, "xgboost.json")
    assert served.config.input[0].dims == [4]
    assert "the package onnxruntime is not installed" in caplog.text


def test_an_engine_that_cannot_be(tmp_path: Path) -> None:
    """An engine asked for by name is used or refused, never replaced."""
    estimator = ensemble.RandomForestClassifier(3, random_state=0).fit(*data("iris"))
    config = forest_config(conch_forest_engine="library")
    error = refused(lambda: load(tmp_path, lambda path: write_sklearn(estimator, Path(path)), "checkpoint.tl", config))
    assert error.message == (
        "unable to load model 'forest', conch_forest_engine 'library' cannot run its forest: "
        "a checkpoint of treelite has no library of its own"
    )


def test_an_engine_that_disagrees_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before ONNX Runtime's trees are used they are compared with treelite."""
    from conch.backend.forest import engine

    compute = engine.Compiled.__call__
    monkeypatch.setattr(engine.Compiled, "__call__", lambda self, x: compute(self, x) + np.float32(1e-3))
    config = forest_config(conch_forest_engine="onnxruntime")
    error = refused(lambda: load(tmp_path, xgboost_model("iris").save_model, "xgboost.json", config))
    assert "its answers differ from treelite's by 0.001" in error.message
