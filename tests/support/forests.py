"""Forests trained on bundled data, in every format that Triton's FIL backend reads; and one call that loads one.

Tests that need a library which is not installed skip by `pytest.importorskip` when they ask for it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.forest import ForestBackend
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from support.onnx_models import Served, make_spec

Array = np.ndarray[Any, Any]


@cache
def data(name: str) -> tuple[Array, Array]:
    """`iris` (3 classes), `breast_cancer` (2 classes) or `diabetes` (numbers); features as FP32."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x.astype(np.float32), y


def with_missing(x: Array) -> Array:
    """`x` with a tenth of its values gone."""
    holes = np.random.default_rng(1).random(x.shape) < 0.1
    return np.where(holes, np.float32("nan"), x)


def xgboost_model(name: str = "breast_cancer", **options: Any) -> Any:
    xgboost = pytest.importorskip("xgboost", reason="pip install xgboost-cpu==3.2.0")
    x, y = data(name)
    kind = xgboost.XGBRegressor if name == "diabetes" else xgboost.XGBClassifier
    return kind(**({"n_estimators": 12, "max_depth": 3, "n_jobs": 1} | options)).fit(x, y)


def lightgbm_model(name: str = "breast_cancer", **options: Any) -> Any:
    lightgbm = pytest.importorskip("lightgbm", reason="pip install lightgbm")
    x, y = data(name)
    kind = lightgbm.LGBMRegressor if name == "diabetes" else lightgbm.LGBMClassifier
    return kind(**({"n_estimators": 12, "num_leaves": 7, "n_jobs": 1, "verbose": -1} | options)).fit(x, y)


def write_sklearn(estimator: Any, path: Path) -> None:
    """As a checkpoint of treelite, the way that Triton's users take."""
    treelite = pytest.importorskip("treelite", reason="pip install 'conch[forest]'")
    treelite.sklearn.import_model(estimator).serialize(str(path))


def forest_config(**parameters: str) -> ModelConfig:
    config = ModelConfig(name="forest", backend="fil")
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def load(
    directory: Path,
    save: Callable[[str], Any],
    filename: str,
    config: ModelConfig | None = None,
    settings: Mapping[str, str] | None = None,
) -> Served:
    """Have `save` write the model, complete its config, load it, and make one instance."""
    pytest.importorskip("treelite", reason="pip install 'conch[forest]'")
    folder = directory / "1"
    folder.mkdir(exist_ok=True)
    save(str(folder / filename))
    return open_forest(directory, config, settings)


def open_forest(
    directory: Path, config: ModelConfig | None = None, settings: Mapping[str, str] | None = None
) -> Served:
    """The model that lies in `directory`."""
    loop = asyncio.new_event_loop()
    loop.close()
    host = Host(loop, settings or {}, 2)
    config = config or forest_config()
    backend, files, stats = ForestBackend(), ModelFiles(directory, 1), ModelStats()
    backend.complete(config, files, host)
    spec = make_spec(config)
    loaded = backend.load(config, spec, files, host, stats)
    return Served(config, spec, stats, loaded.instance(Placement("forest_0_0", "CPU")))


def ask(served: Served, x: Array, output: str = "output__0") -> Array:
    """What the model says of the rows `x`, as the client would have it."""
    outcome = served.run(served.request({"input__0": x}))[0]
    assert isinstance(outcome, dict), outcome
    tensor = outcome[output]
    return np.frombuffer(tensor.data, tensor.datatype.numpy).reshape(tensor.shape)
