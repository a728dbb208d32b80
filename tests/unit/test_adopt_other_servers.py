"""What becomes of other servers' models: the config, the files, and a word about everything that was there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conch.adopt.api import AdoptError, Entry
from conch.adopt.lay import lay
from conch.adopt.targets import read_target
from conch.cli.importing import main
from conch.config.pbtxt import format_text
from support.other_servers import archive, estimator_folder, mean_model, saved_models, word_count


def read(path: Path, name: str = "") -> Entry:
    (entry,) = read_target(path, name) or []
    return entry


def config(entry: Entry) -> str:
    return " ".join(format_text(entry.config).split())


def test_a_torchserve_archive(tmp_path: Path) -> None:
    """Workers become instances, batches dynamic batching; what has no place is said."""
    entry = read(word_count(tmp_path))
    assert entry.name == "words"
    assert {
        "3/model.py", "3/count_handler.py", "3/vocabulary.json", "3/MAR-INF/MANIFEST.json", "3/model-config.yaml",
    } == set(entry.files)  # fmt: skip
    text = config(entry)
    assert 'input { name: "data" data_type: TYPE_STRING dims: 1 }' in text
    assert "max_batch_size: 4" in text
    assert "max_queue_delay_microseconds: 1000" in text
    assert "instance_group { count: 1 kind: KIND_CPU }" in text
    lost = "\n".join(entry.unmapped)
    for word in ("maxWorkers 2", "responseTimeout", "content type"):
        assert word in lost


def test_torchscript_without_a_handler_of_its_own_is_a_pytorch_model(tmp_path: Path) -> None:
    """The handler's part and its files are named as lost."""
    entry = read(
        archive(tmp_path, {"resnet.pt": b"x", "index_to_name.json": "{}"},
                modelName="resnet", serializedFile="resnet.pt", handler="image_classifier", modelVersion="1.5")
    )  # fmt: skip
    assert set(entry.files) == {"1/model.pt"}
    assert config(entry) == 'platform: "pytorch_libtorch" backend: "pytorch"'
    lost = "\n".join(entry.unmapped)
    for word in ("version 1.5", "handler image_classifier", "index_to_name.json"):
        assert word in lost


@pytest.mark.parametrize(
    ("files", "model", "said"),
    [
        ({}, {"handler": "mine.py"}, "its handler is 'mine.py', and the archive holds no such file"),
        ({"w.pth": b""}, {"handler": "text_classifier", "serializedFile": "w.pth"}, "handler is 'text_classifier'"),
        ({"w.pt": b""}, {"serializedFile": "w.pt", "modelFile": "net.py"}, "weights for the code in 'net.py'"),
        ({"../h.py": ""}, {"handler": "h.py"}, "outside of the model's folder: '../h.py'"),
        ({"h.py": "", "c.yaml": "a: [1"}, {"handler": "h.py", "configFile": "c.yaml"}, "is no YAML"),
        ({"h.py": ""}, {"handler": "h.py", "configFile": "c.yaml"}, "names 'c.yaml', which is not in the archive"),
    ],
)
def test_archives_that_cannot_be_served(
    tmp_path: Path, files: dict[str, str], model: dict[str, str], said: str
) -> None:
    """The refusal names the archive and what is missing."""
    path = archive(tmp_path, files, modelName="m", **model)
    with pytest.raises(AdoptError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    """A .mar must be a zip file with a manifest."""
    path = tmp_path / "x.mar"
    path.write_bytes(b"no zip")
    with pytest.raises(AdoptError, match="is no archive"):
        read(path)
    (tmp_path / "d" / "MAR-INF").mkdir(parents=True)
    with pytest.raises(AdoptError, match=r"MANIFEST\.json is missing or broken"):
        read(tmp_path / "d")


def test_a_custom_mlserver_runtime(tmp_path: Path) -> None:
    """The class and what lies beside it go along; the tensors are those of the settings."""
    entry = read(mean_model(tmp_path / "mean"))
    assert {"1/model.py", "1/runtime.py", "1/offsets.py", "1/model-settings.json"} == set(entry.files)
    assert 'input { name: "x" data_type: TYPE_FP32 dims: -1 dims: 2 }' in config(entry)
    assert 'output { name: "loud" data_type: TYPE_STRING dims: -1 dims: 1 }' in config(entry)
    lost = "\n".join(entry.unmapped)
    assert "warm_workers" in lost
    assert "version v0.1" in lost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{", "is no JSON"),
        ("{}", "has no 'implementation'"),
        ('{"implementation": "mlserver_huggingface.HuggingFaceRuntime"}', "no counterpart to MLServer's runtime"),
        ('{"implementation": "mine.Model"}', "there is no file"),
        ('{"implementation": "own.Model"}', "does not describe the model's inputs"),
        ('{"implementation": "mlserver_sklearn.SKLearnModel"}', "there is no model file"),
        ('{"implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "s3://b/m"}}', "is remote"),
        ('{"implementation": "mlserver_xgboost.XGBoostModel", "parameters": {"uri": "bad.json"}}', "cannot be loaded"),
    ],
)
def test_mlserver_models_that_cannot_be_served(tmp_path: Path, settings: str, said: str) -> None:
    """The refusal names the file and the way out."""
    (tmp_path / "own.py").write_text("class Model: ...\n")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "model-settings.json").write_text(settings)
    with pytest.raises(AdoptError) as caught:
        read(tmp_path)
    assert said in str(caught.value)


@pytest.mark.slow
def test_an_mlserver_estimator(tmp_path: Path) -> None:
    """Features and outputs come from the model itself, batches from the settings."""
    linear = pytest.importorskip("sklearn.linear_model")
    model = linear.LogisticRegression().fit([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]], [0, 1, 1])
    entry = read(estimator_folder(tmp_path / "iris", model))
    text = config(entry)
    assert 'input { name: "predict" data_type: TYPE_FP32 dims: 2 }' in text
    assert 'output { name: "predict" data_type: TYPE_INT64 dims: 1 }' in text
    assert 'output { name: "predict_proba" data_type: TYPE_FP64 dims: 2 }' in text
    assert "max_batch_size: 16" in text
    assert "2/model.joblib" in entry.files
    lost = "\n".join(entry.unmapped)
    assert "settings.json" in lost
    assert "parameters.content_type" in lost


def test_tensorflow_servings_folders(tmp_path: Path) -> None:
    """Every version of every model goes to the place where Triton looks for it."""
    source = saved_models(tmp_path / "tf", {"half": [1, 123], "twice": [7]})
    (source / "notes").mkdir()
    found = read_target(source) or []
    assert [entry.name for entry in found] == ["half", "twice"]
    assert "folders without a SavedModel: notes" in found[0].unmapped
    lay(found, tmp_path / "repository", copy=True)
    place = tmp_path / "repository" / "half"
    assert (place / "123" / "model.savedmodel" / "saved_model.pb").read_bytes() == b"graph"
    assert 'platform: "tensorflow_savedmodel"' in (place / "config.pbtxt").read_text()
    assert read(source / "half", "other").name == "other"


def test_tensorflow_servings_padded_versions(tmp_path: Path) -> None:
    """Its exporters write 00000007, which is no version to Triton."""
    source = saved_models(tmp_path / "tf", {"half": [7]})
    (source / "half" / "7").rename(source / "half" / "00000007")
    (entry,) = read_target(source) or []
    assert list(entry.files) == ["7/model.savedmodel"]


MODELS_CONFIG = """
# models of the shop
model_config_list {
  config {
    name: 'half' base_path: "/models/half", model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 123 } }
    version_labels { key: 'stable' value: 1 }
    logging_config { sampling_config { sampling_rate: 0.1 } }
  }
  config: < name: "twice" base_path: "twice" model_version_policy: { all: {} } >
}
"""


def test_a_models_config(tmp_path: Path) -> None:
    """Policies and batching come over; labels and logging are named as lost."""
    source = saved_models(tmp_path / "tf", {"half": [1, 123], "twice": [7]})
    (source / "models.config").write_text(MODELS_CONFIG)
    (source / "batching_parameters.txt").write_text(
        "max_batch_size { value: 32 } batch_timeout_micros { value: 500 } num_batch_threads { value: 4 }\n"
        "max_enqueued_batches { value: 10 } allowed_batch_sizes: 8 allowed_batch_sizes: 32\n"
    )
    half, twice = read_target(source / "models.config") or []
    text = config(half)
    assert "version_policy { specific { versions: 1 versions: 123 } }" in text
    assert "max_batch_size: 32" in text
    assert "max_queue_delay_microseconds: 500" in text
    assert "preferred_batch_size: 8 preferred_batch_size: 32" in text
    assert "max_queue_size: 320" in text
    assert "all { }" in config(twice)
    lost = "\n".join(half.unmapped)
    for word in ("version_labels (stable = 1)", "logging_config", "num_batch_threads 4"):
        assert word in lost


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_config_list {", "line 1: expected the name of a field, found 'the end'"),
        ("model_config_list { config { name: 'a' base_path: = } }", "line 1: '=' means nothing here"),
        ("model_config_list { }", "there is no model_config_list with a config in it"),
        ("model_config_list { config { name: 'a' } }", "without name or base_path"),
        ("model_config_list { config { name: 'a' base_path: 'gs://b' } }", "is remote"),
        ("model_config_list { config { name: 'a' base_path: '/nowhere/a' } }", "there is no such folder"),
    ],
)
def test_a_models_config_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    """The refusal names the file, and the line where there is one."""
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(AdoptError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_conch_import_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model with what was taken over and what was not; nothing is replaced unless that is asked for."""
    source, repository = word_count(tmp_path), tmp_path / "repository"
    command = [str(source), f"--into={repository}"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{repository / 'words'}: TorchServe archive {source}" in said
    assert "taken over  handler count_handler.py" in said
    assert "NOT taken   maxWorkers 2" in said
    assert json.loads((repository / "words" / "3" / "vocabulary.json").read_text()) == ["cat", "dog"]
    assert main(command) == 1
    assert "is there already (say --force to replace it)" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main([str(repository), f"--into={tmp_path / 'other'}"]) == 1
    assert "is a Triton repository already" in capsys.readouterr().err


def test_a_copied_function_takes_its_neighbours_along(tmp_path: Path) -> None:
    """What a function's file imports from its folder is copied with it, other folders are not."""
    source = tmp_path / "source"
    (source / "tools").mkdir(parents=True)
    (source / "tools" / "__init__.py").write_text("def twice(x): return 2 * x\n")
    (source / "elsewhere").mkdir()
    (source / "table.csv").write_text("1,2\n")
    (source / "app.py").write_text(
        "import conch\nfrom tools import twice\n\n@conch.model\ndef f(x: int) -> int:\n    return twice(x)\n"
    )
    assert main([str(source / "app.py"), f"--into={tmp_path / 'r'}"]) == 0
    names = sorted(path.name for path in (tmp_path / "r" / "f" / "1").iterdir())
    assert names == ["app.py", "model.py", "table.csv", "tools"]
