"""Models of one name in two repositories, told apart by their namespaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity.cases import Case, Grpc, Http, get, infer, post, x_int

#: The repositories, below the folder that `write` is given.
FOLDERS = ("one", "two")
FLAGS = ("--model-namespacing=true", "--model-control-mode=explicit")
MODELS = {"one": ("both", "left"), "two": ("both", "right")}
#: Repository, name, and the model of its one step: a neighbour, and one that lies elsewhere.
ENSEMBLES = (("two", "near", "both"), ("two", "far", "left"))

MODEL = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        who = np.array([b"%s"], dtype=object)
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("WHO", who)]) for _ in requests]
"""

CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "WHO" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ENSEMBLE = """
platform: "ensemble"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "WHO" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "%s" model_version: -1 input_map { key: "X" value: "X" } output_map { key: "WHO" value: "WHO" }
} ] }
"""
OVERRIDE = {
    "name": "both",
    "backend": "python",
    "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
    "output": [{"name": "WHO", "data_type": "TYPE_STRING", "dims": [1]}],
}


def write(root: Path, oracle: bool) -> None:
    for folder, names in MODELS.items():
        for name in names:
            version = root / folder / name / "1"
            version.mkdir(parents=True)
            (version / "model.py").write_text(MODEL % f"{folder}/{name}")
            (version.parent / "config.pbtxt").write_text(CONFIG)
    for folder, name, member in ENSEMBLES:
        (root / folder / name / "1").mkdir(parents=True)
        (root / folder / name / "config.pbtxt").write_text(ENSEMBLE % member)


def questions(when: str) -> list[Case]:
    """Everything about every model, asked `when`."""
    cases: list[Case] = []
    for name in ("both", "left", "right", "nobody"):
        path = f"/v2/models/{name}"
        cases += [
            get(f"namespaces: {name} ready {when}", f"{path}/ready"),
            get(f"namespaces: {name} metadata {when}", path),
            get(f"namespaces: {name} of a version {when}", f"{path}/versions/7"),
            get(f"namespaces: {name} config {when}", f"{path}/config"),
            get(f"namespaces: {name} statistics {when}", f"{path}/stats"),
            infer(f"namespaces: {when}", name, {"inputs": [x_int()]}),
            Grpc(f"grpc namespaces: {name} metadata {when}", "ModelMetadata", {"name": name}),
        ]
    return cases


def load(name: str, when: str = "", config: Any = None) -> Case:
    body = b"" if config is None else {"parameters": {"config": json.dumps(config)}}
    return post(f"namespaces: load {name}{when}", f"/v2/repository/models/{name}/load", body)


def unload(name: str) -> Case:
    return Http(f"http namespaces: unload {name}", "POST", f"/v2/repository/models/{name}/unload", settle=True)


def index(when: str) -> Case:
    return post(f"namespaces: index {when}", "/v2/repository/index", b"")


CASES: list[Case] = [
    index("before anything is loaded"),
    *questions("before anything is loaded"),
    load("left"),
    load("both"),
    load("nobody"),
    index("with two loaded"),
    *questions("with two loaded"),
    unload("both"),
    unload("left"),
    unload("nobody"),
    index("after unloads"),
    *questions("after unloads"),
    load("both", " with a config", OVERRIDE),
    index("at the end"),
    get("namespaces: both metadata at the end", "/v2/models/both"),
    Grpc("grpc namespaces: index", "RepositoryIndex"),
    load("near"),
    load("far"),
    *(infer("namespaces: ensemble", name, {"inputs": [x_int()]}) for _, name, _ in ENSEMBLES),
    index("with ensembles"),
]
