"""A model trained on real digits, as OpenVINO IR and as ONNX, served to NVIDIA's clients."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="pip install 'conch[openvino]'")

import openvino as ov
import tritonclient.grpc as grpc
import tritonclient.http as http
from onnx import helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from conch.types import dtype
from support.onnx_models import graph
from support.server import Server

#: Float32 sums in another order; OpenVINO's default on CPUs with BF16 would be 1e-2 off.
TOLERANCE = 1e-5


@dataclass
class Digits:
    server: Server
    repository: Path
    images: np.ndarray[Any, Any]
    #: What OpenVINO and scikit-learn say, called directly: probabilities.
    direct: np.ndarray[Any, Any]
    sklearn: np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Digits]:
    repository = tmp_path_factory.mktemp("openvino")
    data = load_digits()
    images = data.data.astype(np.float32) / 16
    trained = MLPClassifier((32,), max_iter=60, tol=1e-2, random_state=0).fit(images[:1200], data.target[:1200])
    assert trained.score(images[1200:], data.target[1200:]) > 0.8
    onnx = _as_onnx(trained)
    for name, file in (("as_onnx", "model.onnx"), ("as_ir", "model.onnx")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / file).write_bytes(onnx.SerializeToString())
    (repository / "as_onnx" / "config.pbtxt").write_text('backend: "openvino" default_model_filename: "model.onnx"')
    _to_ir(repository / "as_ir" / "1")
    _write_sums(repository / "sums")
    core = ov.Core()
    network = core.read_model(repository / "as_ir" / "1" / "model.xml")
    direct = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images[:64])[0]
    with Server(repository, "--model-control-mode=explicit", "--load-model=*") as server:
        yield Digits(server, repository, images[:64], direct, trained.predict_proba(images[:64]))


def _as_onnx(trained: MLPClassifier) -> Any:
    """Two layers and a softmax; skl2onnx writes operations of ONNX-ML, which OpenVINO does not have."""
    (first, second), (one, two) = trained.coefs_, trained.intercepts_
    weights = {"w1": first, "b1": one, "w2": second, "b2": two}
    nodes = [
        helper.make_node("Gemm", ["X", "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
    ]
    return graph(
        nodes,
        {"X": (dtype.FP32, ["batch", 64])},
        {"probabilities": (dtype.FP32, ["batch", 10])},
        {name: each.astype(np.float32) for name, each in weights.items()},
    )


def _write_sums(folder: Path) -> None:
    """`y` is the sum of a sequence's numbers: the server keeps it, and says where a sequence begins."""
    one = (dtype.FP32, ["batch", 1])
    nodes = [
        helper.make_node("Sub", ["one", "start"], ["goes_on"]),
        helper.make_node("Mul", ["sum", "goes_on"], ["before"]),
        helper.make_node("Add", ["before", "x"], ["new_sum"]),
        helper.make_node("Identity", ["new_sum"], ["y"]),
    ]
    inputs = {"x": one, "sum": one, "start": one}
    model = graph(nodes, inputs, {"y": one, "new_sum": one}, {"one": np.ones(1, np.float32)})
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())
    _to_ir(folder / "1")
    (folder / "config.pbtxt").write_text(
        """
        backend: "openvino"
        max_batch_size: 4
        sequence_batching {
          direct { }
          control_input { name: "start" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
          state { input_name: "sum" output_name: "new_sum" data_type: TYPE_FP32 dims: [ 1 ] }
        }
        """
    )


def _to_ir(version: Path) -> None:
    """model.xml and model.bin instead of model.onnx."""
    network = ov.Core().read_model(version / "model.onnx")
    ov.save_model(network, version / "model.xml", compress_to_fp16=False)
    (version / "model.onnx").unlink()


def _ask(client: Any, module: Any, model: str, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tensor = module.InferInput("X", images.shape, "FP32")
    tensor.set_data_from_numpy(images)
    found: np.ndarray[Any, Any] = client.infer(model, [tensor]).as_numpy("probabilities")
    return found


@pytest.mark.parametrize("model", ["as_ir", "as_onnx"])
@pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
def test_answers_are_those_of_the_framework(digits: Digits, model: str, module: Any) -> None:
    """One row, some rows, and more at once than a batch holds: as OpenVINO called directly, and as scikit-learn."""
    address = digits.server.http if module is http else digits.server.grpc
    with module.InferenceServerClient(address) as client:
        config = client.get_model_config(model) if module is http else client.get_model_config(model, as_json=True)
        config = config.get("config", config)
        assert config["backend"] == "openvino"
        assert int(config["max_batch_size"]) == 4
        for rows in (1, 3, 4):
            found = _ask(client, module, model, digits.images[:rows])
            np.testing.assert_allclose(found, digits.direct[:rows], atol=TOLERANCE)
            np.testing.assert_allclose(found, digits.sklearn[:rows], atol=1e-4)


def test_many_at_once_are_batched(digits: Digits) -> None:
    """Clients at the same time each get their own answer, and fewer executions than requests were needed."""

    def work(number: int) -> np.ndarray[Any, Any]:
        with grpc.InferenceServerClient(digits.server.grpc) as client:
            return np.stack([_ask(client, grpc, "as_ir", digits.images[n : n + 1])[0] for n in range(number, 64, 8)])

    with http.InferenceServerClient(digits.server.http) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
        for number, rows in enumerate(found):
            np.testing.assert_allclose(rows, digits.direct[number::8], atol=TOLERANCE)
        (statistics,) = client.get_inference_statistics("as_ir")["model_stats"]
        assert int(statistics["execution_count"]) <= int(statistics["inference_count"])


def test_the_model_is_reloaded(digits: Digits) -> None:
    """A load brings what has changed on disk; one that fails leaves the version that serves."""
    folder = digits.repository / "as_ir"
    with http.InferenceServerClient(digits.server.http) as client:
        (folder / "config.pbtxt").write_text('backend: "openvino" max_batch_size: 16')
        client.load_model("as_ir")
        np.testing.assert_allclose(_ask(client, http, "as_ir", digits.images[:16]), digits.direct[:16], atol=TOLERANCE)
        (folder / "config.pbtxt").write_text(
            'backend: "openvino" parameters { key: "NUM_STREAMS" value { string_value: "x" } }'
        )
        with pytest.raises(Exception, match="'NUM_STREAMS' to be either AUTO/NUMA/<int_value>, got x"):
            client.load_model("as_ir")
        np.testing.assert_allclose(_ask(client, http, "as_ir", digits.images[:16]), digits.direct[:16], atol=TOLERANCE)


def test_instances_are_streams(digits: Digits) -> None:
    """NUM_STREAMS says how many instances there are where instance_group does not; without both there are two."""
    config = 'backend: "openvino" default_model_filename: "model.onnx" '
    config += 'parameters { key: "NUM_STREAMS" value { string_value: "3" } }'
    with http.InferenceServerClient(digits.server.http) as client:
        assert client.get_model_config("as_onnx")["instance_group"][0]["count"] == 2
        (digits.repository / "as_onnx" / "config.pbtxt").write_text(config)
        client.load_model("as_onnx")
        assert client.get_model_config("as_onnx")["instance_group"][0]["count"] == 3
        np.testing.assert_allclose(_ask(client, http, "as_onnx", digits.images[:2]), digits.direct[:2], atol=TOLERANCE)


def test_sequences_keep_their_state(digits: Digits) -> None:
    """Controls and implicit state reach the model: two sequences in turn have sums of their own."""
    with http.InferenceServerClient(digits.server.http) as client:
        assert [each["name"] for each in client.get_model_metadata("sums")["inputs"]] == ["x"]
        sums: dict[int, list[float]] = {7: [], 8: []}
        for step in range(3):
            for sequence, found in sums.items():
                x = http.InferInput("x", [1, 1], "FP32")
                x.set_data_from_numpy(np.full((1, 1), sequence * 10**step, np.float32))
                end = {"sequence_start": step == 0, "sequence_end": step == 2}
                answer = client.infer("sums", [x], sequence_id=sequence, **end)
                found.append(answer.as_numpy("y").item())
        assert sums == {7: [7, 77, 777], 8: [8, 88, 888]}
