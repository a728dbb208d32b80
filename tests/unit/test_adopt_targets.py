"""What a path on the command line is taken for, and what is made of lone files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conch.adopt.api import AdoptError, Entry
from conch.adopt.describe import describe
from conch.adopt.external import external_files
from conch.adopt.lay import lay
from conch.adopt.recognise import recognise
from conch.adopt.targets import read_target
from conch.cli.targets import Wishes, take
from conch.config.pbtxt import format_text, parse_text
from conch.pb.model_config_pb2 import ModelConfig


def tree(folder: Path, *names: str) -> Path:
    """Files with these paths; a name that ends with a slash is a folder."""
    for name in names:
        place = folder / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.write_text("")
    return folder


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ([], "repository"),
        (["a/1/model.onnx", "b/config.pbtxt"], "repository"),
        (["a/", "b/"], "repository"),
        (["7/1/model.onnx", "8/config.pbtxt"], "repository"),
        (["notes.txt", "README.md", "a/1/model.py"], "repository"),
        (["a.onnx", "b.onnx"], "repository"),
        (["config.pbtxt", "1/model.onnx"], "model"),
        (["1/model.onnx", "labels.txt"], "model"),
        (["3/"], "model"),
        (["saved_model.pb", "variables/x"], "savedmodel"),
        (["1/saved_model.pb", "2/saved_model.pb"], "tfserving"),
        (["half/1/saved_model.pb", "twice/2/saved_model.pb"], "tfserving"),
        (["half/1/model.savedmodel/saved_model.pb"], "repository"),
        (["model-settings.json", "model.joblib"], "mlserver"),
        (["iris/model-settings.json", "settings.json"], "mlserver"),
        (["MAR-INF/MANIFEST.json", "handler.py"], "mar"),
        (["a.mar", "b.mar"], "mar"),
        (["resnet.onnx", "resnet.data"], "lone"),
        (["model.py", "requirements.txt"], "lone"),
    ],
)
def test_folders(tmp_path: Path, names: list[str], kind: str) -> None:
    """A folder is a repository unless what lies in it says otherwise."""
    assert recognise(tree(tmp_path, *names)) == kind


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.onnx", "", "onnx"),
        ("a.PT", "", "torchscript"),
        ("a.pt2", "", "aoti"),
        ("a.xml", "", "openvino"),
        ("a.plan", "", "plan"),
        ("a.mar", "", "mar"),
        ("a.joblib", "", "sklearn"),
        ("saved_model.pb", "", "savedmodel"),
        ("frozen.pb", "", "graphdef"),
        ("a.json", '{"learner": {}}', "forest"),
        ("a.txt", "tree\nversion=v4\n", "forest"),
        ("model-settings.json", "{}", "mlserver"),
        ("models.config", "model_config_list {}", "models.config"),
        ("config.pbtxt", "", "model"),
        ("a.py", "class TritonPythonModel:\n    pass\n", "python"),
        ("a.py", "import conch\n@conch.model\ndef f(): ...\n", "functions"),
        ("a.py", "from conch import model\n@model\ndef f(): ...\n", "functions"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, kind: str) -> None:
    """A file is what its name and its beginning say."""
    path = tmp_path / name
    path.write_text(content)
    assert recognise(path) == kind


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.doc", "", "no kind of model is known for this file"),
        ("a.json", "{}", "no kind of model is known for this file"),
        ("a.py", "x = 1\n", "neither a class TritonPythonModel nor a function declared with @conch.model"),
        ("a.py", "x = (\n", "1: SyntaxError: '(' was never closed"),
    ],
)
def test_files_of_no_kind(tmp_path: Path, name: str, content: str, said: str) -> None:
    """The refusal says what was looked for."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(AdoptError) as caught:
        recognise(path)
    assert str(caught.value).startswith(f"{path}:")
    assert said in str(caught.value)


def matmul(path: Path, *, location: str = "") -> Path:
    """y = x W, with W inside the file or in another."""
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if location:
        onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=0)
    else:
        onnx.save_model(model, path)
    return path


def test_external_data_comes_along(tmp_path: Path) -> None:
    """The files that an ONNX file names are found in its bytes; one that is missing is named."""
    assert external_files(matmul(tmp_path / "whole.onnx")) == []
    path = matmul(tmp_path / "split.onnx", location="split.data")
    assert external_files(path) == ["split.data"]
    (entry,) = read_target(path) or []
    assert set(entry.files) == {"1/model.onnx", "1/split.data"}
    (tmp_path / "split.data").unlink()
    with pytest.raises(AdoptError, match=r"in the file 'split.data' beside it, and there is no"):
        read_target(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x3a\xff\xff\xff\x7f", b"\x3a\x80"])
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    """Any bytes give a sentence, never another exception."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(AdoptError, match=r"is no ONNX file|is empty"):
        external_files(path)


def test_names(tmp_path: Path) -> None:
    """A model is called like its file, in a version folder like the model's folder, or as the operator says."""
    assert (read_target(matmul(tmp_path / "resnet.onnx")) or [])[0].name == "resnet"
    (tmp_path / "m" / "2").mkdir(parents=True)
    assert (read_target(matmul(tmp_path / "m" / "2" / "model.onnx")) or [])[0].name == "m"
    assert (read_target(tmp_path / "resnet.onnx", "other") or [])[0].name == "other"


def test_a_models_folder_keeps_its_config(tmp_path: Path) -> None:
    """Its text stays as it is, unless another name is asked for."""
    text = '# mine\nname: "a"\nbackend: "identity"\n'
    (tree(tmp_path / "a", "1/x") / "config.pbtxt").write_text(text)
    (entry,) = read_target(tmp_path / "a") or []
    (folder,) = lay([entry], tmp_path / "r")
    assert (folder / "config.pbtxt").read_text() == text
    assert (folder / "1" / "x").is_file()
    (entry,) = read_target(tmp_path / "a", "b") or []
    (folder,) = lay([entry], tmp_path / "r")
    assert parse_text((folder / "config.pbtxt").read_text(), "").name == "b"


@pytest.mark.parametrize(
    ("name", "content", "config"),
    [
        ("a.pt", "", 'platform: "pytorch_libtorch" backend: "pytorch"'),
        ("a.plan", "", 'platform: "tensorrt_plan" backend: "tensorrt"'),
        (
            "a.json",
            '{"learner": {"learner_model_param": {"num_feature": "9"}}}',
            'max_batch_size: 8192 input { name: "input__0" data_type: TYPE_FP32 dims: 9 }',
        ),
        ("a.txt", "tree\nmax_feature_idx=3\n", 'name: "input__0" data_type: TYPE_FP32 dims: 4'),
    ],
)
def test_other_frameworks(tmp_path: Path, name: str, content: str, config: str) -> None:
    """Each file goes to Triton's backend for it."""
    (tmp_path / name).write_text(content)
    (entry,) = read_target(tmp_path / name) or []
    assert config in " ".join(format_text(entry.config).split())


def test_two_models_of_one_name(tmp_path: Path) -> None:
    """Both are named, and nothing is laid."""
    entries = [Entry("m", ModelConfig(), {}, "x", tmp_path / each) for each in "ab"]
    with pytest.raises(AdoptError, match=r"a and .*b would both be model 'm'"):
        lay(entries, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_flags_for_targets() -> None:
    """They are taken out of the command line; behind -- all is a target."""
    wishes, rest = take(["a.onnx", "--name", "b", "--http-port=1", "--write-config", "--force", "--", "--name"])
    assert wishes == Wishes("b", "config.pbtxt", force=True)
    assert rest == ["a.onnx", "--http-port=1", "--", "--name"]
    assert take(["--write-config=x.pbtxt"])[0].write == "x.pbtxt"


DESCRIBED = """
name: "m" backend: "onnxruntime" max_batch_size: 4
input { name: "image" data_type: TYPE_FP32 dims: [3, 2, 2] }
output { name: "label" data_type: TYPE_STRING dims: 1 }
dynamic_batching { max_queue_delay_microseconds: 500 }
instance_group { count: 2 kind: KIND_CPU }
"""


def test_the_description(tmp_path: Path) -> None:
    """What was decided, what was lost, and a command to try."""
    entry = Entry("m", ModelConfig(), {}, "ONNX model", Path("m.onnx"), ["this"], ["that"])
    zeros = ", ".join(["0.0"] * 12)
    request = f'{{"inputs": [{{"name": "image", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [{zeros}]}}]}}'
    assert describe(entry, parse_text(DESCRIBED, ""), "http://h:1").splitlines() == [
        "m: ONNX model m.onnx",
        "  backend     onnxruntime",
        "  inputs      image FP32 [-1, 3, 2, 2]",
        "  outputs     label BYTES [-1, 1]",
        "  batching    requests that wait run together, up to 4 rows (max_batch_size), waiting 0.5 ms for more",
        "  instances   2 on CPU",
        "  taken over  this",
        "  NOT taken   that",
        f"  try         curl -s http://h:1/v2/models/m/infer -d '{request}'",
    ]


def test_a_fixed_first_dimension_is_said_to_be_why(tmp_path: Path) -> None:
    """Nobody should find out by measuring that a model is not batched."""
    text = re.sub(r"max_batch_size: 4|dynamic_batching .*", "", DESCRIBED)
    entry = Entry("m", ModelConfig(), {}, "ONNX model", Path("m.onnx"))
    described = describe(entry, parse_text(text, ""), "http://h:1")
    why = "none: 'image' begins with a dimension of 3; export the model with a first dimension of any size"
    assert why in described
