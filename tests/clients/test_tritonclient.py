"""NVIDIA's clients, unmodified: http, http.aio, grpc and grpc.aio against one running server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from conch.types.dtype import ALL, BF16, BOOL, BYTES, DataType
from support.onnx_models import add_sub
from support.server import Server
from support.tritonclients import KINDS, Client

PYTHON_MODEL = '''
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """Adds one; tells what it was given; fails on request."""

    def initialize(self, args):
        self.version = args["model_version"]

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            parameters = json.loads(request.parameters())
            if parameters.get("fail") == "execute":
                raise RuntimeError("told to fail")
            if parameters.get("fail") == "response":
                error = pb_utils.TritonError("this one is bad", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            told = json.dumps({"id": request.request_id(), "version": self.version, **parameters}, sort_keys=True)
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("y", x + np.float32(1)),
                pb_utils.Tensor("told", np.array([[told.encode()]] * x.shape[0], dtype=object)),
            ]))
        return responses
'''
PYTHON_CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "told" data_type: TYPE_STRING dims: [ 1 ] } ]
dynamic_batching { }
version_policy { all { } }
"""


def write_repository(root: Path) -> None:
    for datatype in ALL:
        folder = root / f"identity_{datatype.name}"
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(
            f'backend: "identity" max_batch_size: 4\n'
            f'input {{ name: "x" data_type: {datatype.config_name} dims: [ -1 ] }}\n'
            f'output {{ name: "y" data_type: {datatype.config_name} dims: [ -1 ] }}\n'
        )
    for version in ("1", "3"):
        (root / "python" / version).mkdir(parents=True)
        (root / "python" / version / "model.py").write_text(PYTHON_MODEL)
    (root / "python" / "config.pbtxt").write_text(PYTHON_CONFIG)
    (root / "bare" / "1").mkdir(parents=True)
    onnx.save(add_sub(), root / "bare" / "1" / "model.onnx")
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_text("this is no model")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    write_repository(root)
    (root / "late" / "1").mkdir(parents=True)
    flags = ("--model-control-mode=explicit", "--exit-on-error=false", "--strict-readiness=false")
    names = [
        f"--load-model={folder.name}" for folder in sorted(root.iterdir()) if folder.name not in ("late", "broken")
    ]
    with Server(root, *flags, *names) as running:
        yield running


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    made = Client(request.param, server.grpc if request.param.startswith("grpc") else server.http)
    yield made
    made.close()


def sample(datatype: DataType, rows: int) -> np.ndarray[Any, Any]:
    """Values at the ends of the type's range and between them, three to a row."""
    if datatype is BYTES:
        return np.array([[b"", b"x" * 300, "grün".encode()]] * rows, dtype=object)
    if datatype is BF16:
        return np.array([[0.0, -1.5, 1e30]] * rows, dtype=ml_dtypes.bfloat16)
    if datatype is BOOL:
        return np.array([[True, False, True]] * rows)
    limits: Any = np.finfo(datatype.numpy) if datatype.numpy.kind == "f" else np.iinfo(datatype.numpy)
    return np.array([[limits.min, 1, limits.max]] * rows, dtype=datatype.numpy)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("datatype", ALL, ids=str)
def test_every_data_type_comes_back_as_it_went(client: Client, datatype: DataType, rows: int) -> None:
    """Binary tensors of each type, single and in a batch, are the same after a round trip."""
    sent = sample(datatype, rows)
    result = client.infer(f"identity_{datatype.name}", {"x": (datatype.name, sent)})
    assert result.as_numpy("y").tolist() == sent.tolist()


@pytest.mark.parametrize("datatype", [t for t in ALL if t.name not in ("FP16", "BF16")], ids=str)
def test_every_data_type_travels_as_json(server: Server, datatype: DataType) -> None:
    """Over HTTP without the binary extension values are the same too, to the last digit."""
    client = Client("http", server.http)
    sent = sample(datatype, 2)
    got = client.infer(f"identity_{datatype.name}", {"x": (datatype.name, sent)}, ["y"], binary=False).as_numpy("y")
    client.close()
    expected = [[text.decode() for text in row] for row in sent.tolist()] if datatype is BYTES else sent.tolist()
    found = [[t.decode() if isinstance(t, bytes) else t for t in row] for row in got.tolist()]
    assert found == expected


def test_request_id_parameters_and_version_reach_the_model(client: Client) -> None:
    """The id comes back, the highest version answers unless one is named, custom parameters reach the model."""
    x = np.ones((2, 4), dtype=np.float32)
    result = client.infer("python", {"x": ("FP32", x)}, request_id="r-1", parameters={"a": 1, "b": "two", "c": True})
    assert result.as_numpy("y").tolist() == (x + 1).tolist()
    assert result.as_numpy("told")[0][0] == b'{"a": 1, "b": "two", "c": true, "id": "r-1", "version": "3"}'
    response = result.get_response(as_json=True) if client.is_grpc else result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r-1", "python", "3")
    older = client.infer("python", {"x": ("FP32", x)}, ["told"], model_version="1")
    assert b'"version": "1"' in older.as_numpy("told")[0][0]
    assert older.as_numpy("y") is None


def test_bare_onnx_model_is_served_without_config(client: Client) -> None:
    """A model.onnx in a version folder: signature, batching and defaults are read from the file."""
    a, b = np.full((3, 2), 5, np.float32), np.full((3, 2), 2, np.float32)
    result = client.infer("bare", {"a": ("FP32", a), "b": ("FP32", b)})
    assert result.as_numpy("sum").tolist() == (a + b).tolist()
    assert result.as_numpy("difference").tolist() == (a - b).tolist()


X = {"x": ("FP32", np.zeros((1, 4), np.float32))}


@pytest.mark.parametrize(
    ("arguments", "options", "code", "text"),
    [
        (("nobody", X), {}, "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        (
            ("python", X),
            {"model_version": "2"},
            "NOT_FOUND",
            "Request for unknown model: 'python' version 2 is not found",
        ),
        (("python", {"z": X["x"]}), {}, "INVALID_ARG", "unexpected inference input 'z' for model 'python'"),
        (("python", X, ["q"]), {}, "INVALID_ARG", "unexpected inference output 'q' for model 'python'"),
        (("python", {"x": ("FP32", np.zeros((9, 4), np.float32))}), {}, "INVALID_ARG", "batch-size must be <= 8"),
        (("python", {"x": ("FP32", np.zeros((1, 5), np.float32))}), {}, "INVALID_ARG", "Expected [-1,4], got [1,5]"),
        (("python", {"x": ("INT32", np.zeros((1, 4), np.int32))}), {}, "INVALID_ARG", "data-type is 'INT32'"),
        (("python", X), {"parameters": {"fail": "execute"}}, "INTERNAL", "RuntimeError: told to fail"),
        (("python", X), {"parameters": {"fail": "response"}}, "INVALID_ARG", "this one is bad"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_have_tritons_code_and_text(
    client: Client, arguments: tuple[Any, ...], options: dict[str, Any], code: str, text: str
) -> None:
    """What a client gets wrong, and what a model does wrong, is told in Triton's words under Triton's code."""
    got, message = client.refusal("infer", *arguments, **options)
    assert got == code
    assert text in message


def test_health_and_metadata(client: Client) -> None:
    """Live and ready; server and model metadata name everything a client looks for."""
    assert client.call("is_server_live")
    assert client.call("is_server_ready")
    assert client.call("is_model_ready", "python")
    if client.is_grpc:
        assert client.refusal("is_model_ready", "nobody")[0] == "NOT_FOUND"
    else:
        assert not client.call("is_model_ready", "nobody")
    server = client.call("get_server_metadata")
    assert server["name"] == "triton"
    assert "binary_tensor_data" in server["extensions"]
    model = client.call("get_model_metadata", "python")
    assert model["versions"] == ["1", "3"]
    assert [t["datatype"] for t in model["outputs"]] == ["FP32", "BYTES"]
    assert [int(size) for size in model["inputs"][0]["shape"]] == [-1, 4]


def test_config_has_what_was_written_and_what_was_filled_in(client: Client) -> None:
    """The config of a model without one is complete; that of one with one is kept."""
    bare = client.call("get_model_config", "bare")
    bare = bare.get("config", bare)
    assert (bare["backend"], bare["platform"], bare["max_batch_size"]) == ("onnxruntime", "onnxruntime_onnx", 4)
    assert [tensor["name"] for tensor in bare["input"]] == ["a", "b"]
    assert "dynamic_batching" in bare
    written = client.call("get_model_config", "python", "1")
    assert written.get("config", written)["max_batch_size"] == 8


def test_statistics_count_requests_rows_and_executions(client: Client) -> None:
    """Three rows in one request: one success, three inferences, one execution, times in nanoseconds."""
    name = "identity_INT8"

    def counts() -> dict[str, Any]:
        return client.call("get_inference_statistics", name)["model_stats"][0]  # type: ignore[no-any-return]

    before = counts()
    client.infer(name, {"x": ("INT8", np.zeros((3, 1), np.int8))})
    after = counts()
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 3
    assert int(after["execution_count"]) - int(before.get("execution_count", 0)) == 1
    success = after["inference_stats"]["success"]
    assert int(success["count"]) - int(before["inference_stats"]["success"].get("count", 0)) == 1
    assert int(success["ns"]) > 0
    assert client.refusal("get_inference_statistics", "nobody")[0] == "INVALID_ARG"


def test_index_load_and_unload(client: Client, server: Server, tmp_path: Path) -> None:
    """A model comes, is replaced by a config override, and goes; the index tells its state and reasons."""
    entries = client.call("get_model_repository_index")
    entries = entries.get("models", []) if isinstance(entries, dict) else entries
    states = {entry["name"]: entry.get("state") for entry in entries}
    assert states["bare"] == "READY"
    assert states["late"] is None, "never loaded: it has only a name"
    name = "identity_BOOL"
    client.call("unload_model", name)
    code, _ = client.refusal("infer", name, {"x": ("BOOL", np.ones((1, 1), bool))})
    assert code == "NOT_FOUND"
    override = '{"backend":"identity","max_batch_size":2,"input":[{"name":"x","data_type":"TYPE_BOOL","dims":[-1]}],'
    override += '"output":[{"name":"y","data_type":"TYPE_BOOL","dims":[-1]}]}'
    client.call("load_model", name, config=override)
    config = client.call("get_model_config", name)
    assert config.get("config", config)["max_batch_size"] == 2
    client.call("load_model", name)
    config = client.call("get_model_config", name)
    assert config.get("config", config)["max_batch_size"] == 4
    code, text = client.refusal("load_model", "broken")
    assert code == "INVALID_ARG"
    assert text.startswith("load failed for model 'broken': version 1 is at UNAVAILABLE state: ")
    entries = client.call("get_model_repository_index")
    entries = entries.get("models", []) if isinstance(entries, dict) else entries
    broken = next(entry for entry in entries if entry["name"] == "broken")
    assert broken["state"] == "UNAVAILABLE"
    assert broken["reason"].startswith("Internal: ")
    code, text = client.refusal("load_model", "nobody")
    assert (code, text) == ("INTERNAL", "failed to load 'nobody', failed to poll from model repository")
    assert client.call("is_server_live")
