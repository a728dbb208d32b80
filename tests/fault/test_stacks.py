"""SIGUSR1: a server that seems to hang says what it and its workers are doing."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from support.server import Server
from support.until import until

MODEL = """
import pathlib
import time

class TritonPythonModel:
    def execute(self, requests):
        pathlib.Path(__file__).with_name("begun").touch()
        while not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.01)
        raise SystemExit
"""
CONFIG = """
backend: "python"
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def test_the_stacks_of_all_threads_and_workers_can_be_asked_for(tmp_path: Path) -> None:
    """The server's loop and the line that a model hangs in are in the log after SIGUSR1, and both go on."""
    (tmp_path / "slow" / "1").mkdir(parents=True)
    (tmp_path / "slow" / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "slow" / "1" / "model.py").write_text(MODEL)
    body = json.dumps({"inputs": [{"name": "IN", "datatype": "FP32", "shape": [1], "data": [1.0]}]})
    with Server(tmp_path) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("POST", "/v2/models/slow/infer", body)
        until((tmp_path / "slow" / "1" / "begun").exists)
        server.stacks()
        until(lambda: all(part in server.log for part in ("model.py", "in execute", "asyncio/runners.py")))
        (tmp_path / "slow" / "1" / "go").touch()
        assert connection.getresponse().status == 500
        connection.close()
