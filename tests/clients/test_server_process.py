"""The server as an operator has it: a command with flags, a log, exit codes, signals."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest

from support import onnx_models
from support.server import CONCH, TRITONSERVER, Server, free_ports
from support.until import until

pytestmark = pytest.mark.slow

PYTHON = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""
TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
"""
READY_LINES = (
    "Started GRPCInferenceService at 127.0.0.1:{0.grpc_port}",
    "Started HTTPService at 127.0.0.1:{0.http_port}",
    "Started Metrics Service at 127.0.0.1:{0.metrics_port}",
)


def write_model(root: Path, name: str, config: str = "", *, python: str = "", versions: tuple[int, ...] = (1,)) -> None:
    """An ONNX model, or a Python one; no config.pbtxt where `config` is empty."""
    for version in versions:
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        if python:
            (folder / "model.py").write_text(python)
        else:
            onnx.save(onnx_models.identity(), folder / "model.onnx")
    if config:
        (root / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    write_model(root, "bare", versions=(1, 2, 10))
    two = "version_policy { latest { num_versions: 2 } } optimization { eager_batching: true }"
    write_model(root, "two", two, versions=(1, 2, 3))
    write_model(root, "scale", TENSORS, python=PYTHON)
    write_model(root, "broken", TENSORS, python="raise ValueError('no such luck')")
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """Everything is asked to load, and one model fails."""
    flags = (
        "--model-control-mode=explicit", "--load-model=*", "--exit-on-error=false", "--strict-readiness=false",
        "--backend-config=onnxruntime,default-max-batch-size=16", "--id=mine", "--log-format=ISO8601",
        "--grpc-infer-thread-count=5",
    )  # fmt: skip
    with Server(repository, *flags, command=TRITONSERVER) as running:
        yield running


def ask(server: Server, path: str, method: str = "GET", body: str = "") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request(method, path, body or None)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text else None


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)


def test_lines_that_people_wait_for(server: Server) -> None:
    """The log tells of each listener, each load and each failure in the words that scripts look for."""
    for line in READY_LINES:
        until(lambda: line.format(server) in server.log)  # noqa: B023
    assert '"loading: bare:10"' in server.log
    assert "\"successfully loaded 'bare'\"" in server.log
    assert "\"failed to load 'broken' version 1: Internal: ValueError: no such luck" in server.log
    for heading in (
        r"\| Repository Agent +\|",
        r"\| Backend +\| Path",
        r"\| Model +\| Version +\| Status",
        r"\| Option",
    ):
        assert re.search(heading, server.log)


def test_log_format(server: Server) -> None:
    """--log-format=ISO8601: time, level, process, place and the quoted message."""
    line = r'^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ I \d+ \w+\.py:\d+\] "Started HTTPService'
    until(lambda: re.search(line, server.log, re.MULTILINE) is not None)


def test_what_has_no_effect_is_warned_of(server: Server) -> None:
    """A flag and a config field that nothing acts on yet are named in warnings, the flag before anything loads."""
    assert "--grpc-infer-thread-count is accepted but has no effect yet" in server.log
    assert "model 'two': 'optimization.eager_batching' in its config is accepted but has no effect yet" in server.log


def test_all_models_are_loaded_but_the_broken(server: Server) -> None:
    """--load-model=* loads every model, --exit-on-error=false goes on without the one that fails, and the index tells
    why it failed; latest versions are served where the config says nothing, and those of the policy where it does."""
    status, index = ask(server, "/v2/repository/index", "POST")
    assert status == 200
    assert [(line["name"], line["version"], line["state"]) for line in index] == [
        ("bare", "10", "READY"),
        ("broken", "1", "UNAVAILABLE"),
        ("scale", "1", "READY"),
        ("two", "2", "READY"),
        ("two", "3", "READY"),
    ]
    assert index[1]["reason"].startswith("Internal: ValueError: no such luck")
    assert ask(server, "/v2")[1]["name"] == "mine"


def test_readiness_need_not_be_strict(server: Server) -> None:
    """--strict-readiness=false: ready although a model is not."""
    assert ask(server, "/v2/health/ready")[0] == 200
    assert ask(server, "/v2/models/broken/ready")[0] == 404


def test_defaults_of_the_backends(server: Server) -> None:
    """ONNX models that batch get the --backend-config's batch size, a dynamic batcher and two instances; Python
    models one instance."""
    _, bare = ask(server, "/v2/models/bare/config")
    assert bare["max_batch_size"] == 16
    assert bare["dynamic_batching"]["preferred_batch_size"] == [16]
    assert [(group["name"], group["count"], group["kind"]) for group in bare["instance_group"]] == [
        ("bare", 2, "KIND_CPU")
    ]
    _, scale = ask(server, "/v2/models/scale/config")
    assert [(group["name"], group["count"]) for group in scale["instance_group"]] == [("scale", 1)]


@pytest.mark.parametrize("listener", ["http", "grpc", "metrics"])
def test_a_taken_port(server: Server, tmp_path: Path, listener: str) -> None:
    """A server whose port is taken says which one, in Triton's words, and leaves with exit code 1."""
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    ports[listener] = getattr(server, f"{listener}_port")
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    ended = run(*TRITONSERVER, f"--model-repository={tmp_path}", "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1", *flags)  # fmt: skip
    assert ended.returncode == 1
    assert f"Socket '127.0.0.1:{ports[listener]}' already in use " in ended.stderr


def test_the_command_is_there_without_its_script() -> None:
    told = subprocess.check_output([sys.executable, "-m", "conch", "version"], text=True, timeout=60)
    assert told.startswith("conch ")


def test_wrong_flags() -> None:
    """As Triton: usage and then what is wrong, on stderr, exit code 1. `conch serve` says where the usage is."""
    ended = run(*TRITONSERVER, "--http-prot=1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Usage: tritonserver [options]\n")
    assert "\ntritonserver: unrecognized option '--http-prot=1'\nDid you mean --http-port" in ended.stderr
    ended = run(*CONCH, "--http-port=x", ".")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == 'Bad option: "--http-port".\nInvalid option value. Got x\nSee conch serve --help\n'


def test_exit_on_error(repository: Path) -> None:
    """A start-up model that fails ends the server with exit code 1, unless told otherwise."""
    server = Server(repository, command=TRITONSERVER)
    try:
        assert server.wait() == 1
        assert "error: creating server: Internal" in server.log
        assert "failed to load all models" in server.log
        assert "Started HTTPService" not in server.log
    finally:
        server.close()


def test_complete_configs_can_be_demanded(repository: Path) -> None:
    """--disable-auto-complete-config: a model without config.pbtxt does not load; one whose config is whole does."""
    flags = ("--disable-auto-complete-config", "--exit-on-error=false", "--model-control-mode=explicit",
             "--load-model=bare", "--load-model=scale")  # fmt: skip
    server = Server(repository, *flags, command=TRITONSERVER)
    try:
        server.live_seconds()
        assert ask(server, "/v2/models/scale/ready")[0] == 200
        assert ask(server, "/v2/models/bare/ready")[0] == 404
        until(lambda: "bare/config.pbtxt: No such file or directory" in server.log)
        # As with Triton, what was never understood is not known, and holds nothing back.
        assert ask(server, "/v2/health/ready")[0] == 200
        assert ask(server, "/v2/health/live")[0] == 200
        assert server.stop() == 0
    finally:
        server.close()


def test_idle_connections_do_not_hold_up_the_stop(repository: Path) -> None:
    """SIGTERM closes connections that are open and idle, over HTTP and gRPC, and the exit code is 0."""
    with Server(repository, "--model-control-mode=explicit", "--exit-timeout-secs=30") as server:
        plain = socket.create_connection(("127.0.0.1", server.http_port), timeout=60)
        plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert plain.recv(1000).startswith(b"HTTP/1.1 200 OK")
        channel = grpc.insecure_channel(server.grpc)
        grpc.channel_ready_future(channel).result(60)
        server.signal()
        assert plain.recv(1000) == b""
        assert server.wait() == 0
        plain.close()
        channel.close()


def test_the_stop_has_an_end(tmp_path: Path) -> None:
    """A request that outlives --exit-timeout-secs does not keep the server: it says so and leaves with exit code 1."""
    config = TENSORS + 'backend: "identity" parameters { key: "execute_delay_ms" value { string_value: "30000" } }'
    (tmp_path / "slow" / "1").mkdir(parents=True)
    (tmp_path / "slow" / "config.pbtxt").write_text(config)
    server = Server(tmp_path, "--exit-timeout-secs=1")
    try:
        server.ready_seconds()
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]})
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("POST", "/v2/models/slow/infer", body)
        # Whoever answers this has seen the request before it.
        assert "nv_inference" in metrics_page(server)
        server.signal()
        assert server.wait() == 1
        assert "Exit timeout expired. Exiting immediately." in server.log
        connection.close()
    finally:
        server.close()


def metrics_page(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    return page


def test_metrics_have_tritons_names(server: Server) -> None:
    """The page of a server that has answered one request: every core name, with model and version."""
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
    assert ask(server, "/v2/models/bare/infer", "POST", body)[0] == 200
    label = '{model="bare",version="10"}'
    # An instance counts when it has answered.
    until(lambda: f"nv_inference_request_success{label} 1\n" in metrics_page(server))
    page = metrics_page(server)
    for name in ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count"):
        assert f"{name}{label} 1\n" in page
    for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert re.search(rf"^nv_inference_{part}_duration_us{re.escape(label)} [0-9]+$", page, re.MULTILINE)
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        assert f'nv_inference_request_failure{{model="bare",reason="{reason}",version="10"}} 0\n' in page
    assert 'nv_inference_request_success{model="broken"' not in page
