"""DALI's CPU pipelines in a real server, compared with the same pipelines run directly."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from support.server import Server

pytest.importorskip("nvidia.dali", reason="pip install nvidia-dali-cuda130")

PIPELINE = """
import nvidia.dali as dali
import nvidia.dali.types as types
from nvidia.dali.plugin.triton import autoserialize

@autoserialize
@dali.pipeline_def(batch_size=16, num_threads=1, device_id=None, output_dtype=[types.FLOAT, types.UINT8],
                   output_ndim=[3, 3])
def pipe():
    encoded = dali.fn.external_source(device="cpu", name="IMAGES", dtype=types.UINT8, ndim=1)
    images = dali.fn.decoders.image(encoded, device="cpu")
    small = dali.fn.resize(images, resize_x=32, resize_y=24)
    normal = dali.fn.crop_mirror_normalize(small, dtype=types.FLOAT, mean=[110.0], std=[60.0], output_layout="CHW")
    return normal, small
"""
SEQUENCES = """
import nvidia.dali as dali
import nvidia.dali.types as types
from nvidia.dali.plugin.triton import autoserialize

@autoserialize
@dali.pipeline_def(batch_size=4, num_threads=1, device_id=0, output_dtype=types.INT32, output_ndim=2)
def pipe():
    x = dali.fn.external_source(device="cpu", name="X", dtype=types.INT32, ndim=2)
    return x + 1
"""
GPU = """
import nvidia.dali as dali
from nvidia.dali.plugin.triton import autoserialize

@autoserialize
@dali.pipeline_def(batch_size=4, num_threads=1, device_id=0)
def pipe():
    return dali.fn.external_source(device="cpu", name="X").gpu()
"""
SPLIT = """
backend: "dali"
output [ { name: "ROWS" dims: [ -1 ] data_type: TYPE_INT32 } ]
parameters { key: "split_along_outer_axis" value { string_value: "ROWS" } }
"""


def write(root: Path, name: str, program: str, config: str = 'backend: "dali"', filename: str = "dali.py") -> Path:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)
    path = root / name / "1" / filename
    path.write_text(program)
    return path


def direct(path: Path) -> Any:
    """The pipeline of the file, built in this process."""
    spec = importlib.util.spec_from_file_location("pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pipe()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dali")
    path = write(root, "python", PIPELINE)
    write(root, "serialized", "").unlink()
    direct(path).serialize(filename=str(root / "serialized" / "1" / "model.dali"))
    write(root, "none", "x = 1")
    write(root, "cut", "no pipeline", filename="model.dali")
    write(root, "gpu", GPU)
    write(root, "renamed", PIPELINE, 'backend: "dali" max_batch_size: 8 output [ { name: "A" }, { name: "B" } ]')
    write(root, "few", PIPELINE, 'backend: "dali" output [ { name: "A" } ]')
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    names = ("python", "serialized", "renamed")
    flags = ("--model-control-mode=explicit", *[f"--load-model={name}" for name in names])
    with Server(repository, *flags) as server:
        server.ready_seconds()
        yield server


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    """Two JPEG files, encoded; the shorter one padded with zeros, as rows of a request have one length."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    files = [np.frombuffer((folder / name).read_bytes(), np.uint8) for name in ("china.jpg", "flower.jpg")]
    made = np.zeros((2, max(map(len, files))), np.uint8)
    for row, content in zip(made, files, strict=True):
        row[: len(content)] = content
    return made


@pytest.fixture(scope="module")
def expected(repository: Path, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    pipeline = direct(repository / "python" / "1" / "dali.py")
    pipeline.build()
    pipeline.feed_input("IMAGES", list(images))
    return [np.array(output.as_tensor()) for output in pipeline.run()]


@pytest.mark.parametrize("name", ["python", "serialized", "renamed"])
@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_answers_are_dalis(
    server: Server, name: str, module: Any, images: np.ndarray[Any, Any], expected: list[np.ndarray[Any, Any]]
) -> None:
    """A pipeline, serialized or in Python, answers as it does when it is run directly, bit for bit."""
    url = server.http if module is tritonclient.http else server.grpc
    with module.InferenceServerClient(url) as client:
        sent = module.InferInput("IMAGES", list(images.shape), "UINT8")
        sent.set_data_from_numpy(images)
        answer = client.infer(name, [sent])
    names = ["A", "B"] if name == "renamed" else ["__CropMirrorNormalize_2", "__Resize_1"]
    for output, wanted in zip(names, expected, strict=True):
        np.testing.assert_array_equal(answer.as_numpy(output), wanted)


def test_the_config_comes_from_the_pipeline(server: Server) -> None:
    """Names, types, ranks and the batch size are the pipeline's where the config says nothing, the config's else."""
    with tritonclient.http.InferenceServerClient(server.http) as client:
        config = client.get_model_config("python")
        renamed = client.get_model_config("renamed")
    (taken,) = config["input"]
    assert (taken["name"], taken["data_type"], taken["dims"]) == ("IMAGES", "TYPE_UINT8", [-1])
    assert [(each["data_type"], each["dims"]) for each in config["output"]] == [
        ("TYPE_FP32", [-1, -1, -1]),
        ("TYPE_UINT8", [-1, -1, -1]),
    ]
    assert (config["max_batch_size"], renamed["max_batch_size"]) == (16, 8)
    assert "dynamic_batching" in config
    assert config["runtime"] == ""
    assert [each["name"] for each in renamed["output"]] == ["A", "B"]


def test_splitting(server: Server, repository: Path) -> None:
    """split_along_outer_axis makes a row of each entry of a sample's first dimension."""
    if not (repository / "split").exists():
        write(repository, "split", SEQUENCES, SPLIT.replace("dims: [ -1 ]", "dims: [ -1, -1 ]"))
    with tritonclient.http.InferenceServerClient(server.http) as client:
        client.load_model("split")
        x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
        sent = tritonclient.http.InferInput("X", [2, 3, 4], "INT32")
        sent.set_data_from_numpy(x)
        np.testing.assert_array_equal(client.infer("split", [sent]).as_numpy("ROWS"), x.reshape(6, 4) + 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", "has 0 pipelines that are marked with @nvidia.dali.plugin.triton.autoserialize, expected one"),
        ("cut", "model.dali' cannot be read: it is no serialized pipeline"),
        ("gpu", "its DALI pipeline has operators on a GPU and the instance is on a CPU"),
        ("few", "Model config outputs: 1, pipeline outputs: 2"),
    ],
)
def test_models_that_cannot_be_loaded(server: Server, name: str, text: str) -> None:
    """What is wrong with a pipeline's file is one sentence."""
    with (
        tritonclient.http.InferenceServerClient(server.http) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.load_model(name)
    assert text in str(caught.value)


def test_a_failed_run_hurts_no_other(server: Server, images: np.ndarray[Any, Any]) -> None:
    """A sample that the pipeline cannot take is an error of its request; the next request is answered."""
    with tritonclient.http.InferenceServerClient(server.http, network_timeout=60) as client:
        sent = tritonclient.http.InferInput("IMAGES", [1, 9], "UINT8")
        sent.set_data_from_numpy(np.arange(9, dtype=np.uint8)[None])
        with pytest.raises(InferenceServerException, match="DALI Backend error: "):
            client.infer("python", [sent])
        sent = tritonclient.http.InferInput("IMAGES", [1, *images.shape[1:]], "UINT8")
        sent.set_data_from_numpy(images[:1])
        assert client.infer("python", [sent]) is not None
