"""ONNX files that are missing, broken or incomplete: one clear error each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from conch.backend.onnx import OnnxBackend
from conch.backend.onnx.session import find_model, peek
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.error import Code, InferError
from support.onnx_models import Served, graph, identity, serve, write

WEIGHTS = np.ones((2, 3), np.float32)


def refused(path: Path, model: bytes | onnx.ModelProto, config: ModelConfig | None = None) -> InferError:
    with pytest.raises(InferError) as caught:
        serve(path, model, config)
    return caught.value


def with_weights() -> onnx.ModelProto:
    return graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (dtype.FP32, ["n", 2])},
        {"y": (dtype.FP32, ["n", 3])},
        {"w": WEIGHTS},
    )


def works(served: Served) -> bool:
    answer = served.run(served.request({"x": np.ones((1, 2), np.float32)}))[0]
    return isinstance(answer, dict)


def test_missing_file(tmp_path: Path) -> None:
    """No model.onnx in the version directory: the path is named."""
    with pytest.raises(InferError) as caught:
        find_model(tmp_path / "1", "", "m")
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == f"unable to find '{tmp_path}/1/model.onnx' for model instance 'm'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is no model\n" * 20, "onnx runtime error 7: Load model from "),
        (b"", "onnx runtime error 2: Load model from "),
        (identity().SerializeToString()[:-9], "onnx runtime error 7: Load model from "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "onnx runtime error "),
    ],
    ids=["text", "empty", "cut", "pointer"],
)
def test_not_a_model(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that is no ONNX model is one INTERNAL error with Triton's prefix."""
    error = refused(tmp_path, content)
    assert error.code is Code.INTERNAL
    assert error.message.startswith(message)


def test_unknown_operator(tmp_path: Path) -> None:
    """An operator that the runtime lacks is named."""
    model = graph([helper.make_node("Teleport", ["x"], ["y"])], {"x": (dtype.FP32, [2])}, {"y": (dtype.FP32, [2])})
    assert "Teleport" in refused(tmp_path, model).message


def test_newer_than_the_runtime(tmp_path: Path) -> None:
    """A model of a future ONNX version is refused."""
    model = identity()
    model.ir_version = 99
    assert "onnx runtime error" in refused(tmp_path, model).message


def test_missing_custom_operators(tmp_path: Path) -> None:
    """A library of operators that cannot be loaded is named."""
    config = ModelConfig()
    config.model_operations.op_library_filename.append("libmissing.so")
    assert "libmissing.so" in refused(tmp_path, identity(), config).message


@pytest.mark.parametrize("present", [True, False])
def test_external_data(tmp_path: Path, present: bool) -> None:
    """Weights in a file beside the model are found; without that file the load fails and names it."""
    write(tmp_path, b"")
    onnx.save(
        with_weights(), tmp_path / "1/model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    if present:
        assert works(serve(tmp_path, (tmp_path / "1/model.onnx").read_bytes()))
    else:
        (tmp_path / "1/weights.bin").unlink()
        assert "weights.bin" in refused(tmp_path, (tmp_path / "1/model.onnx").read_bytes()).message


def test_folder_with_external_data(tmp_path: Path) -> None:
    """model.onnx may be a folder that holds model.onnx and its data; another name may be given."""
    for name in ("model.onnx", "net"):
        place = tmp_path / "1" / name
        place.mkdir(parents=True)
        onnx.save(with_weights(), place / "model.onnx", save_as_external_data=True, location="w", size_threshold=0)
        found = find_model(tmp_path / "1", "" if name == "model.onnx" else name, "m")
        assert found == place / "model.onnx"
        assert [each.name for each in peek(found).get_inputs()] == ["x"]


def test_default_model_filename(tmp_path: Path) -> None:
    """default_model_filename names another file."""
    write(tmp_path, identity(), "1/other.onnx")
    assert find_model(tmp_path / "1", "other.onnx", "m") == tmp_path / "1/other.onnx"


def test_runtime_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime the load fails with Triton's text and says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    error = refused(tmp_path, identity())
    assert error.message.startswith("unable to find backend library for backend 'onnxruntime'")
    assert "conch[onnx]" in error.hint


def test_the_runtime_is_not_imported_early() -> None:
    """Making the backend imports nothing heavy."""
    import subprocess
    import sys

    code = (
        "import sys; from conch.backend.onnx import OnnxBackend; OnnxBackend(); "
        "sys.exit(int('onnxruntime' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert OnnxBackend.name == "onnxruntime"


@pytest.mark.parametrize("location", ["../../secret", "{}/secret", "link"])
def test_external_data_of_others_is_not_read(tmp_path: Path, location: str) -> None:
    """Weights lie beside the model: neither its text nor a link in its folder reaches other files of the machine."""
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "1").mkdir()
    (tmp_path / "1/link").symlink_to(tmp_path / "secret")
    model = with_weights()
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location.format(tmp_path))
    assert "xternal data" in refused(tmp_path, model).message
