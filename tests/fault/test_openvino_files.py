"""Model files and configs that OpenVINO cannot serve: one clear error each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino", reason="pip install 'conch[openvino]'")

from google.protobuf import text_format
from onnx import helper

from conch.backend.openvino.network import find_model
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.error import Code, InferError
from support.onnx_models import Served, add_sub, graph, identity
from support.openvino_models import network, serve, write_ir


def config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def refused(
    path: Path, model: bytes | onnx.ModelProto | None, text: str = "", filename: str = "1/model.onnx"
) -> InferError:
    with pytest.raises(InferError) as caught:
        serve(path, model, config(text), filename=filename)
    return caught.value


def with_weights() -> onnx.ModelProto:
    return graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (dtype.FP32, ["n", 2])},
        {"y": (dtype.FP32, ["n", 300])},
        {"w": np.ones((2, 300), np.float32)},
    )


def works(served: Served) -> bool:
    answer = served.run(served.request({"x": np.ones((1, 2), np.float32)}))[0]
    return isinstance(answer, dict)


def test_missing_file(tmp_path: Path) -> None:
    """No model in the version directory: the path is named, in Triton's words."""
    with pytest.raises(InferError) as caught:
        find_model(tmp_path / "1", "", "m")
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == f"unable to find '{tmp_path}/1/model.xml' for model 'm'"


@pytest.mark.parametrize(
    "content",
    [b"this is no model\n" * 20, b"", b"<?xml version='1.0'?><net", b"version https://git-lfs.github.com/spec/v1\n"],
    ids=["text", "empty", "cut", "pointer"],
)
@pytest.mark.parametrize("filename", ["1/model.xml", "1/model.onnx"])
def test_not_a_model(tmp_path: Path, content: bytes, filename: str) -> None:
    """The file is named, and nothing is said of OpenVINO's sources."""
    error = refused(tmp_path, content, filename=filename)
    assert error.code is Code.INTERNAL
    assert error.message.startswith("openvino error in reading model : ")
    assert "src/" not in error.message
    assert "\n" not in error.message


def test_weights_that_are_missing_or_cut(tmp_path: Path) -> None:
    """model.xml alone is half a model; so is one whose model.bin was not copied to its end."""
    path = write_ir(tmp_path, network(with_weights(), tmp_path))
    assert works(serve(tmp_path))
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:100])
    assert refused(tmp_path, None).message == "openvino error in reading model : Incorrect weights in bin file!"
    weights.unlink()
    assert refused(tmp_path, None).message.endswith("Empty weights data in bin file or bin file cannot be found!")


def test_files_that_change_while_they_are_served(tmp_path: Path) -> None:
    """Weights are read, not mapped: who overwrites or cuts model.bin in place does not change or end what serves."""
    path = write_ir(tmp_path, network(with_weights(), tmp_path))
    served = serve(tmp_path)
    path.with_suffix(".bin").write_bytes(b"")
    (answer,) = served.run(served.request({"x": np.ones((3, 2), np.float32)}))
    assert isinstance(answer, dict)
    assert set(np.frombuffer(answer["y"].data, np.float32)) == {2.0}


def test_the_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence says what to install."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    error = refused(tmp_path, identity())
    assert error.message.startswith("unable to find backend library for backend 'openvino'")
    assert error.hint.startswith("pip install 'conch[openvino]'")


DIFFER = (
    "model 'm', tensor '{}': the model expects 2 dimensions (shape [-1,2]) but the model configuration specifies {} "
    "dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
    "making complete shape {})"
)
IO = 'input {{ name: "{0}" data_type: {1} dims: {2} }} output {{ name: "{3}" data_type: {4} dims: {5} }}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IO.format("z", "TYPE_FP32", 2, "y", "TYPE_FP32", 2), "unexpected inference input 'z', allowed inputs are: x"),
        (
            IO.format("x", "TYPE_FP32", 2, "z", "TYPE_FP32", 2),
            "unexpected inference output 'z', allowed outputs are: y",
        ),
        (
            IO.format("x", "TYPE_STRING", 2, "y", "TYPE_FP32", 2),
            "unsupported datatype TYPE_STRING for input 'x' for model 'm'",
        ),
        (
            IO.format("x", "TYPE_FP32", 3, "y", "TYPE_FP32", 2),
            DIFFER.format("x", 2, "[8,3]"),
        ),
        (
            IO.format("x", "TYPE_FP32", 2, "y", "TYPE_FP32", "[ 2, 1 ]"),
            DIFFER.format("y", 3, "[8,2,1]"),
        ),
        (
            'input { name: "q" data_type: TYPE_FP32 dims: 2 }' + IO.format("x", "TYPE_FP32", 2, "y", "TYPE_FP32", 2),
            "unable to load model 'm', configuration expects 2 inputs, model provides 1",
        ),
        (
            IO.format("x", "TYPE_FP32", "2 optional: true", "y", "TYPE_FP32", 2),
            "'optional' is set to true for input 'x' while the backend model doesn't support optional input",
        ),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    """In the words of Triton's backend."""
    assert refused(tmp_path, identity(), "max_batch_size: 8 " + text).message == message


def test_a_batch_that_the_model_does_not_take(tmp_path: Path) -> None:
    """A model whose graph holds its one row fast is not made to batch."""
    shape = np.array([1, 6], np.int64)
    model = graph(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        {"x": (dtype.FP32, [1, 2, 3])}, {"y": (dtype.FP32, [1, 6])}, {"s": shape},
    )  # fmt: skip
    error = refused(tmp_path, model, "max_batch_size: 4")
    assert error.message.startswith("model 'm', tensor 'y': the model expects 2 dimensions (shape [1,6])")
    assert "max_batch_size: 0" in error.hint


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"TARGET_DEVICE": "NPU"}, "its TARGET_DEVICE is 'NPU' and OpenVINO finds no device 'NPU' here"),
        ({"CPU_EXTENSION_PATH": "/nowhere/ops.so"}, "openvino error in loading custom CPU extensions : "),
    ],
)
def test_parameters_that_this_machine_cannot_follow(tmp_path: Path, parameters: dict[str, str], message: str) -> None:
    """A device or a library that is not there is named."""
    text = " ".join([f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items()])
    assert message in refused(tmp_path, identity(), text).message


def test_gpu_instances_are_refused(tmp_path: Path) -> None:
    """KIND_GPU means NVIDIA's; the hint says how Intel's are asked for."""
    from conch.backend.api import Placement

    with pytest.raises(InferError, match="supports only Kind CPU and AUTO") as caught:
        serve(tmp_path, add_sub(), placement=Placement("m_0_0", "GPU"))
    assert "TARGET_DEVICE" in caught.value.hint
