"""Text of any length and ragged batches, end to end: a real server, models of two frameworks, NVIDIA's client."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as client
from onnx import helper
from tritonclient.utils import InferenceServerException

from conch.types.dtype import FP32, INT32, INT64
from support.onnx_models import graph
from support.server import Server
from support.until import until

#: A full batch goes at once, anything else waits much longer than a test.
BATCHING = "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 60000000 }\n"
TOKENS = """
input [ { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }, { name: "mask" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "hidden" data_type: TYPE_INT64 dims: [ -1 ] }, { name: "length" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""
PADDING = {
    "inputs": {"ids": {"axis": 1, "value": -1, "buckets": [4, 8]}},
    "mask": {"name": "mask", "like": "ids"},
    "outputs": {"hidden": {"axis": 1, "like": "ids"}},
}

PYTHON_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        shapes = {request.inputs()[0].as_numpy().shape[1] for request in requests}
        assert len(shapes) == 1, shapes
        answers = []
        for request in requests:
            ids, mask = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("ids", "mask")]
            assert ((ids == -1) == (mask == 0)).all()
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("hidden", ids * mask),
                pb_utils.Tensor("length", mask.sum(axis=1, keepdims=True)),
            ]))
        return answers
"""
RAGGED_CONFIG = """
backend: "onnxruntime"
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true } ]
batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_INT32 source_input: "x" } ]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "count" data_type: TYPE_INT32 dims: [ 1 ] reshape { shape: [ ] } }
]
batch_output [ { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" } ]
"""
PIPELINE = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "vectors" data_type: TYPE_INT64 dims: [ -1 ] } ]
ensemble_scheduling { step [ {
  model_name: "onnx" model_version: -1
  input_map { key: "ids" value: "tokens" } output_map { key: "hidden" value: "vectors" }
} ] }
"""
WARM = """
model_warmup [ { name: "short" batch_size: 1
  inputs { key: "ids" value { data_type: TYPE_INT64 dims: [ 3 ] zero_data: true } }
} ]
"""


def encoder() -> onnx.ModelProto:
    """`hidden` is `ids` where `mask` is 1, `length` how often that is."""
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["hidden"]),
        helper.make_node("ReduceSum", ["mask", "axes"], ["length"]),
    ]
    tokens = (INT64, ["batch", "length"])
    return graph(
        nodes,
        {"ids": tokens, "mask": tokens},
        {"hidden": tokens, "length": (INT64, ["batch", 1])},
        {"axes": np.array([1], np.int64)},
    )


def counted() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["n"], ["count"])]
    x, n = (FP32, ["elements"]), (INT32, ["requests"])
    return graph(nodes, {"x": x, "n": n}, {"y": x, "count": n})


def write(root: Path, name: str, config: str, model: onnx.ModelProto | str, padding: Any = None) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    if padding is not None:
        text = json.dumps(json.dumps(padding))
        config += f'parameters {{ key: "conch_padding" value {{ string_value: {text} }} }}\n'
    (root / name / "config.pbtxt").write_text(config)
    if isinstance(model, str):
        (folder / "model.py").write_text(model)
    else:
        (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("repository")
    write(root, "onnx", 'backend: "onnxruntime"\n' + BATCHING + TOKENS, encoder(), PADDING)
    write(root, "python", 'backend: "python"\n' + BATCHING + TOKENS + WARM, PYTHON_MODEL, PADDING)
    (root / "pipeline" / "1").mkdir(parents=True)
    (root / "pipeline" / "config.pbtxt").write_text(PIPELINE)
    merging = {**PADDING, "max_waste": 0.5}
    write(root, "merging", 'backend: "onnxruntime"\n' + BATCHING + TOKENS, encoder(), merging)
    write(root, "ragged", RAGGED_CONFIG + BATCHING, counted())
    broken = {"inputs": {"ids": {"axis": 3}}}
    write(root, "broken", 'backend: "onnxruntime"\n' + BATCHING + TOKENS, encoder(), broken)
    with Server(root, "--exit-on-error=false", "--strict-readiness=false") as server:
        yield server


def tensor(name: str, array: np.ndarray[Any, Any], kind: str) -> client.InferInput:
    made = client.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


def infer(server: Server, model: str, ids: list[int], mask: list[int] | None = None) -> Any:
    inputs = [tensor("ids", np.array([ids], np.int64), "INT64")]
    if mask is not None:
        inputs.append(tensor("mask", np.array([mask], np.int64), "INT64"))
    with client.InferenceServerClient(server.http) as asking:
        return asking.infer(model, inputs)


def together(server: Server, model: str, lengths: list[int]) -> list[Any]:
    with ThreadPoolExecutor(len(lengths)) as pool:
        return list(pool.map(lambda length: infer(server, model, list(range(1, length + 1))), lengths))


def counters(server: Server, model: str) -> dict[str, int]:
    connection = http.client.HTTPConnection(server.metrics)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    found = {}
    for line in page.splitlines():
        if f'model="{model}"' in line and not line.startswith("#"):
            found[line.split("{")[0]] = int(float(line.split()[-1]))
    return found


COUNTED = (
    "nv_inference_exec_count", "nv_inference_count", "conch_padded_input_elements", "conch_padding_elements",
)  # fmt: skip


@pytest.mark.parametrize("model", ["onnx", "python"])
def test_texts_of_different_lengths_run_as_one_batch(server: Server, model: str) -> None:
    """Four lengths of one bucket are one execution with masks made by the server; answers have their own lengths."""
    before = counters(server, model)
    for length, answer in zip([1, 4, 2, 3], together(server, model, [1, 4, 2, 3]), strict=True):
        assert answer.as_numpy("hidden").tolist() == [list(range(1, length + 1))]
        assert answer.as_numpy("length").tolist() == [[length]]

    def grown() -> tuple[int, ...]:
        after = counters(server, model)
        return tuple([after[name] - before[name] for name in COUNTED])

    # Instances count when they have answered.
    until(lambda: grown()[1] >= 4)
    assert grown() == (1, 4, 16, 6)


def test_a_mask_that_is_sent_counts(server: Server) -> None:
    """The client's own mask reaches the model, beside masks that the server makes."""
    with ThreadPoolExecutor(4) as pool:
        own = pool.submit(infer, server, "onnx", [5, 6, 7], [1, 0, 1])
        others = [pool.submit(infer, server, "onnx", [5, 6]) for _ in range(3)]
        assert own.result().as_numpy("hidden").tolist() == [[5, 0, 7]]
        assert [other.result().as_numpy("hidden").tolist() for other in others] == [[[5, 6]]] * 3


def test_buckets_merge_within_the_waste(server: Server) -> None:
    """With `max_waste` a batch takes in requests of a smaller bucket."""
    before = counters(server, "merging")["nv_inference_exec_count"]
    with ThreadPoolExecutor(8) as pool:
        long = [pool.submit(infer, server, "merging", list(range(1, 8))) for _ in range(4)]
        assert [each.result().as_numpy("length").tolist() for each in long] == [[[7]]] * 4
    until(lambda: counters(server, "merging")["nv_inference_count"] == 4)
    assert counters(server, "merging")["nv_inference_exec_count"] == before + 1


def test_a_step_of_an_ensemble_is_padded(server: Server) -> None:
    """A step needs no mask where the server makes it, and its answers go on with their own lengths."""

    def ask(length: int) -> Any:
        with client.InferenceServerClient(server.http) as asking:
            return asking.infer("pipeline", [tensor("tokens", np.full((1, length), 7, np.int64), "INT64")])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, [1, 4, 2, 3]))
    assert [answer.as_numpy("vectors").shape for answer in answers] == [(1, 1), (1, 4), (1, 2), (1, 3)]


def test_warming_up_is_not_counted(server: Server) -> None:
    """Samples are padded as requests are, with a mask; the counters of waste are about requests."""
    until(lambda: "warm after 1 samples" in server.log)
    found = counters(server, "python")
    assert found["conch_padded_input_elements"] == 4 * found["nv_inference_count"]


def test_too_long_is_refused(server: Server) -> None:
    """An input beyond the largest bucket is the client's mistake, named as such."""
    with pytest.raises(InferenceServerException, match="'ids' has size 9 in dimension 1, more than 8, its largest"):
        infer(server, "onnx", list(range(9)))


def test_ragged_batch(server: Server) -> None:
    """Requests of different lengths reach the model as one row of elements, with their counts, and get theirs back."""

    def ask(length: int) -> Any:
        with client.InferenceServerClient(server.http) as asking:
            return asking.infer("ragged", [tensor("x", np.full((1, length), length, "f4"), "FP32")])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, [1, 5, 3, 2]))
    for length, answer in zip([1, 5, 3, 2], answers, strict=True):
        assert answer.as_numpy("y").tolist() == [[2.0 * length] * length]
        assert answer.as_numpy("count").tolist() == [[length]]
    until(lambda: counters(server, "ragged")["nv_inference_count"] == 4)
    assert counters(server, "ragged")["nv_inference_exec_count"] == 1


def test_a_wrong_declaration_says_where(server: Server) -> None:
    """The model does not load; the index has the reason."""
    with client.InferenceServerClient(server.http) as asking:
        reasons = {each["name"]: each.get("reason", "") for each in asking.get_model_repository_index()}
    assert "inputs.ids.axis of parameter 'conch_padding' is 3" in reasons["broken"]
