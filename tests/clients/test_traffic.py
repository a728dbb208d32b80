"""Traffic routes end to end: a real server, NVIDIA's clients, models of Python that tell which version they are."""

from __future__ import annotations

import http.client
import json
import queue
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from support.server import Server
from support.until import until

HEAD = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\n"
#: Y is X; of version 3 one more, of version 2 so little more that nobody minds.
SPLIT = """class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])
        self.more = np.float32([0, 0, 1e-7, 1][self.version])

    def execute(self, requests):
        answers = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            version = np.full((x.shape[0], 1), self.version, np.int32)
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("Y", x + self.more), pb_utils.Tensor("V", version)]))
        return answers
"""
#: The sum so far, and the version that counts.
COUNT = """class TritonPythonModel:
    def initialize(self, args):
        self.version, self.sums = int(args["model_version"]), {}

    def execute(self, requests):
        answers = []
        for request in requests:
            tensors = {t.name(): t.as_numpy() for t in request.inputs()}
            key = request.correlation_id()
            # A row without a request has no id.
            if tensors["START"].any() or not key:
                self.sums[key] = 0
            self.sums[key] += tensors["X"].sum()
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("Y", np.float32([[self.sums[key]]])),
                pb_utils.Tensor("V", np.int32([[self.version]]))]))
        return answers
"""
STREAM = """class TritonPythonModel:
    def initialize(self, args):
        self.version = np.int32([int(args["model_version"])])

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for _ in range(2):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("V", self.version)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CALLER = """class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X")
            inner = pb_utils.InferenceRequest(
                model_name="split", requested_output_names=["V"], inputs=[x]).exec()
            answers.append(pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(inner, "V")]))
        return answers
"""
X = 'input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
Y = '{ name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }'
V = '{ name: "V" data_type: TYPE_INT32 dims: [ 1 ] }'
ALL = "version_policy { all { } }\n"
ROUTE = '{"arms": [{"version": 1, "weight": 3}, {"version": 2, "weight": 1}]}'
START = 'control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }'
CONFIGS = {
    "split": f"""max_batch_size: 4 {X} output [ {Y}, {V} ] {ALL}
        parameters {{ key: "conch_traffic" value {{ string_value: '{ROUTE}' }} }}""",
    "count": f"""max_batch_size: 4 {X} output [ {Y}, {V} ] {ALL}
        sequence_batching {{ max_sequence_idle_microseconds: 60000000 direct {{ }} {START} }}""",
    "stream": f"{X} output [ {V} ] {ALL} model_transaction_policy {{ decoupled: true }}",
    "caller": f"max_batch_size: 4 {X} output [ {V} ]",
    "pipe": f"""platform: "ensemble" max_batch_size: 4 {X} output [ {V} ] ensemble_scheduling {{ step [ {{
        model_name: "split" model_version: -1
        input_map {{ key: "X" value: "X" }} output_map {{ key: "V" value: "V" }} }} ] }}""",
}
SOURCES = {"split": (SPLIT, 3), "count": (COUNT, 2), "stream": (STREAM, 2), "caller": (CALLER, 1), "pipe": ("", 1)}
FILE = {
    "alias": {"arms": [{"model": "split", "version": 1}, {"model": "split", "version": 2}], "sticky": "header:x-user"}
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("traffic")
    for name, (code, versions) in SOURCES.items():
        for version in range(1, versions + 1):
            (root / "models" / name / str(version)).mkdir(parents=True)
            if code:
                (root / "models" / name / str(version) / "model.py").write_text(HEAD + code)
        backend = 'backend: "python"\n' if code else ""
        (root / "models" / name / "config.pbtxt").write_text(backend + CONFIGS[name])
    (root / "traffic.json").write_text(json.dumps(FILE))
    flags = [f"--{kind}-header-forward-pattern=x-user" for kind in ("http", "grpc")]
    restricted = "--http-restricted-api=model-repository:secret=please"
    with Server(root / "models", f"--traffic-config={root / 'traffic.json'}", restricted, *flags) as running:
        yield running


def call(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    text = None if body is None else json.dumps(body)
    connection.request(method, path, text, {"secret": "please", **headers})
    response = connection.getresponse()
    said = response.read()
    connection.close()
    return response.status, json.loads(said) if said.startswith(b"{") else said.decode()


@pytest.fixture
def put(server: Server) -> Iterator[Callable[[str, dict[str, Any]], Any]]:
    """Sets routes, and takes back what the test has set."""
    names = set()

    def change(name: str, route: dict[str, Any]) -> Any:
        status, said = call(server, "PUT", f"/v2/models/{name}/traffic", route)
        assert status == 200, said
        names.add(name)
        return said

    yield change
    for name in names:
        assert call(server, "DELETE", f"/v2/models/{name}/traffic") == (200, {})


def inputs(module: Any, values: np.ndarray[Any, Any] | None = None) -> list[Any]:
    values = np.ones((1, 2), np.float32) if values is None else values
    given = module.InferInput("X", list(values.shape), "FP32")
    given.set_data_from_numpy(values)
    return [given]


def ask_http(server: Server, model: str, count: int, **asked: Any) -> list[str]:
    """The version of each answer, as the answer says and as the model itself says, which must agree."""
    versions = []
    with httpclient.InferenceServerClient(server.http) as client:
        for _ in range(count):
            result = client.infer(model, inputs(httpclient), **asked)
            said = result.get_response()["model_version"]
            assert result.as_numpy("V").item() == int(said)
            versions.append(said)
    return versions


def ask_grpc(server: Server, model: str, count: int, **asked: Any) -> list[str]:
    versions = []
    with grpcclient.InferenceServerClient(server.grpc) as client:
        for _ in range(count):
            result = client.infer(model, inputs(grpcclient), **asked)
            said = result.get_response().model_version
            assert result.as_numpy("V").item() == int(said)
            versions.append(said)
    return versions


@pytest.mark.parametrize("ask", [ask_http, ask_grpc])
def test_the_config_shares_requests_between_versions(server: Server, ask: Callable[..., list[str]]) -> None:
    """Three of four to version 1, also of JSON and binary answers; the answer names its version."""
    assert Counter(ask(server, "split", 12)) == {"1": 9, "2": 3}
    assert set(ask(server, "split", 3, model_version="3")) == {"3"}


def test_a_route_is_changed_while_the_server_runs(server: Server, put: Callable[..., Any]) -> None:
    """GET tells what holds and what has happened, PUT changes it, DELETE brings back what the config says."""
    told = put("split", {"arms": [{"version": 1, "weight": 0.5}, {"version": 3, "weight": 0.5}]})
    assert (told["source"], [arm["state"] for arm in told["arms"]]) == ("request", ["READY", "READY"])
    assert Counter(ask_http(server, "split", 4) + ask_grpc(server, "split", 4)) == {"1": 4, "3": 4}
    _, told = call(server, "GET", "/v2/models/split/traffic")
    assert told["arms"][1]["requests"] == {"success": 4, "failure": 0, "cancelled": 0}
    _, everything = call(server, "GET", "/v2/traffic")
    assert [each["name"] for each in everything["routes"]] == ["alias", "split"]
    assert call(server, "DELETE", "/v2/models/split/traffic") == (200, {})
    assert Counter(ask_http(server, "split", 4)) == {"1": 3, "2": 1}
    put("split", told["route"])
    assert set(ask_http(server, "split", 4)) == {"1", "3"}, "what GET told can be PUT"


def test_users_stick_to_their_arm(server: Server) -> None:
    """The alias of the file: by a header over HTTP and metadata over gRPC, to the same arm."""
    arms = {}
    for user in map(str, range(12)):
        found = {
            *ask_http(server, "alias", 2, headers={"X-User": user}),
            *ask_grpc(server, "alias", 2, headers={"x-user": user}),
        }
        assert len(found) == 1
        arms[user] = found.pop()
    assert set(arms.values()) == {"1", "2"}
    assert Counter(ask_http(server, "alias", 4)) == {"1": 2, "2": 2}, "who has no header takes turns"


def test_questions_about_an_alias_are_answered(server: Server) -> None:
    """Clients find it ready, with the metadata and the config of its default arm."""
    with httpclient.InferenceServerClient(server.http) as client:
        assert client.is_model_ready("alias")
        assert client.get_model_metadata("alias")["name"] == "split"
        assert client.get_model_config("alias")["name"] == "split"
        assert [each["version"] for each in client.get_inference_statistics("alias")["model_stats"]] == ["1", "2"]
    assert call(server, "GET", "/v2/models/alias/versions/9")[0] == 404


def test_classes_of_an_alias(server: Server) -> None:
    """What codecs ask of a model's outputs is answered for the alias too."""
    wanted = [httpclient.InferRequestedOutput("Y", class_count=1)]
    with httpclient.InferenceServerClient(server.http) as client:
        result = client.infer("alias", inputs(httpclient), outputs=wanted)
    assert result.as_numpy("Y").shape == (1, 1)


def test_sequences_stay_on_their_arm(server: Server, put: Callable[..., Any]) -> None:
    """Over HTTP, gRPC and streams, in one sum each; also when the route changes while they run."""
    put("count", {"arms": [{"version": 1}, {"version": 2}]})
    answers: queue.Queue[Any] = queue.Queue()
    where: dict[int, set[str]] = {key: set() for key in range(1, 9)}
    with (
        httpclient.InferenceServerClient(server.http) as http_client,
        grpcclient.InferenceServerClient(server.grpc) as grpc_client,
    ):
        grpc_client.start_stream(lambda result, error: answers.put((result, error)))
        for step in range(4):
            for key, versions in where.items():
                asked = {"sequence_id": key, "sequence_start": step == 0, "sequence_end": step == 3}
                if key % 3 == 0:
                    result = http_client.infer("count", inputs(httpclient), **asked)
                    version = result.get_response()["model_version"]
                elif key % 3 == 1:
                    result = grpc_client.infer("count", inputs(grpcclient), **asked)
                    version = result.get_response().model_version
                else:
                    grpc_client.async_stream_infer("count", inputs(grpcclient), **asked)
                    result, error = answers.get(timeout=60)
                    assert error is None
                    version = result.get_response().model_version
                assert result.as_numpy("Y").item() == 2 * (step + 1)
                versions.add(version)
            if step == 1:
                put("count", {"arms": [{"version": 2}]})
        grpc_client.stop_stream()
    assert all(len(found) == 1 for found in where.values())
    assert Counter(found.copy().pop() for found in where.values()) == {"1": 4, "2": 4}


def test_streams_are_routed_request_by_request(server: Server, put: Callable[..., Any]) -> None:
    """All answers of one request are of one version; generate is routed as infer is."""
    put("stream", {"arms": [{"version": 1}, {"version": 2}]})
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for _ in range(4):
            client.async_stream_infer("stream", inputs(grpcclient, np.ones(1, np.float32)))
        versions = []
        for _ in range(8):
            result, error = answers.get(timeout=60)
            assert error is None
            assert result.as_numpy("V").item() == int(result.get_response().model_version)
            versions.append(result.get_response().model_version)
        client.stop_stream()
    assert Counter(versions) == {"1": 4, "2": 4}
    status, said = call(server, "POST", "/v2/models/stream/generate_stream", {"X": [1]})
    assert (status, said.count('"model_version"')) == (200, 2)
    told = {call(server, "POST", "/v2/models/split/generate", {"X": [1, 2]})[1]["model_version"] for _ in range(4)}
    assert told == {"1", "2"}


def test_models_that_call_models_are_routed_and_ensembles_are_not(server: Server) -> None:
    """A call of a Python model is a request like any other; the steps of an ensemble are pinned to a version."""
    with httpclient.InferenceServerClient(server.http) as client:
        called = [client.infer("caller", inputs(httpclient)).as_numpy("V").item() for _ in range(8)]
        assert Counter(called) == {1: 6, 2: 2}
        assert {client.infer("pipe", inputs(httpclient)).as_numpy("V").item() for _ in range(4)} == {3}


def compared(server: Server, model: str, count: int) -> dict[str, Any]:
    """What the route tells of its first shadow, once `count` copies have been compared or dropped."""

    def told() -> dict[str, Any]:
        shadow: dict[str, Any] = call(server, "GET", f"/v2/models/{model}/traffic")[1]["shadow"][0]
        return shadow

    until(lambda: sum(told()["requests"].values()) >= count)
    return told()


def test_a_shadow_that_answers_otherwise_is_found(server: Server, put: Callable[..., Any]) -> None:
    """Version 2 is near enough, version 3 is not; clients hear version 1 alone."""
    put("split", {"arms": [{"version": 1}], "shadow": [{"version": 2}]})
    with (
        httpclient.InferenceServerClient(server.http) as http_client,
        grpcclient.InferenceServerClient(server.grpc) as grpc_client,
    ):
        for client, module in ((http_client, httpclient), (grpc_client, grpcclient)):
            for _ in range(5):
                client.infer("split", inputs(module), outputs=[module.InferRequestedOutput("Y")])
    shadow = compared(server, "split", 10)
    assert (shadow["requests"]["matched"], shadow["requests"]["mismatched"]) == (10, 0)
    put("split", {"arms": [{"version": 1}], "shadow": {"version": 3, "fraction": 0.5}})
    assert set(ask_http(server, "split", 10, request_id="seven")) == {"1"}
    shadow = compared(server, "split", 5)
    assert shadow["requests"]["mismatched"] == 5
    assert shadow["largest_difference"] == 2, "V is 3 instead of 1"
    assert shadow["example"] == (
        "request 'seven': output 'Y': 2 of 2 elements differ, most of all element 0: 2 instead of 1"
    )
    page = call_metrics(server)
    assert 'conch_shadow_requests_total{model="split",result="mismatched",shadow="split:3"} 5\n' in page
    assert 'conch_shadow_largest_difference{model="split",shadow="split:3"} 2\n' in page
    assert 'conch_traffic_latency_us_count{arm="split:1",model="split"} ' in page


def call_metrics(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return page


def test_large_answers_are_compared_whole(server: Server, put: Callable[..., Any]) -> None:
    """Workers lend the memory of large answers and write over it later: a copy of each is kept as long as needed."""
    # V is another version's: that alone differs.
    put("split", {"arms": [{"version": 1}], "shadow": {"version": 2, "compare": {"absolute_tolerance": 1.5}}})
    before = compared(server, "split", 0)["requests"]
    asked = []
    with httpclient.InferenceServerClient(server.http, concurrency=4) as client:
        for number in range(12):
            values = np.full((1, 500_000), 100.0 * number, np.float32)
            asked.append(client.async_infer("split", inputs(httpclient, values)))
        for number, each in enumerate(asked):
            assert (each.get_result().as_numpy("Y") == 100.0 * number).all()
    after = compared(server, "split", sum(before.values()) + 12)["requests"]
    assert after["mismatched"] == before["mismatched"]
    assert after["matched"] + after["dropped"] == before["matched"] + before["dropped"] + 12


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"arms": [{"weight": -1}]}, "traffic route of 'split': arms[0].weight is -1, expected 0 or a number from"),
        ({"arms": [{"version": 9}]}, "no arm of the traffic route of 'split' is ready: split:9 ("),
        ({"arms": [{}, {"model": "stream"}]}, "traffic route of 'split': stream:latest cannot be used: it"),
        ({"sticky": "header:who"}, "traffic route of 'split': sticky is 'header:who': the header 'who' does not"),
        (None, "traffic route of 'split' is no JSON: Expecting value"),
    ],
)  # fmt: skip
def test_wrong_routes_are_refused(server: Server, body: Any, said: str) -> None:
    """With 400 or 503, a text that names the field, and nothing changed."""
    status, told = call(server, "PUT", "/v2/models/split/traffic", body)
    assert status in {400, 503}
    assert told["error"].startswith(said)
    assert call(server, "GET", "/v2/models/split/traffic")[1]["source"] == "config"


def test_who_may_change_routes(server: Server) -> None:
    """Changes belong to the category model-repository; what is not there to delete or tell is not found."""
    status, told = call(server, "PUT", "/v2/models/split/traffic", {}, secret="wrong")
    assert (status, told["error"]) == (403, "This API is restricted, expecting header 'secret'")
    assert call(server, "GET", "/v2/models/split/traffic", secret="wrong")[0] == 200
    assert call(server, "DELETE", "/v2/models/count/traffic")[0] == 404
    assert call(server, "GET", "/v2/models/count/traffic")[0] == 404
    assert call(server, "POST", "/v2/models/count/traffic", {})[0] == 405


def test_a_file_that_is_wrong_ends_the_start(tmp_path: Path) -> None:
    """Before any model is loaded, with the field in the log."""
    (tmp_path / "models").mkdir()
    (tmp_path / "traffic.json").write_text('{"m": {"arms": [{"weight": "half"}]}}')
    server = Server(tmp_path / "models", f"--traffic-config={tmp_path / 'traffic.json'}")
    try:
        assert server.wait() == 1
        assert "traffic.json: m.arms[0].weight is 'half', expected 0 or a number" in server.log
    finally:
        server.close()
