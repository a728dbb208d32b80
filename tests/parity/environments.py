"""EXECUTION_ENV_PATH of Python models: folders and archives, their `activate`, and what cannot be found."""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from parity.cases import Case, infer, post, x_int

FLAGS = ("--model-control-mode=explicit",)
OURS = (f"--backend-config=python,environment-cache={tempfile.gettempdir()}/conch-parity-environments",)
MODEL = """import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        text = np.array([os.environ.get("SAID", "")], dtype=object)
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("SAYS", text)]) for _ in requests]
"""
CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "SAYS" data_type: TYPE_STRING dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "%s" } }
"""
#: Model -> the environment that it names.
PATHS = {
    "folder": "$$TRITON_MODEL_DIRECTORY/env",
    "packed": "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
    "absolute": "<root>/folder/env",
    "no_archive": "$$TRITON_MODEL_DIRECTORY/none.tar.gz",
    "no_folder": "$$TRITON_MODEL_DIRECTORY/none",
    "not_relative": "nowhere.tar.gz",
    "no_text": "",
    "broken": "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
    "hollow": "$$TRITON_MODEL_DIRECTORY/env",
}


def write(root: Path, oracle: bool) -> None:
    for name, path in PATHS.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.py").write_text(MODEL)
        (root / name / "config.pbtxt").write_text(CONFIG % path.replace("<root>", str(root)))
    environment = root / "folder" / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "lib").mkdir()
    (environment / "bin" / "activate").write_text("export SAID=activated\n")
    # Triton's stub has a Python of its own, Conch runs that of the environment.
    (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    with tarfile.open(root / "packed" / "env.tar.gz", "w:gz") as tar:
        for each in sorted(environment.iterdir()):
            tar.add(each, each.name)
    (root / "broken" / "env.tar.gz").write_text("this is no archive")
    shutil.copytree(environment / "lib", root / "hollow" / "env")


CASES: list[Case] = [
    case
    for name in PATHS
    for case in (
        post(f"environment: load {name}", f"/v2/repository/models/{name}/load", {}),
        infer(f"environment: infer {name}", name, {"inputs": [x_int()]}),
    )
] + [post("environment: index", "/v2/repository/index", {})]
