"""`conch export`: entries that the server can serve, and outputs that agree or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.api import ModelFiles, Placement
from conch.backend.find import find_backend
from conch.cli.export import main
from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.rules import validate
from conch.config.spec import model_spec
from conch.export.agreement import compare
from conch.export.api import ExportError, Tolerance
from conch.export.examples import Example, arrays, parse_example
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import FP32, INT64
from conch.types.tensor import to_numpy
from support.onnx_models import Served, make_host

SOURCE = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(50, 4)
        self.out = torch.nn.Linear(4, 3)

    def forward(self, ids, weight, scale=None):
        found = (self.words(ids) * weight.unsqueeze(-1)).mean(1)
        return {"scores": self.out(found), "mean": found}


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x * 3 if torch.jit.is_tracing() else x * 2


class Alone(torch.nn.Module):
    def forward(self, x):
        return x.mean(0, keepdim=True)


def make_model():
    return Net()
"""
EXAMPLES = ("--example", "ids=INT64:2,6+:0..50", "--example", "weight=FP32:2,6+")


def source(folder: Path) -> str:
    path = folder / "net.py"
    path.write_text(SOURCE)
    return f"{path}:make_model"


def served(folder: Path) -> Served:
    """The entry as the server would open it."""
    config = parse_text((folder / "config.pbtxt").read_text(), "config.pbtxt")
    normalize(config)
    files, host = ModelFiles(folder, 1), make_host({})
    backend = find_backend(config.backend)
    backend.complete(config, files, host)
    validate(config, check_io=True)
    spec, stats = model_spec(config, 1), ModelStats()
    return Served(config, spec, stats, backend.load(config, spec, files, host, stats).instance(Placement("m_0", "CPU")))


def ask(model: Served, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    answer = model.run(model.request(inputs))[0]
    assert isinstance(answer, dict), answer
    return {name: to_numpy(each.datatype, each.shape, each.data) for name, each in answer.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torchscript", "pt2", "openvino"])
def test_modules_become_entries(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """A module of nested results and open sizes is written in each format, and the entry is served and agrees."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for package in {"onnx": ["onnx"], "openvino": ["onnx", "openvino"]}.get(form, []):
        pytest.importorskip(package)
    code = main(["torch", source(tmp_path), "--to", form, *EXAMPLES, "--into", str(tmp_path / "models")])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "largest differences:\n  scores: " in said.out
    if form == "openvino":
        pytest.importorskip("conch.backend.openvino.backend")
    model = served(tmp_path / "models/net")
    assert {each.name: list(each.dims) for each in model.config.input} == {"ids": [-1], "weight": [-1]}
    assert {each.name: list(each.dims) for each in model.config.output} == {"scores": [3], "mean": [4]}
    given = {"ids": np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), "weight": np.ones((3, 3), np.float32)}
    space: dict[str, Any] = {}
    exec(SOURCE, space)
    with torch.no_grad():
        expected = space["make_model"]().eval()(**{name: torch.from_numpy(each) for name, each in given.items()})
    for name, found in ask(model, given).items():
        # Sums in another order.
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=1e-4, atol=1e-5)


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said where nothing is written."""
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


def test_wrong_exports_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An exported graph that computes something else is refused, with the largest difference, and leaves nothing."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    place = source(tmp_path).replace("make_model", "Fixed")
    into = tmp_path / "models"
    text = failed(capsys, "torch", place, "--to", "torchscript", "--example", "x=FP32:2,3", "--into", str(into))
    assert "differs by" in text
    assert "nothing was written" in text
    assert not into.exists()


def test_outputs_without_a_batch_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result whose first dimension does not follow the batch cannot be served in batches; --no-batch serves it."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    place, into = source(tmp_path).replace("make_model", "Alone"), str(tmp_path / "models")
    arguments = ["torch", place, "--to", "torchscript", "--example", "x=FP32:2,3", "--into", into]
    assert "its first dimension is no batch" in failed(capsys, *arguments)
    assert main([*arguments, "--no-batch"]) == 0
    assert served(tmp_path / "models/net").config.max_batch_size == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "PyTorch does not say what a model takes"),
        (("--example", "ids=INT64:2,6"), "forward needs 'weight'"),
        (("--example", "idz=INT64:2,6"), "forward has no argument 'idz' (it has ids, weight, scale)"),
        (("--example", "ids=INT7:2"), "write NAME=TYPE:DIMS"),
        (("--example", "ids=INT64:2,x"), "'x' is no size"),
        (("--example", "ids=INT64:2,3:9..1"), "'9..1' is no range"),
    ],
)
def test_wrong_examples_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    """What is wrong with an example is said in one sentence, with what would be right."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert text in failed(capsys, "torch", source(tmp_path), *arguments)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("net.py", "does not say where the model is"),
        ("other.py:make_model", "there is no"),
        ("net.py:missing", "has no 'missing'"),
        ("net.py:torch", "expected a torch.nn.Module"),
    ],
)
def test_wrong_places_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, text: str) -> None:
    """FILE.py:NAME is checked before anything is made."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    source(tmp_path)
    assert text in failed(capsys, "torch", str(tmp_path / place), "--example", "x=FP32:1")


def test_models_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that is there stays, unless --force says otherwise."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    arguments = ["torch", source(tmp_path), "--to", "pt2", *EXAMPLES, "--into", str(tmp_path / "models")]
    assert main(arguments) == 0
    assert "is there already (say --force to replace it)" in failed(capsys, *arguments)
    assert main([*arguments, "--force"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "regressor", "pipeline"])
def test_estimators_become_entries(tmp_path: Path, kind: str) -> None:
    """scikit-learn models trained on real data are written as ONNX and give the same labels and numbers."""
    joblib = pytest.importorskip("joblib")
    pytest.importorskip("skl2onnx")
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    iris = datasets.load_iris()
    estimator = {
        "classifier": RandomForestClassifier(n_estimators=5, random_state=0),
        "regressor": Ridge(),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)),
    }[kind].fit(iris.data, iris.target)
    joblib.dump(estimator, tmp_path / "iris.joblib")
    assert main(["sklearn", str(tmp_path / "iris.joblib"), "--trusted", "--into", str(tmp_path / "models")]) == 0
    model = served(tmp_path / "models/iris")
    x = iris.data[:8].astype(np.float32)
    found = ask(model, {"x": x})
    if kind == "regressor":
        np.testing.assert_allclose(found["variable"][:, 0], estimator.predict(x), rtol=1e-4)
    else:
        assert found["label"].ravel().tolist() == estimator.predict(x).tolist()
        np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(x), rtol=1e-4, atol=1e-5)


def test_pickles_are_opened_only_when_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle runs code as it is opened: without --trusted it stays closed."""
    (tmp_path / "m.joblib").write_bytes(b"never read")
    assert "opening it runs whatever code is in it" in failed(capsys, "sklearn", str(tmp_path / "m.joblib"))
    assert "cannot be opened" in failed(capsys, "sklearn", str(tmp_path / "m.joblib"), "--trusted")


@pytest.mark.slow
def test_transformers_become_entries(tmp_path: Path) -> None:
    """A folder of Transformers is exported with its usual inputs, whose length is open."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("onnx")
    settings = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    transformers.BertForSequenceClassification(settings).save_pretrained(tmp_path / "bert")
    code = main(["transformers", str(tmp_path / "bert"), "--into", str(tmp_path / "models"), "--max-batch-size", "4"])
    assert code == 0
    model = served(tmp_path / "models/bert")
    assert [each.name for each in model.config.input] == ["input_ids", "attention_mask", "token_type_ids"]
    ones = np.ones((2, 9), np.int64)
    found = ask(model, {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones * 0})
    assert found["logits"].shape == (2, 3)


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without config.json is no folder of Transformers."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert "is no folder of Transformers" in failed(capsys, "transformers", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NobodysModel"]}))
    assert "knows no NobodysModel" in failed(capsys, "transformers", str(tmp_path))


def test_examples_say_names_types_and_sizes() -> None:
    """A plus opens a size, a span bounds whole numbers, and the batch is changed apart from them."""
    found = parse_example("ids=INT64:2,16+:5..9")
    assert found == Example("ids", INT64, (2, 16), frozenset({1}), 5, 9)
    made = arrays([found, Example("x", FP32, (2, 3))], rows=4, more=1)
    assert {name: each.shape for name, each in made.items()} == {"ids": (4, 17), "x": (4, 3)}
    assert (made["ids"].min(), made["ids"].max()) >= (5, 5)
    assert made["ids"].max() < 9


@pytest.mark.parametrize(
    ("expected", "found", "largest", "enough"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, True),
        ([1.0, 100.0], [1.0, 100.005], 0.005, True),
        ([1.0, 100.0], [1.0, 100.05], 0.05, False),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0, True),
        ([np.inf, 1.0], [1.0, 1.0], None, False),
        ([np.nan, 1.0], [1.0, 1.0], None, False),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0, True),
    ],
)
def test_differences_are_measured(expected: Any, found: Any, largest: float | None, enough: bool) -> None:
    """A difference may be as large as the tolerance and a part of the value; what is no number must be none in both."""
    arrays_ = [{"y": np.array(each)} for each in (expected, found)]
    (one,) = compare(*arrays_, Tolerance(1e-4, 1e-4))
    assert (one.excess <= 1) is enough
    assert largest is None or one.largest == pytest.approx(largest)


def test_other_shapes_cannot_agree() -> None:
    """A shape that differs says that a size of the example is built into the graph."""
    with pytest.raises(ExportError, match=r"has shape \[2\], that of the exported model \[1\]"):
        compare({"y": np.zeros(2)}, {"y": np.zeros(1)}, Tolerance(1, 1))


def test_config_is_valid_text(tmp_path: Path) -> None:
    """What was written is a config that the server reads."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert main(["torch", source(tmp_path), "--to", "pt2", *EXAMPLES, "--name", "n", "--into", str(tmp_path)]) == 0
    assert isinstance(parse_text((tmp_path / "n/config.pbtxt").read_text(), "config.pbtxt"), ModelConfig)
