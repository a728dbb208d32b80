"""Ensembles in a real server, asked by real clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from parity.ensembles import COMPUTE, computing, ensemble
from parity.models import REPEAT, REPEAT_CONFIG, write_python
from support.server import Server
from support.until import until

X, Y = {"X": "FP32 -1"}, {"Y": "FP32 -1"}
#: Says once that it has begun, and goes on when it is cancelled.
SLOW = """import time

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X")
            open("%s", "w").close()
            while not request.is_cancelled():
                time.sleep(0.01)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", x.as_numpy())]) for r in requests]
"""


def write_ensemble(root: Path, name: str, config: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ensembles")
    write_python(root / "double", [1], COMPUTE, computing("Y = X * 2", X, Y, more="dynamic_batching { }"))
    write_python(root / "inc", [1], COMPUTE, computing("Y = X + 1", X, Y, more="dynamic_batching { }"))
    write_python(
        root / "many", [1], COMPUTE, computing("OUT = IN * 10", {"IN": "INT32 1"}, {"OUT": "INT32 1"}, batch=0)
    )
    write_python(root / "repeat", [1], REPEAT, REPEAT_CONFIG)
    write_python(root / "slow", [1], SLOW % (root / "begun"), computing("", X, Y, batch=0))
    write_ensemble(
        root, "chain", ensemble(X, Y, ("double", "X=X", "Y=M"), ("inc", "X=M", "Y=N"), ("double", "X=N", "Y=Y"))
    )
    write_ensemble(root, "hanging", ensemble(X, Y, ("slow", "X=X", "Y=M"), ("inc", "X=M", "Y=Y"), batch=0))
    write_ensemble(
        root,
        "stream",
        ensemble(
            {"IN": "INT32 -1"}, {"OUT": "INT32 1"}, ("repeat", "IN=IN", "OUT=M"), ("many", "IN=M", "OUT=OUT"), batch=0
        ),
    )
    write_ensemble(
        root,
        "narrow",
        ensemble(
            {"IN": "INT32 -1"}, {"OUT": "INT32 1"}, ("repeat", "IN=IN", "OUT=M"), ("many", "IN=M", "OUT=OUT"), batch=0
        ).replace("] }\n", "] max_inflight_requests: 2 }\n"),
    )
    return root


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    flags = ("--model-control-mode=explicit", "--load-model=*")
    with Server(place, *flags) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpclient.InferenceServerClient]:
    with httpclient.InferenceServerClient(server.http, concurrency=16) as client:
        yield client


@pytest.fixture
def grpc(server: Server) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(server.grpc) as client:
        yield client


def row(client: object, *values: float, model: object = httpclient, name: str = "X", rank: int = 2) -> list[object]:
    array = np.array(values, np.float32).reshape((1, -1) if rank == 2 else (-1,))
    given = model.InferInput(name, list(array.shape), "FP32")  # type: ignore[attr-defined]
    given.set_data_from_numpy(array)
    return [given]


def test_values_of_many_clients_at_once(http: httpclient.InferenceServerClient) -> None:
    """Every answer belongs to its own request, whatever batches the steps make; steps and ensemble are counted."""
    before = http.get_inference_statistics("chain")["model_stats"][0]
    calls = [http.async_infer("chain", row(http, n, -n, n / 2), request_id=str(n)) for n in range(200)]
    for n, call in enumerate(calls):
        result = call.get_result()
        assert result.get_response()["id"] == str(n)
        expected = (np.array([[n, -n, n / 2]], np.float32) * 2 + 1) * 2
        np.testing.assert_array_equal(result.as_numpy("Y"), expected)
    after = http.get_inference_statistics("chain")["model_stats"][0]
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 200
    assert after["execution_count"] - before["execution_count"] == 200
    spent = after["inference_stats"]["compute_infer"]["ns"] - before["inference_stats"]["compute_infer"]["ns"]
    assert spent > 0


def talk(grpc: grpcclient.InferenceServerClient, model: str, count: int) -> list[int]:
    """What the stream brings for `count` values."""
    answers: list[int] = []
    done = threading.Event()
    errors: list[Exception] = []

    def take(result: grpcclient.InferResult | None, error: Exception | None) -> None:
        if error is not None:
            errors.append(error)
            done.set()
            return
        response = result.get_response()
        if response.outputs:
            answers.append(int(result.as_numpy("OUT")[0]))
        if response.parameters["triton_final_response"].bool_param:
            done.set()

    given = grpcclient.InferInput("IN", [count], "INT32")
    given.set_data_from_numpy(np.arange(count, dtype=np.int32))
    grpc.start_stream(take)
    try:
        grpc.async_stream_infer(model, [given], enable_empty_final_response=True)
        assert done.wait(60)
    finally:
        grpc.stop_stream()
    assert errors == []
    return answers


@pytest.mark.parametrize("model", ["stream", "narrow"])
def test_responses_of_a_decoupled_step_come_in_order(grpc: grpcclient.InferenceServerClient, model: str) -> None:
    """Each response goes through the following steps; the stream has all of them, in order, and one end."""
    assert talk(grpc, model, 300) == [10 * n for n in range(300)]


def test_a_cancelled_request_withdraws_the_running_step(
    place: Path, grpc: grpcclient.InferenceServerClient, http: httpclient.InferenceServerClient
) -> None:
    """The model of the step sees that its request is cancelled, and the ensemble's failure is counted as such."""
    ended = threading.Event()
    call = grpc.async_infer(
        "hanging", row(grpc, 1.0, model=grpcclient, rank=1), callback=lambda result, error: ended.set()
    )
    until((place / "begun").exists)
    call.cancel()
    assert ended.wait(60)
    statistics = http.get_inference_statistics
    until(lambda: statistics("hanging")["model_stats"][0]["inference_stats"]["fail"]["count"] == 1)


def test_members_are_reloaded_under_load(place: Path, http: httpclient.InferenceServerClient) -> None:
    """A member is swapped again and again while requests flow: none fails, and none mixes up its steps."""
    stop = threading.Event()
    wrong: list[object] = []
    count = [0]

    def ask() -> None:
        with httpclient.InferenceServerClient(http._parsed_url.netloc) as client:
            while not stop.is_set():
                try:
                    result = client.infer("chain", row(client, 1.0)).as_numpy("Y")
                    count[0] += 1
                    if result[0, 0] != 6.0:
                        wrong.append(result)
                except InferenceServerException as error:
                    wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(4):
        (place / "inc" / "1" / "note.txt").write_text(str(number) * (number + 1))
        http.load_model("inc")
    until(lambda: count[0] > 0 or bool(wrong))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_errors_name_the_ensemble(http: httpclient.InferenceServerClient) -> None:
    """A member that is gone makes the ensemble unknown; one that comes back brings it back."""
    http.unload_model("inc")
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'chain' has no available versions"):
        http.infer("chain", row(http, 1.0))
    http.load_model("inc")
    assert http.infer("chain", row(http, 1.0)).as_numpy("Y")[0, 0] == 6.0


def test_requests_in_an_ensemble_are_answered_at_the_end(place: Path) -> None:
    """SIGTERM comes while requests are half-way: every step still runs, and every answer arrives."""
    with Server(place, "--model-control-mode=explicit", "--load-model=chain") as running:
        with httpclient.InferenceServerClient(running.http, concurrency=64) as client:
            calls = [client.async_infer("chain", row(client, 1.0)) for _ in range(300)]
            calls[0].get_result()
            running.signal()
            answered, errors = 0, []
            for call in calls:
                try:
                    assert call.get_result().as_numpy("Y")[0, 0] == 6.0
                    answered += 1
                except Exception as error:  # connections that were never accepted among them
                    errors.append(str(error))
        assert answered
        assert not [error for error in errors if "in ensemble" in error]
