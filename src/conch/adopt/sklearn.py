"""Scikit-learn models (and alike) in joblib files: a Python model loads one, a helper process reads its config."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from conch.adopt.api import AdoptError, Entry
from conch.adopt.single import own_name
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NAME

_PATIENCE_S: Final = 120
_MODEL_FILE: Final = '''\
"""Made by Conch: serves the model in the file below."""

from pathlib import Path

from conch.adopt.run_estimator import serve

TritonPythonModel = serve(Path(__file__).with_name({file!r}), {library!r})
'''
_TRUST: Final = "loading a joblib file can run any code that is in it: serve only files you trust"


def read_sklearn(path: Path, name: str) -> Entry:
    """A lone joblib file."""
    entry = estimator(path, name or own_name(path), "sklearn", "predict", "FP64")
    entry.config.dynamic_batching.SetInParent()
    entry.config.max_batch_size = 64
    _drop_rows(entry.config)
    return entry


def estimator(path: Path, name: str, library: str, input_name: str, datatype: str = "FP32") -> Entry:
    """A model with `predict`. Its requests may have any number of rows; nothing is batched."""
    found = _ask(path, library)
    config = ModelConfig(name=name, backend="python")
    _tensor(config.input.add(), {"name": input_name, "datatype": datatype, "dims": [-1, found["features"]]})
    for output in found["outputs"]:
        _tensor(config.output.add(), output)
    source = _MODEL_FILE.format(file=path.name, library=library)
    files: dict[str, Path | bytes] = {"1/model.py": source.encode(), f"1/{path.name}": path}
    return Entry(name, config, files, f"{library} model", path, [f"{found['type']} in {path.name}; {_TRUST}"])


def _tensor(entry: Any, described: Mapping[str, Any]) -> None:
    entry.name = described["name"]
    entry.data_type = BY_NAME[described["datatype"]].number
    entry.dims.extend(described["dims"])


def _drop_rows(config: ModelConfig) -> None:
    """The first dimension becomes the batch."""
    tensors: list[Any] = [*config.input, *config.output]
    for tensor in tensors:
        tensor.dims[:] = list(tensor.dims)[1:] or [1]


def _ask(path: Path, library: str) -> dict[str, Any]:
    """What the model takes and gives. The file is loaded in a process of its own, never in the server."""
    try:
        process = subprocess.run(  # noqa: S603  our own program
            [sys.executable, "-P", "-m", "conch.adopt.run_estimator", str(path), library],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AdoptError(f"{path}: loading it took more than {_PATIENCE_S} s") from None
    if process.returncode:
        last = process.stderr.strip().rpartition("\n")[2] or f"exit code {process.returncode}"
        raise AdoptError(f"{path} cannot be loaded: {last}", f"the packages that made it are needed here ({library})")
    found: dict[str, Any] = json.loads(process.stdout.strip().rpartition("\n")[2])
    return found
