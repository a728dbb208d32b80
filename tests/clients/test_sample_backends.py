"""The backends for tests, asked by Triton's clients: decoupled answers, their statistics, delays, faults."""

from __future__ import annotations

import json
import queue
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from support.server import Server
from support.until import until

REPEAT = """
backend: "repeat"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "DELAY" data_type: TYPE_UINT32 dims: [ -1 ] },
        { name: "WAIT" data_type: TYPE_UINT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] } ]
"""
DECOUPLED = "model_transaction_policy { decoupled: True }\n"
SQUARE = (
    """
backend: "square"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
    + DECOUPLED
)
IDENTITY = """
backend: "identity"
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""


def parameter(name: str, value: object) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


CONFIGS = {
    "repeat": REPEAT + DECOUPLED,
    "once": REPEAT,
    "square": SQUARE,
    "batched_square": SQUARE + "max_batch_size: 4\n",
    "failing_square": SQUARE + parameter("CUSTOM_FAIL_COUNT", 1) + parameter("CUSTOM_EMPTY_COUNT", 2),
    "fault": 'backend: "fault"\n',
    "shaky": 'backend: "fault"\n'
    + parameter("exceute", "fail")
    + parameter("execute", "fail=every third one fails,every=3,code=UNAVAILABLE"),
    "wants": IDENTITY.replace('"identity"', '"fault"').replace(
        "} ]\noutput", '}, { name: "FAULT" data_type: TYPE_STRING dims: [ 1 ] optional: true } ]\noutput'
    ),
}
TYPED = REPEAT.replace("UINT32 dims: [ -1 ]", "INT32 dims: [ -1 ]")
SHAPED = SQUARE.replace('"OUT" data_type: TYPE_INT32 dims: [ 1 ]', '"OUT" data_type: TYPE_INT32 dims: [ 2 ]')
COUNTED = SQUARE.replace("output [", 'output [ { name: "B" data_type: TYPE_INT32 dims: [ 1 ] },')
DELAYED = "parameter 'execute_delay_ms' of model 'delayed' is 'soon', expected whole milliseconds >= 0"
#: Model -> its config, and why it does not load.
REFUSED = {
    "batching": (REPEAT + "max_batch_size: 2\n", "repeat backend only supports models with max_batch_size == 0"),
    "named": (REPEAT.replace('"DELAY"', '"D"'), "expected second input tensor name to be DELAY, got D"),
    "typed": (TYPED, "expected DELAY datatype to be UINT32, got TYPE_INT32"),
    "shaped": (SHAPED, "expected OUT shape to be [1], got [2]"),
    "counted": (COUNTED, "expected 1 output, got 2"),
    "broken": ('backend: "fault"\n' + parameter("load", "fail=no such luck"), "Fault: no such luck"),
    "unclear": ('backend: "fault"\n' + parameter("execute", "explode"), "unknown fault 'explode', expected some of"),
    "delayed": (IDENTITY + parameter("execute_delay_ms", "soon"), DELAYED),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name, config in {**CONFIGS, **{name: config for name, (config, _) in REFUSED.items()}}.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    flags = ["--model-control-mode=explicit", *[f"--load-model={name}" for name in CONFIGS]]
    with Server(root, *flags) as running:
        yield running


def tensor(module: Any, name: str, values: Any, datatype: str) -> Any:
    kinds = {"INT32": np.int32, "UINT32": np.uint32, "FP32": np.float32, "BYTES": object}
    array = np.array(values, dtype=kinds[datatype])
    made = module.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


def stream(server: Server, model: str, *inputs: Any, **more: Any) -> list[Any]:
    """Every answer to one request of a stream: arrays by name, or the error's text."""
    answers: queue.Queue[Any] = queue.Queue()
    client = grpc.InferenceServerClient(server.grpc)
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(model, list(inputs), enable_empty_final_response=True, **more)
    found: list[Any] = []
    while True:
        result, error = answers.get(timeout=60)
        if error is not None:
            found.append(error.message())
            break
        response = result.get_response()
        if response.outputs:
            found.append({each.name: result.as_numpy(each.name).ravel().tolist() for each in response.outputs})
        if response.parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    client.close()
    return found


def repeat(values: list[int], delays: list[int] | None = None, wait: int = 0) -> list[Any]:
    return [
        tensor(grpc, "IN", values, "INT32"),
        tensor(grpc, "DELAY", delays or [0] * len(values), "UINT32"),
        tensor(grpc, "WAIT", [wait], "UINT32"),
    ]


def post(server: Server, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://{server.http}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ask(server: Server, model: str, fault: str = "", inputs: Any = None) -> tuple[int, Any]:
    """One request to a model of the `fault` backend."""
    inputs = inputs or [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]
    body = {"inputs": inputs, **({"parameters": {"fault": fault}} if fault else {})}
    return post(server, f"/v2/models/{model}/infer", body)


@pytest.mark.parametrize("count", [0, 1, 4, 300])
def test_repeat_answers_each_element(server: Server, count: int) -> None:
    """OUT is the element, IDX its place; none for no elements."""
    values = list(range(7, 7 + count))
    assert stream(server, "repeat", *repeat(values)) == [
        {"OUT": [value], "IDX": [index]} for index, value in enumerate(values)
    ]


def test_repeat_takes_the_next_request_before_it_is_done(server: Server) -> None:
    """One instance answers two requests at once where WAIT is shorter than the delays."""
    answers: queue.Queue[Any] = queue.Queue()
    client = grpc.InferenceServerClient(server.grpc)
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("repeat", repeat([1, 2], [3000, 0]), request_id="slow")
    client.async_stream_infer("repeat", repeat([3]), request_id="quick")
    order = [answers.get(timeout=60)[0].get_response().id for _ in range(3)]
    client.stop_stream()
    client.close()
    assert order == ["quick", "slow", "slow"]


def test_repeat_gives_what_was_asked_for(server: Server) -> None:
    """Other outputs are left out."""
    wanted = [grpc.InferRequestedOutput("IDX")]
    assert stream(server, "repeat", *repeat([5, 6]), outputs=wanted) == [{"IDX": [0]}, {"IDX": [1]}]


def test_repeat_wants_a_delay_for_each_element(server: Server) -> None:
    """Triton's text."""
    assert stream(server, "repeat", *repeat([5, 6], [1])) == ["expected IN and DELAY shape to match, got [2] and [1]"]


def test_a_model_that_is_not_decoupled_answers_once(server: Server) -> None:
    """One element is one response; of several the client is told what is wrong."""
    client = grpc.InferenceServerClient(server.grpc)
    assert client.infer("once", repeat([9])).as_numpy("OUT").tolist() == [9]
    with pytest.raises(InferenceServerException, match="made 2 responses and is not decoupled"):
        client.infer("once", repeat([9, 9]))
    client.close()


def test_square(server: Server) -> None:
    """IN responses of IN, with the batch dimension where there is one."""
    assert stream(server, "square", tensor(grpc, "IN", [3], "INT32")) == [{"OUT": [3]}] * 3
    assert stream(server, "batched_square", tensor(grpc, "IN", [[2]], "INT32")) == [{"OUT": [2]}] * 2
    assert stream(server, "batched_square", tensor(grpc, "IN", [[2], [2]], "INT32")) == [
        "unexpected shape for IN input"
    ]
    assert stream(server, "square", tensor(grpc, "IN", [-1], "INT32")) == ["expected IN to be 0 or more, got -1"]


def test_squares_statistics(server: Server) -> None:
    """Of four responses one succeeds, one fails, and two are empty, by their index."""
    found = stream(server, "failing_square", tensor(grpc, "IN", [4], "INT32"))
    assert found == [{"OUT": [4]}, "simulated failure"]
    kinds = ("success", "fail", "empty_response")

    def counted() -> dict[str, list[str]]:
        with http.InferenceServerClient(server.http) as client:
            (statistics,) = client.get_inference_statistics("failing_square")["model_stats"]
        responses = statistics["response_stats"].items()
        return {index: [kind for kind in kinds if each[kind]["count"]] for index, each in responses}

    # The stream ends with the error, not with the last response.
    until(lambda: len(counted()) == 4)
    assert counted() == {"0": ["success"], "1": ["fail"], "2": ["empty_response"], "3": ["empty_response"]}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (_, text) in REFUSED.items()])
def test_a_wrong_config_is_refused(server: Server, name: str, text: str) -> None:
    """One sentence says what is wrong."""
    status, body = post(server, f"/v2/repository/models/{name}/load", {})
    assert status == 400
    assert text in body["error"]


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("", 200, ""),
        ("delay=1", 200, ""),
        ("fail", 500, "this request was to fail"),
        ("fail=no such luck,code=UNAVAILABLE", 503, "no such luck"),
        ("fail=nothing here,code=NOT_FOUND", 404, "nothing here"),
        ("raise=out of order", 500, "message: Fault: out of order\n\nAt:\n"),
        (
            "explode",
            400,
            "unknown fault 'explode', expected some of code, crash, delay, every, exit, fail, hang, raise",
        ),
        ("delay=soon", 400, "fault 'delay' is 'soon', expected a whole number such as delay=10"),
        ("code=OOPS", 400, "fault 'code' is 'OOPS', expected one of "),
        ("crash", 500, "is not healthy"),
        ("exit=3", 500, "is not healthy"),
    ],
)
def test_a_fault_on_demand(server: Server, fault: str, status: int, text: str) -> None:
    """A request gets what it asks for, and the next one is answered, whatever that was."""
    answer = ask(server, "fault", fault)
    assert answer[0] == status
    assert text in answer[1].get("error", "")
    after = ask(server, "fault")
    assert after[1]["outputs"][0]["data"] == [1, 2]


def test_each_third_request_fails(server: Server) -> None:
    """As its config says."""
    assert [ask(server, "shaky")[0] for _ in range(6)] == [200, 200, 503, 200, 200, 503]
    until(lambda: "parameter 'exceute' has no effect, the fault backend knows load and execute" in server.log)


def test_a_fault_by_an_input(server: Server) -> None:
    """For clients without parameters."""
    x = {"name": "INPUT0", "datatype": "INT32", "shape": [1], "data": [5]}
    fault = {"name": "FAULT", "datatype": "BYTES", "shape": [1], "data": ["fail=by an input"]}
    assert ask(server, "wants", inputs=[x])[0] == 200
    assert "by an input" in ask(server, "wants", inputs=[x, fault])[1]["error"]
