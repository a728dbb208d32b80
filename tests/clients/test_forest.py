"""Forests in a real server: every format side by side, NVIDIA's clients, batches, reloads, a mixed load."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from sklearn import ensemble
from tritonclient.utils import InferenceServerException

from support.forests import data, lightgbm_model, write_sklearn, xgboost_model
from support.server import Server

pytest.importorskip("treelite", reason="pip install 'conch[forest]'")

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
PROBA = 'backend: "fil" parameters { key: "predict_proba" value { string_value: "true" } }\n'
#: As Triton's own documentation has it, word for word but for sizes.
DOCUMENTED = """
backend: "fil"
max_batch_size: 32768
input [ { name: "input__0" data_type: TYPE_FP32 dims: [ 30 ] } ]
output [ { name: "output__0" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [{ kind: KIND_AUTO }]
parameters [
  { key: "model_type" value: { string_value: "xgboost_json" } },
  { key: "output_class" value: { string_value: "true" } }
]
dynamic_batching {}
"""


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    x, y = data("breast_cancer")
    return {
        "xgboost": xgboost_model(),
        "classes": xgboost_model(),
        "lightgbm": lightgbm_model(),
        "sklearn": ensemble.RandomForestClassifier(12, random_state=0).fit(x, y),
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Any]) -> Path:
    root = tmp_path_factory.mktemp("forests")
    for name in models:
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(DOCUMENTED if name == "classes" else PROBA)
    models["xgboost"].save_model(root / "xgboost" / "1" / "xgboost.ubj")
    models["classes"].save_model(root / "classes" / "1" / "xgboost.json")
    models["lightgbm"].booster_.save_model(root / "lightgbm" / "1" / "model.txt")
    write_sklearn(models["sklearn"], root / "sklearn" / "1" / "checkpoint.tl")
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository, "--model-control-mode=explicit", "--load-model=*") as server:
        server.ready_seconds()
        yield server


def ask(module: Any, url: str, model: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with module.InferenceServerClient(url) as client:
        sent = module.InferInput("input__0", list(x.shape), "FP32")
        sent.set_data_from_numpy(x)
        answer: np.ndarray[Any, Any] = client.infer(model, [sent]).as_numpy("output__0")
        return answer


def expected(models: dict[str, Any], name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    model = models[name]
    answer: np.ndarray[Any, Any] = model.predict(x) if name == "classes" else model.predict_proba(x)
    return answer


@pytest.mark.parametrize("name", ["xgboost", "classes", "lightgbm", "sklearn"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_the_librarys(server: Server, models: dict[str, Any], name: str, protocol: str) -> None:
    """Over both protocols a forest answers as its library does, for one row and for many."""
    module, url = (tritonclient.http, server.http) if protocol == "http" else (tritonclient.grpc, server.grpc)
    x, _ = data("breast_cancer")
    for rows in (1, 7, 569):
        np.testing.assert_allclose(ask(module, url, name, x[:rows]), expected(models, name, x[:rows]), **CLOSE)


def test_a_mixed_load(server: Server, models: dict[str, Any]) -> None:
    """Requests of many sizes to all forests at once get their own rows."""
    x, _ = data("breast_cancer")
    calls = [(name, begin, 1 + begin % 5) for begin in range(40) for name in models]

    def one(call: tuple[str, int, int]) -> None:
        name, begin, rows = call
        part = x[begin : begin + rows]
        np.testing.assert_allclose(
            ask(tritonclient.grpc, server.grpc, name, part), expected(models, name, part), **CLOSE
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, calls))


def test_reload(server: Server, repository: Path, models: dict[str, Any]) -> None:
    """A retrained forest takes the old one's place; a broken one does not."""
    x, _ = data("breast_cancer")
    path = repository / "lightgbm" / "1" / "model.txt"
    retrained = lightgbm_model(n_estimators=5)
    with tritonclient.http.InferenceServerClient(server.http) as client:
        path.write_text("no forest")
        with pytest.raises(InferenceServerException, match=r"unable to read '.*model\.txt' as lightgbm: Check failed"):
            client.load_model("lightgbm")
        np.testing.assert_allclose(
            ask(tritonclient.http, server.http, "lightgbm", x), models["lightgbm"].predict_proba(x), **CLOSE
        )
        retrained.booster_.save_model(path)
        client.load_model("lightgbm")
        np.testing.assert_allclose(
            ask(tritonclient.http, server.http, "lightgbm", x), retrained.predict_proba(x), **CLOSE
        )
        models["lightgbm"] = retrained


def test_wrong_shapes_and_types(server: Server) -> None:
    """Requests that do not fit get one sentence."""
    x, _ = data("breast_cancer")
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'input__0' for model 'xgboost'"):
        ask(tritonclient.http, server.http, "xgboost", x[:, :7])
    with tritonclient.http.InferenceServerClient(server.http) as client:
        sent = tritonclient.http.InferInput("input__0", [1, 30], "FP64")
        sent.set_data_from_numpy(np.zeros((1, 30)))
        with pytest.raises(InferenceServerException, match="data-type is 'FP64', but model 'xgboost' expects 'FP32'"):
            client.infer("xgboost", [sent])
