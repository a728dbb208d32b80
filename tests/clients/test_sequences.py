"""Sequences as clients use them: HTTP, gRPC and gRPC streams, with models of Python and of ONNX."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import helper
from tritonclient.utils import InferenceServerException

from conch.types import dtype
from support.onnx_models import graph
from support.server import Server

pytestmark = pytest.mark.slow

SUM = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = {t.name(): t.as_numpy() for t in request.inputs()}
            key = request.correlation_id()
            # A row without a request has no id.
            if tensors["START"].any() or not key:
                self.sums[key] = 0
            self.sums[key] += int(tensors["X"].sum())
            total = np.array([[self.sums[key]]], dtype=np.int32)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("Y", total)]))
        return responses
"""
#: Uses implicit state, as the real server's Python backend cannot.
STATE = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = {t.name(): t.as_numpy() for t in request.inputs()}
            total = tensors["X"] + tensors["STATE_IN"]
            outputs = [pb_utils.Tensor("Y", total), pb_utils.Tensor("STATE_OUT", total)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""
#: Answers each request three executions later.
PATIENT = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.runs = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            key = request.correlation_id()
            self.runs[key] = self.runs.get(key, 0) + 1
            if self.runs[key] < 3:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
            else:
                runs = np.array([[self.runs.pop(key)]], dtype=np.int32)
                responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("Y", runs)]))
        return responses
"""
TENSORS = """
backend: "%s"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
START = 'control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }'
READY = 'control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } }'
KEPT = 'state { input_name: "STATE_IN" output_name: "STATE_OUT" data_type: TYPE_INT32 dims: [ %s ] %s }'
FROM_FILE = 'initial_state { name: "first" data_type: TYPE_INT32 dims: [ 1 ] data_file: "first" }'
ZERO = 'initial_state { name: "first" data_type: TYPE_INT32 dims: [ %s ] zero_data: true }'

MODELS = {
    "direct": ("python", f"direct {{ }} {START}", SUM),
    "oldest": ("python", f"oldest {{ max_candidate_sequences: 16 }} {START}", SUM),
    "state": ("python", f"oldest {{ max_candidate_sequences: 16 }} {KEPT % ('1', '')}", STATE),
    "patient": ("python", "iterative_sequence: true oldest { max_candidate_sequences: 16 }", PATIENT),
    "onnx": ("onnxruntime", f"direct {{ }} {START} {READY} {KEPT % ('1', '')}", "sum"),
    "onnx_file": ("onnxruntime", f"oldest {{ max_candidate_sequences: 16 }} {KEPT % ('1', FROM_FILE)}", "state"),
    "onnx_grows": (
        "onnxruntime",
        f"oldest {{ max_candidate_sequences: 16 }} {KEPT % ('-1', ZERO % '0')}",
        "grows",
    ),
}
BATCHED = ("batch", 1)


def onnx_model(kind: str) -> bytes:
    """The sum so far. `sum` takes a START control, and adds a state that READY keeps; `grows` keeps all values."""
    inputs = {"X": (dtype.INT32, BATCHED), "STATE_IN": (dtype.INT32, BATCHED)}
    outputs = {"Y": (dtype.INT32, BATCHED), "STATE_OUT": (dtype.INT32, BATCHED)}
    nodes = [helper.make_node("Add", ["X", "STATE_IN"], ["Y"]), helper.make_node("Identity", ["Y"], ["STATE_OUT"])]
    constants: dict[str, Any] = {}
    if kind == "sum":
        inputs |= {"START": (dtype.INT32, BATCHED), "READY": (dtype.INT32, BATCHED)}
        # Initial states are zero, so START and READY are only looked at.
        nodes = [
            helper.make_node("Mul", ["START", "STATE_IN"], ["nothing"]),
            helper.make_node("Mul", ["X", "READY"], ["asked"]),
            helper.make_node("Add", ["asked", "STATE_IN"], ["total"]),
            helper.make_node("Sub", ["total", "nothing"], ["Y"]),
            helper.make_node("Identity", ["Y"], ["STATE_OUT"]),
        ]
    if kind == "grows":
        inputs["STATE_IN"] = outputs["STATE_OUT"] = (dtype.INT32, ("batch", "length"))
        nodes = [
            helper.make_node("Concat", ["STATE_IN", "X"], ["STATE_OUT"], axis=1),
            helper.make_node("ReduceSum", ["STATE_OUT", "axes"], ["Y"], keepdims=1),
        ]
        constants["axes"] = np.array([1], dtype=np.int64)
    return graph(nodes, inputs, outputs, constants).SerializeToString()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name, (backend, inside, source) in MODELS.items():
        (root / name / "1").mkdir(parents=True)
        idle = "max_sequence_idle_microseconds: 60000000"
        text = TENSORS % backend + f"sequence_batching {{ {idle} {inside} }}\n"
        (root / name / "config.pbtxt").write_text(text)
        if backend == "python":
            (root / name / "1" / "model.py").write_text(source)
        else:
            (root / name / "1" / "model.onnx").write_bytes(onnx_model(source))
    (root / "onnx_file" / "initial_state").mkdir()
    (root / "onnx_file" / "initial_state" / "first").write_bytes(np.array([1000], dtype=np.int32).tobytes())
    with Server(root) as server:
        server.ready_seconds()
        yield server


Ask = Callable[..., int]


def over_http(server: Server) -> Ask:
    client = httpclient.InferenceServerClient(server.http)

    def ask(model: str, value: int, **sequence: Any) -> int:
        tensor = httpclient.InferInput("X", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.int32))
        return int(client.infer(model, [tensor], **sequence).as_numpy("Y")[0, 0])

    return ask


def grpc_input(value: int) -> Any:
    tensor = grpcclient.InferInput("X", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.int32))
    return tensor


def over_grpc(server: Server) -> Ask:
    client = grpcclient.InferenceServerClient(server.grpc)

    def ask(model: str, value: int, **sequence: Any) -> int:
        return int(client.infer(model, [grpc_input(value)], **sequence).as_numpy("Y")[0, 0])

    return ask


BOTH = pytest.mark.parametrize("way", [over_http, over_grpc], ids=["http", "grpc"])
STATEFUL = pytest.mark.parametrize("model", ["direct", "oldest", "state", "onnx", "onnx_file", "onnx_grows"])


@BOTH
@STATEFUL
@pytest.mark.parametrize("name", [7, "ann"])
def test_sequences_add_up(server: Server, way: Callable[[Server], Ask], model: str, name: int | str) -> None:
    """Two sequences, in turn, each with its own sum; the next of the name begins anew."""
    ask = way(server)
    other = 8 if name == 7 else "bob"
    first = 1000 if model == "onnx_file" else 0
    for _ in range(2):
        assert ask(model, 5, sequence_id=name, sequence_start=True) == first + 5
        assert ask(model, 50, sequence_id=other, sequence_start=True) == first + 50
        assert ask(model, 6, sequence_id=name) == first + 11
        assert ask(model, 60, sequence_id=other) == first + 110
        assert ask(model, 7, sequence_id=name, sequence_end=True) == first + 18
        assert ask(model, 70, sequence_id=other, sequence_end=True) == first + 180
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        ask(model, 1, sequence_id=name)


@STATEFUL
def test_streams_carry_many_sequences(server: Server, model: str) -> None:
    """Without waiting for answers: 12 sequences (more than there are slots) of 10 requests over one stream."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = grpcclient.InferenceServerClient(server.grpc)
    client.start_stream(lambda result, error: answers.put((result, error)))
    for step in range(10):
        for name in range(1, 13):
            client.async_stream_infer(
                model, [grpc_input(name)], sequence_id=name, sequence_start=step == 0, sequence_end=step == 9,
                request_id=f"{name} {step}",
            )  # fmt: skip
    first = 1000 if model == "onnx_file" else 0
    seen = {}
    for _ in range(120):
        result, error = answers.get(timeout=30)
        assert error is None
        name, step = map(int, result.get_response().id.split())
        seen[name, step] = int(result.as_numpy("Y")[0, 0])
    client.stop_stream()
    assert seen == {(name, step): first + name * (step + 1) for name in range(1, 13) for step in range(10)}


def test_iterative_requests_run_until_they_are_answered(server: Server) -> None:
    """Without an id, many at a time."""
    client = grpcclient.InferenceServerClient(server.grpc)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(20):
        client.async_infer("patient", [grpc_input(1)], lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=30)
        assert error is None
        assert result.as_numpy("Y")[0, 0] == 3


def test_a_stream_that_is_left_gives_its_slots_back(server: Server) -> None:
    """What waits is dropped; the ids can be used again at once."""
    for _ in range(3):
        client = grpcclient.InferenceServerClient(server.grpc)
        client.start_stream(lambda result, error: None)
        for name in range(1, 30):
            client.async_stream_infer("direct", [grpc_input(1)], sequence_id=name, sequence_start=True)
        client.stop_stream(cancel_requests=True)
    ask = over_http(server)
    for name in range(101, 105):
        # Fills the slots that are free, so it must not wait for more than the sequences before it.
        assert ask("oldest", 2, sequence_id=name, sequence_start=True, sequence_end=True) == 2


def test_clients_see_their_tensors_alone(server: Server) -> None:
    """Controls and states are no part of the metadata, and cannot be sent or asked for."""
    client = httpclient.InferenceServerClient(server.http)
    metadata = client.get_model_metadata("onnx")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["X"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["Y"]
    tensor = httpclient.InferInput("X", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[1]], dtype=np.int32))
    wanted = [httpclient.InferRequestedOutput("STATE_OUT")]
    with pytest.raises(InferenceServerException, match="unexpected inference output 'STATE_OUT'"):
        client.infer("onnx", [tensor], outputs=wanted, sequence_id=1, sequence_start=True)
    start = httpclient.InferInput("START", [1, 1], "INT32")
    start.set_data_from_numpy(np.array([[1]], dtype=np.int32))
    with pytest.raises(InferenceServerException, match="expected 1 inputs but got 2 inputs"):
        client.infer("onnx", [tensor, start], sequence_id=1, sequence_start=True)
    assert "sequence" in client.get_server_metadata()["extensions"]


def test_statistics_count_requests(server: Server, tmp_path: Path) -> None:
    """Rows without a request are in the sizes of batches only."""
    client = httpclient.InferenceServerClient(server.http)
    for model in ("direct", "onnx"):
        stats = client.get_inference_statistics(model)["model_stats"][0]
        assert stats["inference_count"] == stats["inference_stats"]["success"]["count"]
        rows = sum(int(each["batch_size"]) * each["compute_infer"]["count"] for each in stats["batch_stats"])
        assert rows >= stats["inference_count"]
