"""Repositories that change under a real server: polled, loaded by force, guarded by agents."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from conch.pb import grpc_service_pb2 as pb
from support.server import TRITONSERVER, Server
from support.until import until

pytestmark = pytest.mark.slow

CONFIG = """
backend: "identity"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: 2 }
output { name: "Y" data_type: TYPE_FP32 dims: 2 }
"""
INPUT = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
AGENT = """
class TritonRepoAgent:
    def model_action(self, action, model):
        if action == "LOAD":
            place = model.mutable_directory()
            for number in model.parameters["versions"].split(","):
                (place / number).mkdir()
            return place
"""


def write(root: Path, name: str, more: str = "") -> Path:
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(CONFIG + more)
    return root / name


def ask(server: Server, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None
    finally:
        connection.close()


def states(server: Server) -> dict[tuple[str, str], str]:
    index = ask(server, "POST", "/v2/repository/index")[1]
    return {(line["name"], line.get("version", "")): line.get("state", "") for line in index}


def count(server: Server) -> int:
    return int(ask(server, "GET", "/v2/models/m/stats")[1]["model_stats"][0]["inference_count"])


def test_a_model_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    """A config that grows for longer than a poll is read once, when it is whole; the server is ready all along."""
    write(tmp_path, "steady")
    with Server(tmp_path, "--model-control-mode=poll", "--repository-poll-secs=1", command=TRITONSERVER) as server:
        for attempt in range(20):
            name = f"slow{attempt}"
            (tmp_path / name / "1").mkdir(parents=True)
            longest = 0.0
            with (tmp_path / name / "config.pbtxt").open("w") as file:
                for piece in (CONFIG[n : n + 16] for n in range(0, len(CONFIG), 16)):
                    begun = time.monotonic()
                    file.write(piece)
                    file.flush()
                    assert ask(server, "GET", "/v2/health/ready")[0] == 200
                    time.sleep(0.25)
                    longest = max(longest, time.monotonic() - begun)
            until(lambda: states(server).get((name, "1")) == "READY")  # noqa: B023
            # Whoever does not write for as long as a poll takes is read half-way.
            if longest < 0.8:
                break
        assert server.log.count(f"poll: the files of model '{name}' are new") == 1
        assert f"Poll failed for model directory '{name}'" not in server.log


def test_a_load_by_force(tmp_path: Path) -> None:
    """A plain load of the same files changes nothing, `force_reload` makes the model anew, over HTTP and gRPC."""
    place = write(tmp_path, "m")
    load = "/v2/repository/models/m/load"
    with Server(tmp_path, "--model-control-mode=explicit", "--load-model=m", command=TRITONSERVER) as server:
        assert ask(server, "POST", "/v2/models/m/infer", INPUT)[0] == 200
        (place / "config.pbtxt").touch()
        assert ask(server, "POST", load) == (200, None)
        assert count(server) == 1
        assert ask(server, "POST", load, {"parameters": {"force_reload": True}}) == (200, None)
        assert count(server) == 0
        assert ask(server, "POST", "/v2/models/m/infer", INPUT)[0] == 200
        with grpc.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
            message = pb.RepositoryModelLoadRequest(model_name="m")
            message.parameters["force_reload"].bool_param = False
            call(message.SerializeToString(), timeout=60)
            assert count(server) == 1
            message.parameters["force_reload"].bool_param = True
            call(message.SerializeToString(), timeout=60)
            assert count(server) == 0
            message.parameters["force_reload"].string_param = "yes"
            with pytest.raises(grpc.RpcError, match="invalid value type for load parameter 'force_reload'"):
                call(message.SerializeToString(), timeout=60)
        status, body = ask(server, "POST", load, {"parameters": {"force_reload": "yes"}})
        assert (status, body) == (500, {"error": "attempt to access JSON non-boolean as boolean"})


def test_agents_guard_and_move_models(tmp_path: Path) -> None:
    """A digest that differs keeps the old version serving; an agent's folder is what is loaded; the log lists both."""
    root = tmp_path / "repository"
    place = write(root, "m")
    (place / "1" / "weights").write_text("good")

    def guarded(content: str) -> str:
        digest = hashlib.md5(content.encode()).hexdigest()
        return f"""model_repository_agents {{ agents [ {{
            name: "checksum" parameters {{ key: "MD5:1/weights" value: "{digest}" }}
        }} ] }}"""

    write(root, "m", guarded("good"))
    moved = 'model_repository_agents { agents [ { name: "mover" parameters { key: "versions" value: "4,6" } } ] }'
    write(root, "moved", moved + "version_policy { all { } }")
    (tmp_path / "agents" / "mover").mkdir(parents=True)
    (tmp_path / "agents" / "mover" / "agent.py").write_text(AGENT)
    flags = ("--model-control-mode=explicit", "--load-model=*", f"--repoagent-directory={tmp_path / 'agents'}")
    with Server(root, *flags, command=TRITONSERVER) as server:
        assert states(server) == {("m", "1"): "READY", ("moved", "4"): "READY", ("moved", "6"): "READY"}
        until(lambda: "| checksum         | built in" in server.log)
        assert f"| mover            | {tmp_path / 'agents' / 'mover' / 'agent.py'}" in server.log
        (place / "1" / "weights").write_text("forged")
        status, body = ask(server, "POST", "/v2/repository/models/m/load")
        assert (status, body) == (500, {"error": "failed to load 'm', failed to poll from model repository"})
        said = "Poll failed for model directory 'm': Mismatched MD5 hash for file 1/weights, expect: "
        until(lambda: said in server.log)
        assert ask(server, "POST", "/v2/models/m/infer", INPUT)[0] == 200
        write(root, "m", guarded("forged"))
        assert ask(server, "POST", "/v2/repository/models/m/load")[0] == 200
        assert ask(server, "POST", "/v2/repository/models/moved/unload")[0] == 200
        until(lambda: set(states(server).values()) == {"READY", "UNAVAILABLE"})


def test_agents_hear_of_the_end_before_it_and_after_it(tmp_path: Path) -> None:
    """UNLOAD while the model is still whole, UNLOAD_COMPLETE when it is gone; both versions are one model."""
    diary = tmp_path / "diary"
    note = f"open({str(diary)!r}, 'a').write"
    model = f"""
class TritonPythonModel:
    def execute(self, requests):
        return []

    def finalize(self):
        {note}("finalize ")
"""
    agents = 'model_repository_agents { agents [ { name: "teller" } ] } version_policy { all { } }'
    place = write(tmp_path / "models", "m", agents)
    (place / "config.pbtxt").write_text((place / "config.pbtxt").read_text().replace("identity", "python"))
    for version in ("1", "2"):
        (place / version).mkdir(exist_ok=True)
        (place / version / "model.py").write_text(model)
    (tmp_path / "agents" / "teller").mkdir(parents=True)
    (tmp_path / "agents" / "teller" / "agent.py").write_text(
        f"class TritonRepoAgent:\n    def model_action(self, action, model):\n        {note}(f'{{action}} ')\n"
    )
    flags = ("--model-control-mode=explicit", "--load-model=m", f"--repoagent-directory={tmp_path / 'agents'}")
    with Server(tmp_path / "models", *flags, command=TRITONSERVER) as server:
        assert diary.read_text().split() == ["LOAD", "LOAD_COMPLETE"]
        assert ask(server, "POST", "/v2/repository/models/m/unload")[0] == 200
        until(lambda: "UNLOAD_COMPLETE" in diary.read_text())
    told = diary.read_text().split()
    assert sorted(told[2:]) == ["UNLOAD", "UNLOAD_COMPLETE", "finalize", "finalize"]
    assert told.index("UNLOAD") < len(told) - 2
    assert told[-1] == "UNLOAD_COMPLETE"
