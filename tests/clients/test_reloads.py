"""Models are reloaded under real clients: requests, streams, sequences, ensembles and models that call models go on."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from support.reloading import WIDTH, ask, load, load_together, post, put, reasons
from support.server import Server
from support.until import until

GATE = (
    'parameters { key: "conch_swap_gate" value { string_value: "{\\"requests\\": 8, \\"absolute_tolerance\\": 0.5}" } }'
)
HEAD = "import time\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\nclass TritonPythonModel:\n"
SEQUENCE = """    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            named = {each.name(): each.as_numpy().flat[0] for each in request.inputs()}
            x, start, id = named["X"], named["START"], named["ID"]
            self.sums[id] = NUMBER if start else self.sums[id] + x
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.array([self.sums[id]], np.float32))]))
        return answers
"""
SEQUENCE_CONFIG = """backend: "python"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 8 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
}
"""
THROUGH_CONFIG = """platform: "ensemble"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling {
  step [ { model_name: "seq" model_version: -1 input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" } } ]
}
"""
BOTH_CONFIG = """platform: "ensemble"
max_batch_size: 16
input [ { name: "X" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 16 ] } ]
ensemble_scheduling {
  step [
    { model_name: "a" model_version: -1 input_map { key: "X" value: "X" } output_map { key: "Y" value: "between" } },
    { model_name: "b" model_version: -1 input_map { key: "X" value: "between" } output_map { key: "Y" value: "Y" } }
  ]
}
"""
CALLER = """    def execute(self, requests):
        answers = []
        for request in requests:
            call = pb_utils.InferenceRequest(model_name="a", inputs=request.inputs(), requested_output_names=["Y"])
            said = call.exec()
            answers.append(pb_utils.InferenceResponse(said.output_tensors(), said.error()))
        return answers
"""
COUNTER = """    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(10):
                time.sleep(0.01)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("Y", np.array([number + NUMBER], np.float32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
COUNTER_CONFIG = """backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
SWAPPED = """    def execute(self, requests):
        answers = []
        for request in requests:
            one, two = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("ONE", "TWO")]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", one * 10 + two)]))
        return answers
"""
SWAPPED_CONFIG = """backend: "python"
input [ FIRST, SECOND ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def write(root: Path, name: str, config: str, source: str = "", number: int = 0) -> None:
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(config)
    if source:
        (root / name / "1" / "model.py").write_text(HEAD + source.replace("NUMBER", str(number)))


def sequence(root: Path, number: int) -> None:
    write(root, "seq", SEQUENCE_CONFIG, SEQUENCE, number)


def two_inputs(root: Path, *names: str) -> None:
    first, second = [f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ 1 ] }}' for name in names]
    write(root, "two", SWAPPED_CONFIG.replace("FIRST", first).replace("SECOND", second), SWAPPED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reloads")
    for name in "ab":
        put(place, name, "python", 0)
    put(place, "gated", "python", 0, GATE)
    put(place, "slow", "python", 0, "instance_group [ { count: 1 kind: KIND_CPU } ]")
    sequence(place, 1000)
    write(place, "through", THROUGH_CONFIG)
    write(place, "both", BOTH_CONFIG)
    write(place, "caller", config_of("caller"), CALLER)
    write(place, "count", COUNTER_CONFIG, COUNTER)
    two_inputs(place, "ONE", "TWO")
    return place


def config_of(name: str) -> str:
    tensor = f"data_type: TYPE_FP32 dims: [ {WIDTH} ]"
    return f'name: "{name}"\nbackend: "python"\nmax_batch_size: 16\ninput [ {{ name: "X" {tensor} }} ]\noutput [ {{ name: "Y" {tensor} }} ]\n'  # noqa: E501


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with Server(root, "--model-control-mode=explicit", "--load-model=*") as running:
        yield running


def metrics(server: Server) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


class Sequence:
    """A client of the sequence model, or of an ensemble over it."""

    def __init__(self, server: Server, id: int, model: str = "seq") -> None:
        self._client = httpclient.InferenceServerClient(server.http)
        self.id = id
        self._model = model

    def send(self, value: float, *, start: bool = False, end: bool = False) -> float:
        tensor = httpclient.InferInput("X", [1], "FP32")
        tensor.set_data_from_numpy(np.array([value], np.float32))
        answer = self._client.infer(self._model, [tensor], sequence_id=self.id, sequence_start=start, sequence_end=end)
        return float(answer.as_numpy("Y")[0])


def test_a_sequence_goes_on_where_it_began(root: Path, server: Server) -> None:
    """A sequence that began before a reload is answered by its version until its END; others begin on the new one."""
    old, other = Sequence(server, 7), Sequence(server, 8)
    assert [old.send(0, start=True), old.send(1)] == [1000, 1001]
    workers = len(psutil.Process(server.process.pid).children(recursive=True))
    for number in (2000, 3000):
        sequence(root, number)
        assert load(server.http_port, "seq") == (200, None)
        assert old.send(1) == 1002 + (number - 2000) / 1000
        assert other.send(0, start=True) == number
    assert old.send(1, end=True) == 1004
    # Its id is free again, and its version with it.
    assert old.send(0, start=True) == 3000
    assert old.send(1, end=True) == 3001
    # The version between has the other's first sequence until that is idle for too long.
    until(lambda: len(psutil.Process(server.process.pid).children(recursive=True)) == workers + 1)
    assert other.send(1, end=True) == 3001


def test_a_sequence_goes_on_through_an_ensemble(root: Path, server: Server) -> None:
    """An ensemble that is made anew leaves the sequences that came through it where they are."""
    old = Sequence(server, 21, "through")
    assert old.send(0, start=True) > 0
    assert old.send(5) > 0
    before = old.send(0)
    sequence(root, 5000)
    assert load(server.http_port, "seq") == (200, None)
    assert old.send(1) == before + 1
    new = Sequence(server, 22, "through")
    assert new.send(0, start=True) == 5000
    assert old.send(1, end=True) == before + 2
    assert new.send(2, end=True) == 5002


def test_what_waits_in_the_old_version_is_answered_there(root: Path, server: Server) -> None:
    """Requests that are queued when the new version takes over are answered by the version that has them."""
    source = (root / "slow" / "1" / "model.py").read_text()
    go = root / "go"
    held = f"        import os, time\n        while not os.path.exists({str(go)!r}):\n            time.sleep(0.01)\n"
    (root / "slow" / "1" / "model.py").write_text(source.replace("        return [", held + "        return ["))
    (root / "slow" / "config.pbtxt").write_text(
        (root / "slow" / "config.pbtxt").read_text().replace(": 16\n", ": 1\n", 1)
    )
    assert load(server.http_port, "slow") == (200, None)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server.http_port, "slow"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    until(lambda: metrics(server)['nv_inference_pending_request_count{model="slow",version="1"}'] == 11)
    (root / "slow" / "1" / "model.py").write_text(source.replace("np.float32(0)", "np.float32(7)"))
    assert load(server.http_port, "slow") == (200, None)
    assert ask(server.http_port, "slow") == 7
    go.touch()
    for thread in threads:
        thread.join(60)
    assert answers == [0.0] * 12


def test_a_request_that_is_being_read_is_answered_by_the_new_version(root: Path, server: Server) -> None:
    """Its head came before the reload and its body after it: it is answered right, though the inputs changed places."""
    values = np.array([1, 2], np.float32).tobytes()
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
        for name in ("ONE", "TWO")
    ]
    head = json.dumps({"inputs": inputs}).encode()
    lines = (
        "POST /v2/models/two/infer HTTP/1.1\r\nHost: x\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head) + len(values)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
        answers = connection.makefile("rb")

        def answer() -> Any:
            size = 0
            while (line := answers.readline()) != b"\r\n":
                size = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else size
            return json.loads(answers.read(size))["outputs"][0]["data"]

        # The form of this head is known by then.
        connection.sendall(lines.encode() + head + values)
        assert answer() == [12.0]
        connection.sendall(lines.encode() + head)
        two_inputs(root, "TWO", "ONE")
        assert load(server.http_port, "two") == (200, None)
        connection.sendall(values)
        assert answer() == [12.0]


def test_nobody_notices_reloads(root: Path, server: Server) -> None:
    """HTTP, gRPC, streams, an ensemble, a model that calls a model: all requests are answered while models change."""
    stop = threading.Event()
    failures: list[str] = []
    done: dict[str, int] = {}

    def client(name: str, once: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            while not stop.is_set():
                try:
                    once()
                    done[name] = done.get(name, 0) + 1
                except Exception as failure:
                    failures.append(f"{name}: {failure!r}"[:300])
                    return

        thread = threading.Thread(target=run, name=name)
        thread.start()
        return thread

    def asked(model: str) -> Callable[[], None]:
        def once() -> None:
            said = ask(server.http_port, model)
            assert isinstance(said, float), said

        return once

    grpc = grpcclient.InferenceServerClient(server.grpc)

    def by_grpc() -> None:
        tensor = grpcclient.InferInput("X", [1, WIDTH], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, WIDTH), np.float32))
        assert grpc.infer("both", [tensor]).as_numpy("Y").shape == (1, WIDTH)

    streaming = grpcclient.InferenceServerClient(server.grpc)

    def by_stream() -> None:
        found: list[float] = []
        ended = threading.Event()

        def take(result: Any, error: Any) -> None:
            if error is not None:
                failures.append(f"stream: {error}")
                ended.set()
            elif result.get_response().parameters["triton_final_response"].bool_param:
                ended.set()
            else:
                found.append(float(result.as_numpy("Y")[0]))

        streaming.start_stream(take)
        tensor = grpcclient.InferInput("X", [1], "FP32")
        tensor.set_data_from_numpy(np.zeros(1, np.float32))
        streaming.async_stream_infer("count", [tensor], enable_empty_final_response=True)
        assert ended.wait(60)
        streaming.stop_stream()
        # All of one version.
        assert [each - found[0] for each in found] == list(range(10)), found

    def by_sequence() -> None:
        one = Sequence(server, 100)
        first = one.send(0, start=True)
        assert [one.send(1), one.send(1), one.send(1, end=True)] == [first + 1, first + 2, first + 3]

    ways = {"a": asked("a"), "both": asked("both"), "caller": asked("caller"), "grpc": by_grpc, "stream": by_stream,
            "sequence": by_sequence}  # fmt: skip
    threads = [client(name, once) for name, once in ways.items()]
    for turn in range(1, 3):
        for name in "ab":
            put(root, name, "python", turn)
        sequence(root, 10_000 * turn)
        write(root, "count", COUNTER_CONFIG, COUNTER, turn)
        assert load_together(server.http_port, "a", "b") == (200, None)
        assert load(server.http_port, "seq") == (200, None)
        assert load(server.http_port, "count") == (200, None)
    until(lambda: set(done) == set(ways) or bool(failures), 60)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert set(done) == set(ways)
    assert ask(server.http_port, "both") == 4
    assert ask(server.http_port, "caller") == 2


def test_a_group_is_loaded_together_or_not_at_all(root: Path, server: Server) -> None:
    """One broken model keeps all others of its group as they are; the error names it, the index says so."""
    for name in "ab":
        put(root, name, "python", 50)
    assert load_together(server.http_port, "a", "b") == (200, None)
    put(root, "a", "python", 60)
    put(root, "b", "python", 60, broken="syntax")
    status, said = load_together(server.http_port, "a", {"name": "b", "parameters": {"skip_gate": True}})
    assert status == 400
    assert said["error"].startswith("failed to load 2 models together, none was changed: load failed for model 'b'")
    assert ask(server.http_port, "a") == ask(server.http_port, "b") == 50
    found = reasons(server.http_port)
    assert found["a"] == ("READY", "load of a newer one failed: 'b' of the same group could not be loaded")
    assert found["b"][0] == "READY"
    assert "SyntaxError" in found["b"][1]
    put(root, "b", "python", 60)
    assert load_together(server.http_port, "a", "b") == (200, None)
    assert ask(server.http_port, "both") == 120
    assert reasons(server.http_port)["a"] == reasons(server.http_port)["b"] == ("READY", "")


def test_an_ensemble_may_be_of_the_group(root: Path, server: Server) -> None:
    """A group may bring models and the ensemble over them, which runs on the group's own new versions."""
    put(root, "a", "python", 70)
    write(root, "both", BOTH_CONFIG.replace("max_batch_size: 16", "max_batch_size: 8"))
    assert load_together(server.http_port, "both", "a") == (200, None)
    assert ask(server.http_port, "both") - ask(server.http_port, "b") == 70
    status, config = post_get(server, "/v2/models/both/config")
    assert (status, config["max_batch_size"]) == (200, 8)
    write(root, "both", BOTH_CONFIG.replace('"b"', '"nobody"'))
    put(root, "a", "python", 80)
    status, said = load_together(server.http_port, "a", "both")
    assert status == 400
    assert "ensemble 'both' depends on 'nobody' which has no loaded version." in said["error"]
    assert ask(server.http_port, "a") == 70
    write(root, "both", BOTH_CONFIG)
    assert load_together(server.http_port, "a", "both") == (200, None)


def post_get(server: Server, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    return answer.status, said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "expected 'models', a list of at least one model to load together"),
        ({"models": []}, "expected 'models', a list of at least one model to load together"),
        ({"models": ["a", "a"]}, "model 'a' is twice in 'models'"),
        ({"models": [1]}, "expected each entry of 'models' to be a name or an object with 'name' and 'parameters'"),
        ({"models": [{"name": "a", "parms": {}}]}, "expected each entry of 'models' to be a name or an object with"),
        ({"models": ["../a"]}, "invalid model name '../a', model name must not contain path traversal characters"),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_understood_is_refused(server: Server, body: Any, said: str) -> None:
    """The error says what was expected."""
    status, answer = post(server.http_port, "/v2/repository/load", body)
    assert status == 400
    assert said in answer["error"]


def test_the_gate_keeps_another_model_out(root: Path, server: Server) -> None:
    """A version that answers recent requests otherwise is refused with the difference; with skip_gate it serves."""
    port = server.http_port
    for value in range(4):
        assert ask(port, "gated", value) == 0
    served = post_get(server, "/v2/models/gated/stats")[1]["model_stats"][0]["inference_count"]
    put(root, "gated", "python", 3, GATE)
    status, said = load(port, "gated")
    assert status == 400
    assert (
        "'gated' version 1 answers 4 of 4 recent requests otherwise than version 1 that serves, 0 may be: "
        "request 1 of 4: output 'Y': 16 of 16 elements differ, most of all element 0: 6 instead of 3"
    ) in said["error"]
    state, reason = reasons(port)["gated"]
    assert state == "READY"
    assert reason.startswith("load of a newer one failed: Invalid argument: 'gated' version 1 answers")
    # What the gate asked is in no statistics.
    assert post_get(server, "/v2/models/gated/stats")[1]["model_stats"][0]["inference_count"] == served
    assert ask(port, "gated") == 0
    page = metrics(server)
    assert page['conch_model_load_total{model="gated",result="rejected"}'] == 1
    assert page['conch_model_last_load_success{model="gated"}'] == 0
    assert load(port, "gated", skip_gate=True) == (200, None)
    assert ask(port, "gated") == 3
    page = metrics(server)
    assert page['conch_model_last_load_success{model="gated"}'] == 1
    assert time.time() - page['conch_model_last_load_timestamp_seconds{model="gated"}'] < 60


def test_the_gate_lets_an_equal_model_through(root: Path, server: Server) -> None:
    """A version whose answers are within the tolerance takes over; over gRPC the gate is skipped by a boolean."""
    port = server.http_port
    before = ask(port, "gated")
    put(root, "gated", "python", before + 0.25, GATE)
    assert load(port, "gated") == (200, None)
    assert ask(port, "gated") == before + 0.25
    until(lambda: "has passed its gate with" in server.log)
    put(root, "gated", "python", 99, GATE)
    client = grpcclient.InferenceServerClient(server.grpc)
    with pytest.raises(Exception, match="recent requests otherwise"):
        client.load_model("gated")
    from conch.pb import grpc_service_pb2 as pb

    request = pb.RepositoryModelLoadRequest(model_name="gated")
    request.parameters["skip_gate"].bool_param = True
    import grpc

    with grpc.insecure_channel(server.grpc) as channel:
        channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            pb.RepositoryModelLoadRequest.SerializeToString,
            pb.RepositoryModelLoadResponse.FromString,
        )(request)
    assert ask(port, "gated") == 99


def test_groups_need_explicit_control(tmp_path: Path) -> None:
    """Without explicit control a group is refused in Triton's words for one model."""
    put(tmp_path, "a", "python", 0)
    with Server(tmp_path) as server:
        assert load_together(server.http_port, "a") == (
            503,
            {"error": "explicit model load / unload is not allowed if polling is enabled"},
        )
