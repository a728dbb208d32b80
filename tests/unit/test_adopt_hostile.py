"""Foreign files with what nobody expects in them: names that lead out of a folder, code in names, wrong values."""

from __future__ import annotations

import ast
import errno
import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from conch.adopt import api, functions
from conch.adopt.api import AdoptError, Entry, Packed
from conch.adopt.lay import lay, refresh
from conch.adopt.run_mlserver import artefact
from conch.adopt.targets import read_target
from conch.cli import importing
from conch.pb.model_config_pb2 import ModelConfig
from support.other_servers import archive, estimator_folder, mean_model, saved_models, word_count


def read(path: Path, name: str = "") -> Entry:
    (entry,) = read_target(path, name) or []
    return entry


def refusal(path: Path) -> str:
    with pytest.raises(AdoptError) as caught:
        read_target(path)
    return str(caught.value)


def keeping_weights_in(path: Path, location: str) -> Path:
    """An ONNX file that says so."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    onnx.save_model(helper.make_model(helper.make_graph([], "g", [], [output], [tensor])), path)
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "", "."])
def test_weights_lie_beside_an_onnx_file(tmp_path: Path, location: str) -> None:
    """A file that names another place for them is refused, though there is something at that place."""
    (tmp_path / "secret").write_text("s")
    (tmp_path / "m" / "a").mkdir(parents=True)
    said = refusal(keeping_weights_in(tmp_path / "m" / "a.onnx", location))
    assert f"names the file '{location}' for its weights, which is not in its folder" in said


@pytest.mark.parametrize("inside", ["../x", "/tmp/x", "1/../../x", "", "1/link/x", "a\0b"])
@pytest.mark.parametrize("copy", [True, False])
def test_no_file_is_laid_outside_of_the_models_folder(tmp_path: Path, inside: str, copy: bool) -> None:
    """Whatever a reader lets through: also through a link that the model brings itself, and nothing is left."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    files: dict[str, Path | bytes] = {inside: b"x"}
    if "link" in inside:
        files = {"1/link": tmp_path / "elsewhere", inside: b"x"}
    entry = Entry("m", ModelConfig(), files, "x", tmp_path / "source")
    if copy and "link" in inside:
        lay([entry], tmp_path / "r", copy=True)
    else:
        with pytest.raises(AdoptError, match="source has a file that would lie outside of the model's folder"):
            lay([entry], tmp_path / "r", copy=copy)
        assert not (tmp_path / "r" / "m").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (tmp_path / "r" / "x").exists()


EVIL = '"""\nimport os\nos.abort()\n"""'


def own_code(entry: Entry) -> str:
    """Our file for the model, which must hold no statement but ours."""
    (source,) = [content for inside, content in entry.files.items() if inside.endswith("/model.py")]
    assert isinstance(source, bytes)
    kinds = [type(each) for each in ast.parse(source).body]
    assert kinds == [ast.Expr, ast.ImportFrom, ast.ImportFrom, ast.Assign]
    return source.decode()


@pytest.mark.slow
def test_names_are_no_code(tmp_path: Path) -> None:
    """File names with quotes and line breaks stay names in the Python files that are made for them."""
    path = tmp_path / f"a{EVIL}.py"
    path.write_text("import conch\n@conch.model\ndef f(x: int) -> int:\n    return x\n")
    assert repr(path.name) in own_code(read(path))
    mar = word_count(tmp_path).rename(tmp_path / f"{EVIL}.mar")
    own_code(read(mar))
    linear = pytest.importorskip("sklearn.linear_model")
    folder = estimator_folder(tmp_path / "iris", linear.LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    weights = (folder / "model.joblib").rename(folder / f"{EVIL}.joblib")
    (folder / "model-settings.json").unlink()
    assert repr(weights.name) in own_code(read(weights, "m"))
    mean = mean_model(tmp_path / "mean")
    own_code(read(mean))
    for name in (f"runtime.M{EVIL}", "/etc/x.M", "..x.M", "runtime.", "runtime"):
        settings = json.loads((mean / "model-settings.json").read_text()) | {"implementation": name}
        (mean / "model-settings.json").write_text(json.dumps(settings))
        assert "implementation" in refusal(mean) or "there is no file" in refusal(mean)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch_size": "many"},
        {"max_batch_size": 10**40},
        {"max_batch_size": {"a": 1}},
        {"max_batch_time": [1], "max_batch_size": 4},
        {"parameters": [1]},
        {"parameters": "x"},
        {"inputs": 7},
        {"inputs": ["x"]},
        {"inputs": [{"name": 1, "datatype": "FP32", "shape": [1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": "many"}]},
        {"parallel_workers": "two"},
    ],
)
def test_wrong_values_in_mlservers_settings(tmp_path: Path, changes: dict[str, Any]) -> None:
    """One sentence with the path, never another exception."""
    folder = mean_model(tmp_path / "mean")
    settings = json.loads((folder / "model-settings.json").read_text()) | changes
    (folder / "model-settings.json").write_text(json.dumps(settings))
    assert str(folder) in refusal(folder)


def test_wrong_values_in_others_files(tmp_path: Path) -> None:
    """The same for TorchServe's and TensorFlow Serving's files, and for JSON that is nested too deeply."""
    for value in ("batchSize: many", "minWorkers: [1]", "batchSize: {a: 1}"):
        files = {"h.py": "", "c.yaml": value}
        path = archive(tmp_path, files, modelName="m", handler="h.py", configFile="c.yaml")
        assert str(path) in refusal(path)
    path = archive(tmp_path, {}, modelName="m", handler="h.py")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("MAR-INF/MANIFEST.json", '{"model": 7}')
    assert str(path) in refusal(path)
    source = saved_models(tmp_path / "tf", {"half": [1]})
    text = "model_config_list { config { name: 'half' base_path: 'half' model_version_policy { specific { versions: x"
    (source / "models.config").write_text(text + " } } } }")
    assert str(source) in refusal(source / "models.config")
    (source / "models.config").write_text("model_config_list: 7")
    assert str(source) in refusal(source / "models.config")
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "model-settings.json").write_text("[" * 100_000)
    assert "nested too deeply" in refusal(deep)


def test_an_archive_is_unpacked_when_it_is_laid(tmp_path: Path) -> None:
    """No contents are kept in memory; a file that is broken inside is named."""
    path = word_count(tmp_path)
    entry = read(path)
    assert {type(each) for inside, each in entry.files.items() if inside != "3/model.py"} == {Packed}
    (folder,) = lay([entry], tmp_path / "r")
    assert json.loads((folder / "3" / "vocabulary.json").read_text()) == ["cat", "dog"]
    content = path.read_bytes()
    path.write_bytes(content.replace(b'["cat", "dog"]', b'["cat", "dot"]'))
    with pytest.raises(AdoptError, match=r"words\.mar: 'vocabulary\.json' in it cannot be read: Bad CRC-32"):
        lay([entry], tmp_path / "other")


def with_uri(folder: Path, uri: str) -> Entry:
    settings = json.loads((folder / "model-settings.json").read_text())
    settings["parameters"]["uri"] = uri
    (folder / "model-settings.json").write_text(json.dumps(settings))
    return read(folder)


def test_what_a_custom_runtime_loads_comes_along(tmp_path: Path) -> None:
    """`parameters.uri` names a file or folder beside the settings or elsewhere; the runtime finds it again."""
    folder = mean_model(tmp_path / "mean")
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_text("beside")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "w.bin").write_text("far")
    for uri, text, inside in (
        ("./weights", "beside", "w.bin"),
        ("weights/w.bin", "beside", ""),
        (".", "beside", "weights/w.bin"),
        (f"{tmp_path}/far", "far", "w.bin"),
        (f"file://{tmp_path}/far/w.bin", "far", ""),
        ("../far", "far", "w.bin"),
    ):
        entry = with_uri(folder, uri)
        (laid,) = lay([entry], tmp_path / "r", copy=True, force=True)
        place = Path(artefact(laid / "1", uri))
        assert place.is_relative_to(laid)
        assert (place / inside if inside else place).read_text() == text
    for uri, said in (("s3://b/m", "it is remote"), ("bert-base", "there is no such file here")):
        entry = with_uri(folder, uri)
        assert any(uri in each and said in each for each in entry.unmapped)
        (laid,) = lay([entry], tmp_path / "r", copy=True, force=True)
        assert artefact(laid / "1", uri) == uri


HANGS = """
import subprocess, sys, threading
import conch

threading.Thread(target=threading.Event().wait).start()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

@conch.model
def f(x: int) -> int:
    return x
"""


@pytest.mark.slow
def test_a_thread_that_never_ends_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads signatures is ended once it has answered."""
    monkeypatch.setattr(functions, "_PATIENCE_S", 60)
    (tmp_path / "app.py").write_text(HANGS)
    assert read(tmp_path / "app.py").name == "f"


@pytest.mark.slow
def test_an_import_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it has started, after a time, and with a sentence."""
    monkeypatch.setattr(functions, "_PATIENCE_S", 0.5)
    (tmp_path / "app.py").write_text("import conch, os, threading\nos.fork()\nthreading.Event().wait()\n")
    said = refusal(tmp_path / "app.py")
    assert said.startswith(f"{tmp_path / 'app.py'}: importing it took more than 0.5 s")


def test_a_process_that_cannot_be_started_leaves_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and both ends are closed."""
    (tmp_path / "app.py").write_text("import conch\n")
    monkeypatch.setattr(functions.sys, "executable", str(tmp_path / "no python"))
    before = psutil.Process().num_fds()
    assert refusal(tmp_path / "app.py") == f"{tmp_path / 'no python'}: No such file or directory"
    assert psutil.Process().num_fds() == before


def model_file(repository: Path) -> Path:
    """A model that is in the repository already."""
    file = repository / "m" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    return file


def test_a_model_is_not_replaced_by_links_to_itself(tmp_path: Path) -> None:
    """The files would be gone, and the links lead nowhere; a copy may take its place."""
    file = model_file(tmp_path)
    entry = Entry("m", ModelConfig(), {"1/model.onnx": file}, "x", file)
    with pytest.raises(AdoptError, match=r"m/1/model.onnx lies in .*/m, which would be replaced"):
        lay([entry], tmp_path, force=True)
    assert file.read_bytes() == b"weights"
    lay([entry], tmp_path, copy=True, force=True)
    assert file.read_bytes() == b"weights"
    packed = Packed(tmp_path / "m" / "a.mar", "x")
    with pytest.raises(AdoptError, match="which would be replaced"):
        lay([Entry("m", ModelConfig(), {"1/x": packed}, "x", file)], tmp_path, copy=True, force=True)


def test_a_model_that_cannot_be_laid_leaves_the_old_one(tmp_path: Path) -> None:
    """And nothing half made beside it."""
    file = model_file(tmp_path / "r")
    broken = Entry("m", ModelConfig(), {"1/a": b"a", "1/b": tmp_path / "nothing"}, "x", tmp_path)
    with pytest.raises(FileNotFoundError):
        lay([broken], tmp_path / "r", copy=True, force=True)
    assert file.read_bytes() == b"weights"
    assert [each.name for each in (tmp_path / "r").iterdir()] == ["m"]


@pytest.mark.parametrize("fails", ["m", ".m.new"])
def test_a_model_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Whichever of the two renames it is; the error says so, and nothing is left beside it."""
    file = model_file(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == fails:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self), None, str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(AdoptError) as refused:
        lay([Entry("m", ModelConfig(), {"1/a": b"a"}, "x", tmp_path)], tmp_path, force=True)
    place = tmp_path / "m"
    assert refused.value.args[0] == f"{place} cannot be replaced, it is as it was: Operation not permitted"
    assert file.read_bytes() == b"weights"
    assert list(tmp_path.iterdir()) == [place]


def test_a_file_that_cannot_be_brought_up_to_date_leaves_the_old_one(tmp_path: Path) -> None:
    """And nothing half made beside it."""
    source = tmp_path / "a"
    source.write_bytes(b"new")
    folder = model_file(tmp_path / "r").parent.parent
    (folder / "1" / "a").mkdir()
    entry = Entry("m", ModelConfig(), {"1/a": source}, "x", source)
    with pytest.raises(IsADirectoryError):
        refresh(entry, folder, {})
    assert {each.name for each in (folder / "1").iterdir()} == {"a", "model.onnx"}


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    """A model that is a link in the repository, or a file."""
    file = model_file(tmp_path / "elsewhere")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "m").symlink_to(file.parent.parent)
    lay([Entry("m", ModelConfig(), {"1/a": b"a"}, "x", tmp_path)], tmp_path / "r", copy=True, force=True)
    assert (tmp_path / "r" / "m" / "1" / "a").read_bytes() == b"a"
    assert file.read_bytes() == b"weights"


def test_a_folder_that_cannot_be_copied_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the file in it that is to blame."""
    model = tmp_path / "model.savedmodel"
    model.mkdir()
    (model / "saved_model.pb").write_bytes(b"x")
    (model / "gone").symlink_to(tmp_path / "nothing")
    assert importing.main([str(model), "--name=m", f"--into={tmp_path / 'r'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"conch import: {model / 'gone'}: ")
    assert "No such file or directory" in said


def test_a_description_in_an_archive_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zip archives hold a thousand times their size."""
    monkeypatch.setattr(api, "_MOST", 1000)
    path = archive(tmp_path, {"h.py": "x"}, modelName="m", handler="h.py", more="x" * 2000)
    assert "'MAR-INF/MANIFEST.json' in it has " in refusal(path)
