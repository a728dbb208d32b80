"""Instances that come and go under load: no request fails, and what was removed is gone."""

from __future__ import annotations

import http.client
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import onnx
import psutil
import pytest

from support import onnx_models
from support.server import Server
from support.until import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BODY = json.dumps(
    {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
).encode()
DATA = struct.pack("<2f", 1.5, -2.5)
TENSOR = {"data_type": "TYPE_FP32", "dims": [2]}
PYTHON = """
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


def config(backend: str, *groups: dict[str, Any], **more: Any) -> str:
    return json.dumps(
        {
            "name": "m",
            "backend": backend,
            "max_batch_size": 8,
            "input": [{"name": "x", **TENSOR}],
            "output": [{"name": "y", **TENSOR}],
            "dynamic_batching": {},
            "instance_group": list(groups),
            **more,
        }
    )


def cpu(count: int, **more: Any) -> dict[str, Any]:
    return {"kind": "KIND_CPU", "count": count, **more}


def load(server: Server, text: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", "/v2/repository/models/m/load", json.dumps({"parameters": {"config": text}}))
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 200, answer


def count(server: Server) -> int:
    """How many requests the model has answered since it was loaded."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("GET", "/v2/models/m/stats")
    stats = json.loads(connection.getresponse().read())
    connection.close()
    return int(stats["model_stats"][0]["inference_stats"]["success"]["count"])


@contextmanager
def asking(server: Server, clients: int = 4) -> Iterator[list[int]]:
    """Clients that ask all the time. The list has what each got an answer to; a wrong answer fails the test."""
    over = threading.Event()
    answered = [0] * clients
    wrong: list[object] = []

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        try:
            while not over.is_set():
                headers = {"Inference-Header-Content-Length": str(len(BODY))}
                connection.request("POST", "/v2/models/m/infer", BODY + DATA, headers)
                response = connection.getresponse()
                answer = response.read()
                if response.status != 200 or not answer.endswith(DATA):
                    wrong.append((response.status, answer))
                answered[number] += 1
        except OSError as error:
            wrong.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]


def write(root: Path, backend: str) -> None:
    place = root / "m" / "1"
    place.mkdir(parents=True)
    if backend == "python":
        (place / "model.py").write_text(PYTHON)
    else:
        onnx.save(onnx_models.identity(), place / "model.onnx")
    (root / "m" / "config.pbtxt").write_text(f'backend: "{backend}"')


def test_three_hundred_changes_fail_no_request(tmp_path: Path) -> None:
    """The number of instances changes 300 times under load: every answer is right, and the model is not loaded anew."""
    write(tmp_path, "onnxruntime")
    flags = ("--model-control-mode=explicit", "--log-info=false")
    with Server(tmp_path, *flags) as server:
        load(server, config("onnxruntime", cpu(1)))
        threads = psutil.Process(server.process.pid).num_threads()
        with asking(server) as answered:
            for number in range(299):
                load(server, config("onnxruntime", cpu(1 + number * 7 % 5)))
            load(server, config("onnxruntime", cpu(1)))
        assert all(answered)
        # An instance counts when it has answered. If the statistics began anew, the model was loaded anew.
        until(lambda: count(server) >= sum(answered))
        assert count(server) == sum(answered)
        # What goes on its way out after the load's answer.
        until(lambda: psutil.Process(server.process.pid).num_threads() <= threads + 8)


def test_processes_of_removed_instances_end(tmp_path: Path) -> None:
    """A worker process that is not needed any more ends; those that stay are the same as before."""
    write(tmp_path, "python")
    with Server(tmp_path, "--model-control-mode=explicit") as server:
        load(server, config("python", cpu(1)))
        process = psutil.Process(server.process.pid)
        (first,) = process.children()
        with asking(server, 3) as answered:
            for number in (3, 1, 2, 1):
                load(server, config("python", cpu(number)))
        assert all(answered)
        until(lambda: process.children() == [first])
        until(lambda: count(server) == sum(answered))
        load(server, config("python", cpu(1), max_batch_size=4))
        assert count(server) == 0, "another batch size is another model"


def test_a_change_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    """Instances that cannot be made are an error of the load; those that serve go on, and the config says so."""
    write(tmp_path, "onnxruntime")
    with Server(tmp_path, "--model-control-mode=explicit") as server:
        load(server, config("onnxruntime", cpu(2)))
        with asking(server, 2), pytest.raises(AssertionError, match="specifies one or more GPUs"):
            load(server, config("onnxruntime", cpu(3, gpus=[0])))
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("GET", "/v2/models/m/config")
        (group,) = json.loads(connection.getresponse().read())["instance_group"]
        connection.close()
        assert (group["count"], group["gpus"]) == (2, [])


def test_changes_and_reloads_mix(tmp_path: Path) -> None:
    """Groups, kinds, limits, orders and batch sizes change at random, in place or not: every request is answered."""
    write(tmp_path, "onnxruntime")
    random = Random(5)
    limits = {"rate_limiter": {"resources": [{"name": "R", "count": 1}]}}

    def group(kind: str) -> dict[str, Any]:
        return {"kind": kind, "count": random.randint(1, 4), **random.choice([{}, limits])}

    with Server(tmp_path, "--model-control-mode=explicit", "--rate-limit=execution_count") as server:
        load(server, config("onnxruntime", cpu(1)))
        with asking(server) as answered:
            for _ in range(200):
                groups = [group(kind) for kind in random.choice([["KIND_CPU"], ["KIND_CPU", "KIND_MODEL"]])]
                more = {
                    "max_batch_size": random.choice([8, 8, 8, 4]),
                    "dynamic_batching": random.choice([{}, {}, {}, {"preserve_ordering": True}]),
                }
                load(server, config("onnxruntime", *groups, **more))
        assert all(answered)
