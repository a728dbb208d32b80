"""TensorFlow models, trained here, saved, served, and compared with TensorFlow called directly."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http

from support.server import BIN, Server
from support.tensorflow_models import make_models, needs_tensorflow

pytestmark = [needs_tensorflow, pytest.mark.slow, pytest.mark.timeout(600)]

GRAPH = """
platform: "tensorflow_graphdef"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "OUTPUT1:0" data_type: TYPE_FP32 dims: [ 4 ] } ]
parameters { key: "TF_INIT_OPS_FILE" value { string_value: "init_ops.json" } }
parameters { key: "TF_NUM_INTRA_THREADS" value { string_value: "1" } }
"""
SIGNATURE = 'parameters { key: "TF_SIGNATURE_DEF" value { string_value: "words" } }\n'
#: Batches of other sizes are summed in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tensorflow")
    make_models(root)
    return root


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, Any]:
    with np.load(made / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    # As TensorFlow Serving has it.
    shutil.copytree(made / "saved", made / "serving" / "digits" / "00000001")
    subprocess.run([BIN / "conch", "import", made / "serving", "--into", root], check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(made / "saved", root / "words" / "1" / "model.savedmodel")
    (root / "words" / "config.pbtxt").write_text(SIGNATURE)
    (root / "graph" / "1").mkdir(parents=True)
    (root / "graph" / "config.pbtxt").write_text(GRAPH)
    shutil.copy(made / "graph.pb", root / "graph" / "1" / "model.graphdef")
    (root / "graph" / "1" / "init_ops.json").write_text('{"init_ops": ["init"]}')
    (root / "lacking" / "1").mkdir(parents=True)
    shutil.copytree(made / "saved", root / "lacking" / "1" / "model.savedmodel")
    shutil.rmtree(root / "lacking" / "1" / "model.savedmodel" / "variables")
    flags = ["--model-control-mode=explicit", "--load-model=digits", "--load-model=words", "--load-model=graph"]
    with Server(root, *flags, timeout=240) as running:
        yield running


def tensor(module: Any, name: str, array: Any, datatype: str) -> Any:
    made = module.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def post(server: Server, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://{server.http}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=240) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_trained_model_agrees_with_tensorflow(server: Server, expected: dict[str, Any]) -> None:
    """Every digit, in batches of four over gRPC and one by one over HTTP; and it has learned something."""
    rpc, web = grpc.InferenceServerClient(server.grpc), http.InferenceServerClient(server.http)
    pixels = expected["pixels"]
    found = [
        rpc.infer("digits", [tensor(grpc, "pixels", pixels[at : at + 4], "FP32")]) for at in range(0, len(pixels), 4)
    ]
    probabilities = np.concatenate([each.as_numpy("probabilities") for each in found])
    digits = np.concatenate([each.as_numpy("digit") for each in found])
    assert np.abs(probabilities - expected["probabilities"]).max() < TOLERANCE
    assert digits.shape == (len(pixels), 1)
    assert (digits[:, 0] == expected["digit"]).all()
    assert (digits[:, 0] == expected["labels"]).mean() > 0.8
    for row in range(3):
        one = web.infer("digits", [tensor(http, "pixels", pixels[row : row + 1], "FP32")])
        assert np.abs(one.as_numpy("probabilities") - expected["probabilities"][row]).max() < TOLERANCE
    rpc.close()
    web.close()


def test_requests_share_batches(server: Server, expected: dict[str, Any]) -> None:
    """Requests at the same time get their own rows."""
    client = grpc.InferenceServerClient(server.grpc)

    def ask(row: int) -> Any:
        x = tensor(grpc, "pixels", expected["pixels"][row : row + 1], "FP32")
        return client.infer("digits", [x], outputs=[grpc.InferRequestedOutput("digit")]).as_numpy("digit")[0, 0]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(400))) == expected["digit"][:400].tolist()
    statistics = client.get_inference_statistics("digits", as_json=True)["model_stats"][0]
    assert int(statistics["execution_count"]) < int(statistics["inference_count"])
    client.close()


def test_the_config_is_the_signatures(server: Server) -> None:
    """Names, types, shapes without the batch dimension, and a dynamic batcher."""
    client = http.InferenceServerClient(server.http)
    config = client.get_model_config("digits")
    client.close()
    assert config["backend"] == "tensorflow"
    assert config["max_batch_size"] == 4
    assert "dynamic_batching" in config
    shown = [(each["name"], each["data_type"], each["dims"]) for each in config["input"] + config["output"]]
    assert shown == [
        ("pixels", "TYPE_FP32", [64]), ("digit", "TYPE_INT64", [1]), ("probabilities", "TYPE_FP32", [10]),
    ]  # fmt: skip
    assert config["runtime"] == ""
    assert [each["count"] for each in config["instance_group"]] == [1]


def test_strings(server: Server) -> None:
    """BYTES go in and come out as they are, whatever they hold."""
    client = grpc.InferenceServerClient(server.grpc)
    words = np.array([[b"abc", b"\x00\xff"], ["\u00e9t\u00e9".encode(), b""]], dtype=object)
    rows = np.zeros((2, 1), np.int64)
    answer = client.infer("words", [tensor(grpc, "words", words, "BYTES"), tensor(grpc, "rows", rows, "INT64")])
    assert answer.as_numpy("upper").tolist() == [[b"ABC", b"\x00\xff"], ["\u00e9T\u00e9".encode(), b""]]
    assert answer.as_numpy("length").tolist() == [[3, 2], [5, 0]]
    client.close()


def test_a_graph_def_with_variables(server: Server) -> None:
    """By the names of its nodes; its variables are set by the operations of TF_INIT_OPS_FILE."""
    client = grpc.InferenceServerClient(server.grpc)
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
    answer = client.infer("graph", [tensor(grpc, "INPUT0", a, "FP32"), tensor(grpc, "INPUT1", b, "FP32")])
    assert (answer.as_numpy("OUTPUT0") == a + b).all()
    assert (answer.as_numpy("OUTPUT1:0") == 3 * (a - b)).all()
    client.close()


def test_a_bad_request_spoils_no_other(server: Server, expected: dict[str, Any]) -> None:
    """What the graph refuses is INVALID_ARG for the request that brought it, with TensorFlow's words."""

    def ask(row: int) -> tuple[int, Any]:
        return post(server, "/v2/models/words/infer", {
            "inputs": [
                {"name": "rows", "datatype": "INT64", "shape": [1, 1], "data": [row]},
                {"name": "words", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]},
            ],
            "outputs": [{"name": "row"}],
        })  # fmt: skip

    rows = [0, 1, 2, 9] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, rows))
    for row, (status, body) in zip(rows, answers, strict=True):
        if row == 9:
            assert status == 400
            assert body["error"].startswith("TensorFlow: ")
        else:
            assert np.abs(np.array(body["outputs"][0]["data"]) - expected["weights"][row]).max() < TOLERANCE


def test_tensorflow_is_not_in_the_server(server: Server) -> None:
    """Its libraries are mapped by the workers alone."""
    process = psutil.Process(server.process.pid)
    assert not [each.path for each in process.memory_maps() if "tensorflow" in each.path]
    assert [worker for worker in process.children() if any("tensorflow" in m.path for m in worker.memory_maps())]


def test_a_model_is_reloaded(server: Server, expected: dict[str, Any]) -> None:
    """A load with another config is there when it returns, and answers go on."""
    body = {"parameters": {"config": json.dumps({"max_batch_size": 32, "platform": "tensorflow_savedmodel"})}}
    assert post(server, "/v2/repository/models/digits/load", body)[0] == 200
    client = grpc.InferenceServerClient(server.grpc)
    answer = client.infer("digits", [tensor(grpc, "pixels", expected["pixels"][:32], "FP32")])
    assert np.abs(answer.as_numpy("probabilities") - expected["probabilities"][:32]).max() < TOLERANCE
    client.close()


def test_a_model_without_its_variables_is_one_sentence(server: Server) -> None:
    """What TensorFlow itself refuses is told in its first line."""
    status, body = post(server, "/v2/repository/models/lacking/load", {})
    assert status == 400
    assert "unable to load model 'lacking', TensorFlow cannot open it: " in body["error"]
    assert len(body["error"].strip().splitlines()) == 1
