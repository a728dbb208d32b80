"""Models in the style of the Python backend's documented examples, served and asked by real clients."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from support.server import Server
from support.until import until

HEAD = """import asyncio
import json
import numpy as np
import triton_python_backend_utils as pb_utils


def single(name, value):
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, value)])


"""
ADD_SUB = """class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        output = pb_utils.get_output_config_by_name(config, "OUTPUT0")
        self.dtype = pb_utils.triton_string_to_numpy(output["data_type"])

    def execute(self, requests):
        responses = []
        for request in requests:
            a = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            b = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
            outputs = [pb_utils.Tensor("OUTPUT0", (a + b).astype(self.dtype)),
                       pb_utils.Tensor("OUTPUT1", (a - b).astype(self.dtype))]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""
PAIR = """
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "INPUT1" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
BLS_SYNC = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            name = pb_utils.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()[0]
            inputs = [pb_utils.get_input_tensor_by_name(request, name) for name in ("INPUT0", "INPUT1")]
            call = pb_utils.InferenceRequest(
                model_name=name, requested_output_names=["OUTPUT0", "OUTPUT1"], inputs=inputs)
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            responses.append(pb_utils.InferenceResponse(output_tensors=response.output_tensors()))
        return responses
"""
BLS_ASYNC = """class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            inputs = [pb_utils.get_input_tensor_by_name(request, name) for name in ("INPUT0", "INPUT1")]
            calls = [pb_utils.InferenceRequest(model_name="add_sub", requested_output_names=[output], inputs=inputs)
                     for output in ("OUTPUT0", "OUTPUT1")]
            found = await asyncio.gather(*[call.async_exec() for call in calls])
            outputs = [pb_utils.get_output_tensor_by_name(response, f"OUTPUT{n}") for n, response in enumerate(found)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""
SQUARE = """import threading


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            work = threading.Thread(target=self.answer, args=(request.get_response_sender(), value), daemon=True)
            work.start()

    def answer(self, sender, value):
        for _ in range(value[0]):
            sender.send(single("OUT", value))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
SQUARE_CONFIG = """
model_transaction_policy { decoupled: true }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
SUM_SYNC = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN")
            call = pb_utils.InferenceRequest(model_name="square", inputs=[value], requested_output_names=["OUT"])
            total = np.array([0])
            for response in call.exec(decoupled=True):
                if response.has_error():
                    raise pb_utils.TritonModelException(response.error().message())
                if len(response.output_tensors()) > 0:
                    total += pb_utils.get_output_tensor_by_name(response, "OUT").as_numpy()
            responses.append(single("SUM", total.astype(np.int32)))
        return responses
"""
SUM_ASYNC = """class TritonPythonModel:
    async def execute(self, requests):
        value = pb_utils.get_input_tensor_by_name(requests[0], "IN")
        calls = [pb_utils.InferenceRequest(model_name="square", inputs=[value], requested_output_names=["OUT"])
                 for _ in range(2)]
        total = np.array([0])
        for responses in await asyncio.gather(*[call.async_exec(decoupled=True) for call in calls]):
            for response in responses:
                if len(response.output_tensors()) > 0:
                    total += pb_utils.get_output_tensor_by_name(response, "OUT").as_numpy()
        return [single("SUM", total.astype(np.int32))]
"""
SUM_CONFIG = """
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "SUM" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
COUNTED = """class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily(
            name="requests_seen", description="How many requests came", kind=pb_utils.MetricFamily.COUNTER)
        self.metric = self.family.Metric(labels={"model": args["model_name"], "version": args["model_version"]})

    def execute(self, requests):
        self.metric.increment(len(requests))
        pb_utils.Logger.log_info(f"seen: {self.metric.value()}")
        return [single("SUM", pb_utils.get_input_tensor_by_name(r, "IN").as_numpy()) for r in requests]
"""
SELF = """class TritonPythonModel:
    def execute(self, requests):
        value = pb_utils.get_input_tensor_by_name(requests[0], "IN")
        call = pb_utils.InferenceRequest(
            model_name="self", inputs=[value], requested_output_names=["SUM"], timeout=200_000)
        response = call.exec()
        raise pb_utils.TritonModelException(response.error().message())
"""
COUNTDOWN = """class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        for request in requests:
            key = request.correlation_id()
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            left = self.left[key] = self.left.get(key, value[0]) - 1
            sender = request.get_response_sender()
            response = single("OUT", np.array([left], np.int32))
            if left > 0:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                sender.send(response)
            else:
                del self.left[key]
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
PARAMETERS = """class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(
            [pb_utils.Tensor("SUM", pb_utils.get_input_tensor_by_name(r, "IN").as_numpy())],
            parameters=json.loads(r.parameters())) for r in requests]
"""
MODELS = {
    "add_sub": (ADD_SUB, PAIR),
    "bls_sync": (BLS_SYNC, PAIR + 'input [ { name: "MODEL_NAME" data_type: TYPE_STRING dims: [ 1 ] } ]\n'),
    "bls_async": (BLS_ASYNC, PAIR),
    "square": (SQUARE, SQUARE_CONFIG),
    "sum_sync": (SUM_SYNC, SUM_CONFIG),
    "sum_async": (SUM_ASYNC, SUM_CONFIG),
    "counted": (COUNTED, SUM_CONFIG),
    "self": (SELF, SUM_CONFIG),
    "countdown": (COUNTDOWN, SQUARE_CONFIG + "sequence_batching { iterative_sequence: true }\n"),
    "parameters": (PARAMETERS, SUM_CONFIG),
}
LOADER = """class TritonPythonModel:
    def initialize(self, args):
        if not pb_utils.is_model_ready(model_name="counted", model_version="1"):
            pb_utils.load_model(model_name="counted")

    def execute(self, requests):
        call = pb_utils.InferenceRequest(
            model_name="counted", requested_output_names=["SUM"],
            inputs=[pb_utils.get_input_tensor_by_name(requests[0], "IN")])
        responses = [pb_utils.InferenceResponse(output_tensors=call.exec().output_tensors())]
        pb_utils.unload_model(model_name="counted")
        return responses
"""


def write(folder: Path, models: dict[str, tuple[str, str]]) -> Path:
    for name, (source, config) in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(HEAD + source)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\n{config}')
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(write(tmp_path_factory.mktemp("examples"), MODELS)) as server:
        server.ready_seconds()
        yield server


def tensor(name: str, value: Any, kind: str) -> httpclient.InferInput:
    given = httpclient.InferInput(name, list(value.shape), kind)
    given.set_data_from_numpy(value)
    return given


def infer(server: Server, model: str, *inputs: httpclient.InferInput, **more: Any) -> httpclient.InferResult:
    with httpclient.InferenceServerClient(server.http) as client:
        return client.infer(model, list(inputs), **more)


def number(value: int) -> httpclient.InferInput:
    return tensor("IN", np.array([value], np.int32), "INT32")


def page(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


@pytest.mark.parametrize("model", ["add_sub", "bls_sync", "bls_async"])
def test_sums_and_differences(server: Server, model: str) -> None:
    """By the model itself, and by models that call it, waiting and not."""
    a, b = np.arange(4, dtype=np.float32), np.full(4, 0.5, np.float32)
    inputs = [tensor("INPUT0", a, "FP32"), tensor("INPUT1", b, "FP32")]
    if model == "bls_sync":
        inputs.append(tensor("MODEL_NAME", np.array(["add_sub"], dtype=object), "BYTES"))
    found = infer(server, model, *inputs)
    assert found.as_numpy("OUTPUT0").tolist() == (a + b).tolist()
    assert found.as_numpy("OUTPUT1").tolist() == (a - b).tolist()


def test_a_call_of_an_unknown_model(server: Server) -> None:
    """The caller raises what it was told, and the client hears of it."""
    four = np.zeros(4, np.float32)
    inputs = [tensor("INPUT0", four, "FP32"), tensor("INPUT1", four, "FP32")]
    inputs.append(tensor("MODEL_NAME", np.array(["nobody"], dtype=object), "BYTES"))
    with pytest.raises(InferenceServerException, match="Model 'nobody' is not ready"):
        infer(server, "bls_sync", *inputs)


@pytest.mark.parametrize(("model", "times"), [("sum_sync", 1), ("sum_async", 2)])
@pytest.mark.parametrize("count", [0, 4])
def test_streams_are_summed(server: Server, model: str, times: int, count: int) -> None:
    """A model reads the responses of a decoupled one, the empty last one too."""
    assert infer(server, model, number(count)).as_numpy("SUM").tolist() == [times * count * count]


def test_own_metrics_are_on_the_page(server: Server) -> None:
    """Under their names, with their labels; the log shows the value that the model read."""
    for _ in range(2):
        infer(server, "counted", number(1))
    text = page(server)
    assert "# HELP requests_seen How many requests came\n# TYPE requests_seen counter\n" in text
    assert 'requests_seen{model="counted",version="1"} 2\n' in text
    until(lambda: "seen: 2.0" in server.log)


def test_a_model_that_waits_for_itself_has_a_timeout(server: Server) -> None:
    """With one instance its own request never runs; the request's timeout ends the wait, and the server serves on."""
    with pytest.raises(InferenceServerException, match="Request timeout expired"):
        infer(server, "self", number(1))
    assert infer(server, "sum_sync", number(1)).as_numpy("SUM").tolist() == [1]


def test_requests_are_run_again(server: Server) -> None:
    """An iterative decoupled model answers once per run."""
    found: list[Any] = []
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: found.append(error or result.as_numpy("OUT")[0]))
        given = grpcclient.InferInput("IN", [1], "INT32")
        given.set_data_from_numpy(np.array([5], np.int32))
        client.async_stream_infer("countdown", [given])
        client.stop_stream()
    assert found == [4, 3, 2, 1, 0]


def test_parameters_go_there_and_back(server: Server) -> None:
    """What the client sends is JSON to the model, what the model sends the client sees."""
    found = infer(server, "parameters", number(1), parameters={"a": "b", "n": 3, "t": True})
    assert found.get_response()["parameters"] == {"a": "b", "n": 3, "t": True}


def test_models_are_loaded_by_models(tmp_path: Path) -> None:
    """From initialize, which waits for it, and unloaded from execute; in explicit mode."""
    models = {"loader": (LOADER, SUM_CONFIG), "counted": MODELS["counted"]}
    flags = ("--model-control-mode=explicit", "--load-model=loader")
    with Server(write(tmp_path, models), *flags) as server:
        server.ready_seconds()
        assert infer(server, "loader", number(7)).as_numpy("SUM").tolist() == [7]
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port)
        connection.request("POST", "/v2/repository/index")
        states = {line["name"]: line["state"] for line in json.loads(connection.getresponse().read())}
        connection.close()
        assert states["loader"] == "READY"
        assert states["counted"] != "READY"
        until(lambda: "requests_seen" not in page(server))
