"""Python-based backends: models without code, what their program sees, `runtime`, and the environment they share."""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

from parity.cases import Case, get, infer, post, x_int

FLAGS = ("--model-control-mode=explicit",)
OURS = (f"--backend-config=python,environment-cache={tempfile.gettempdir()}/conch-parity-environments",)
PLACED = ("--backend-directory=<root>/backends",)
#: Where the real Triton keeps what all Python-based backends need.
TRITON = Path(__file__).parents[2] / ".cache" / "triton" / "backends" / "python"
PROGRAM = """import json
import os
import sys

import helper
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [1]})
        config.add_output({"name": "SAYS", "data_type": "TYPE_STRING", "dims": [1]})
        config.set_max_batch_size(helper.BATCH)
        config.set_dynamic_batching()
        return config

    def initialize(self, args):
        known = ("model_name", "model_repository", "model_version", "model_instance_name", "model_instance_kind")
        self.says = {name: args[name] for name in known}
        self.says["file"] = __file__
        self.says["name"] = __name__
        self.says["directory"] = pb_utils.get_model_dir()
        self.says["weights"] = sorted(os.listdir(pb_utils.get_model_dir()))
        self.says["helper"] = helper.__file__
        self.says["SAID"] = os.environ.get("SAID", "")
        self.says["runtime"] = json.loads(args["model_config"])["runtime"]

    def execute(self, requests):
        text = np.array([[json.dumps(self.says, sort_keys=True)]], dtype=object)
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("SAYS", text)]) for _ in requests]
"""
GROUP = "instance_group [ { kind: KIND_CPU } ]\n"
CONFIGS = {
    "plain": 'backend: "mine"\n',
    "named": 'backend: "mine" runtime: "model.py"\n',
    "file": 'backend: "mine" default_model_filename: "weights.bin"\n',
    "x.mine": "",
    "packed": 'backend: "packed"\n',
    "unknown": 'backend: "nobody"\n',
    "unknown_runtime": 'backend: "nobody" runtime: "model.py"\n',
    "library": 'backend: "mine" runtime: "libtriton_other.so"\n',
    "python_runtime": 'backend: "python" runtime: "model.py"\n',
}


def write(root: Path, oracle: bool) -> None:
    for name, config in CONFIGS.items():
        (root / "models" / name / "1").mkdir(parents=True)
        (root / "models" / name / "config.pbtxt").write_text(config + GROUP)
        (root / "models" / name / "1" / "weights.bin").write_text("0.5")
    backends = root / "backends"
    for name in ("mine", "packed"):
        (backends / name).mkdir(parents=True)
        (backends / name / "model.py").write_text(PROGRAM)
        (backends / name / "helper.py").write_text("BATCH = 4\n")
    if oracle:
        (backends / "python").symlink_to(TRITON)
    environment = root / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "lib").mkdir()
    (environment / "bin" / "activate").write_text("export SAID=activated\n")
    # Triton's stub has a Python of its own, Conch runs that of the environment.
    (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    with tarfile.open(backends / "packed" / "pb_exec_env_model.py.tar.gz", "w:gz") as tar:
        for each in sorted(environment.iterdir()):
            tar.add(each, each.name)


CASES: list[Case] = [
    case
    for name in CONFIGS
    for case in (
        post(f"backends: load {name}", f"/v2/repository/models/{name}/load", {}),
        get(f"backends: config {name}", f"/v2/models/{name}/config"),
        infer(f"backends: infer {name}", name, {"inputs": [{**x_int(), "shape": [1, 1]}]}),
    )
] + [post("backends: index", "/v2/repository/index", {})]
