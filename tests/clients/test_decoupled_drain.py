"""Open responders of a decoupled model hold up its unload and the server's stop, and nothing else."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from support.server import Server
from support.until import until

MODEL = """
import pathlib
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = request.inputs()[0].as_numpy()[0]
            threading.Thread(target=self.respond, args=(request.get_response_sender(), count), daemon=True).start()

    def respond(self, sender, count):
        for number in range(count):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([number], np.int32))]))
            time.sleep(0.05)
        hold = pathlib.Path(__file__).with_name("hold")
        while hold.exists() and count == 10 and not sender.is_cancelled():
            time.sleep(0.01)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CONFIG = """
backend: "python"
model_transaction_policy { decoupled: True }
input { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] }
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "count" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder.parent / "config.pbtxt").write_text(CONFIG)
    with Server(tmp_path, "--model-control-mode=explicit", "--load-model=count") as server:
        yield server


def ask(client: Any, count: int) -> queue.Queue[Any]:
    """Ask for `count` responses, and an empty one at the end, on a stream; gives what arrives."""
    arrived: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: arrived.put(error or result.get_response()))
    tensor = grpcclient.InferInput("IN", [1], "INT32")
    tensor.set_data_from_numpy(np.array([count], np.int32))
    client.async_stream_infer("count", [tensor], request_id="r", enable_empty_final_response=True)
    return arrived


def numbers(arrived: queue.Queue[Any], count: int) -> list[int]:
    """The next `count` responses; an empty one is -1."""
    found = [arrived.get(timeout=60) for _ in range(count)]
    return [np.frombuffer(each.raw_output_contents[0], np.int32)[0] if each.outputs else -1 for each in found]


@pytest.fixture
def hold(server: Server, tmp_path: Path) -> Path:
    """While it is there, the model does not end what has ten responses."""
    file = tmp_path / "count" / "1" / "hold"
    file.touch()
    return file


def test_an_unload_waits_for_open_responders(server: Server, hold: Path) -> None:
    """Every response still comes, new requests are refused, then the model is gone; its statistics are right."""
    with grpcclient.InferenceServerClient(server.grpc) as client:
        arrived = ask(client, 10)
        assert numbers(arrived, 2) == [0, 1]
        client.unload_model("count")
        with pytest.raises(InferenceServerException, match="has no available versions"):
            client.is_model_ready("count")
        hold.unlink()
        assert numbers(arrived, 9) == [*range(2, 10), -1]
        client.stop_stream()
        until(lambda: client.get_model_repository_index().models[0].state == "UNAVAILABLE")
        assert client.get_model_repository_index().models[0].reason == "unloaded"


def test_a_stop_waits_for_open_responders(server: Server, hold: Path) -> None:
    """SIGTERM while responses are being sent: they arrive, then the server ends with 0."""
    with grpcclient.InferenceServerClient(server.grpc) as client:
        arrived = ask(client, 10)
        assert numbers(arrived, 2) == [0, 1]
        server.signal(signal.SIGTERM)
        hold.unlink()
        assert numbers(arrived, 9) == [*range(2, 10), -1]
        client.stop_stream()
    assert server.wait() == 0


@pytest.mark.usefixtures("hold")
def test_a_client_that_leaves_ends_nothing_but_its_own_request(server: Server) -> None:
    """The model goes on answering whoever is there, and what the other had asked for is settled."""
    # Its last response waits until the server has heard that it left.
    with grpcclient.InferenceServerClient(server.grpc) as stays:
        with grpcclient.InferenceServerClient(server.grpc) as leaves:
            gone = ask(leaves, 10)
            assert numbers(gone, 1) == [0]
            leaves.stop_stream(cancel_requests=True)
        assert numbers(ask(stays, 3), 4) == [0, 1, 2, -1]
        stays.stop_stream()

        def counted() -> Any:
            return stays.get_inference_statistics("count").model_stats[0]

        until(lambda: counted().inference_stats.success.count == 2)
        shown = counted().response_stats
        assert (shown["0"].success.count, shown["10"].cancel.count) == (2, 1)
