"""Models that are reloaded: `Y` is `X` plus a number that tells one version of the model from the next."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from conch.types import dtype
from support.onnx_models import graph

WIDTH = 16
HIDDEN = 65_536
PYTHON = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.ones(2_000_000, dtype=np.float32)

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(each, "X").as_numpy() + np.float32(NUMBER))]
            )
            for each in requests
        ]
"""
CONFIG = """backend: "BACKEND"
max_batch_size: 16
input [ { name: "X" data_type: TYPE_FP32 dims: [ WIDTH ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ WIDTH ] } ]
dynamic_batching { }
MORE"""
#: What may be wrong with a load, for each kind of model.
BREAKS = {"python": ("syntax", "config", "initialize", "shape"), "onnxruntime": ("shape", "config", "bytes")}


def config(backend: str, more: str = "", width: int = WIDTH) -> str:
    return CONFIG.replace("BACKEND", backend).replace("WIDTH", str(width)).replace("MORE", more)


def put(repository: Path, name: str, backend: str, number: int, more: str = "", *, broken: str = "") -> None:
    """Write the model so that it adds `number`. `broken`: one of `BREAKS`, so that it cannot be loaded."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    text = config(backend, more, WIDTH + 1 if broken == "shape" and backend != "python" else WIDTH)
    if broken == "config":
        text += "no_such_field: 1\n"
    (folder / "config.pbtxt").write_text(text)
    if backend == "onnxruntime":
        model = onnx_model(number)
        (folder / "1" / "model.onnx").write_bytes(model[:1000] if broken == "bytes" else model)
        return
    source = PYTHON.replace("NUMBER", str(number))
    if broken == "syntax":
        source += "def broken(:\n"
    elif broken == "initialize":
        source = source.replace("self.weights =", "self.weights = 1 / 0 #")
    elif broken == "shape":
        source = source.replace(
            "    def initialize",
            "    @staticmethod\n    def auto_complete_config(config):\n"
            '        config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [3]})\n'
            "        return config\n\n    def initialize",
        )
    (folder / "1" / "model.py").write_text(source)


def onnx_model(number: int) -> bytes:
    """8 MiB of weights that change nothing, so that a session that is not given back shows."""
    one = (dtype.FP32, ["batch", WIDTH])
    nodes = [
        helper.make_node("MatMul", ["X", "in"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "out"], ["nothing"]),
        helper.make_node("Add", ["X", "number"], ["sum"]),
        helper.make_node("Add", ["sum", "nothing"], ["Y"]),
    ]
    constants = {
        "in": np.full((WIDTH, HIDDEN), number, dtype=np.float32),
        "out": np.zeros((HIDDEN, WIDTH), dtype=np.float32),
        "number": np.full((1,), number, dtype=np.float32),
    }
    return graph(nodes, {"X": one}, {"Y": one}, constants).SerializeToString()


def post(port: int, path: str, body: Any = None, timeout: float = 60.0) -> tuple[int, Any]:
    """The status and the JSON of the answer; None where it has no body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(body or {}))
        answer = connection.getresponse()
        said = answer.read()
        return answer.status, json.loads(said) if said else None
    finally:
        connection.close()


def load(port: int, name: str, **parameters: Any) -> tuple[int, Any]:
    return post(port, f"/v2/repository/models/{name}/load", {"parameters": parameters} if parameters else None)


def load_together(port: int, *models: Any) -> tuple[int, Any]:
    return post(port, "/v2/repository/load", {"models": list(models)})


def reasons(port: int) -> dict[str, tuple[str, str]]:
    """Of each model with one version: its state and the reason."""
    _, index = post(port, "/v2/repository/index")
    return {each["name"]: (each.get("state", ""), each.get("reason", "")) for each in index}


def ask(port: int, name: str, value: float = 0.0, **more: Any) -> Any:
    """What the model adds, or what is said instead."""
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, WIDTH], "data": [value] * WIDTH}
    status, said = post(port, f"/v2/models/{name}/infer", {"inputs": [tensor], **more})
    return said["outputs"][0]["data"][0] - value if status == 200 else said["error"]
