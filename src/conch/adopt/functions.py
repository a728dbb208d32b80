"""Files with declared functions: a helper process reads the signatures, each function becomes a Python model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from conch.adopt.api import AdoptError, Entry
from conch.adopt.single import imported, neighbours
from conch.functions.outline import Outline, TensorOutline
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NAME

_PATIENCE_S: Final = 300
#: How long a process that has answered may take to end.
_GRACE_S: Final = 1
_MODEL_FILE: Final = '''\
"""Made by Conch: serves a function of the file below."""

from pathlib import Path

from conch.functions.serving import serve

TritonPythonModel = serve(Path(__file__).with_name({file!r}), {name!r})
'''


def read_functions(path: Path, name: str) -> list[Entry]:
    """One entry per function. Raises AdoptError with file and line where the file does not say what is needed."""
    outlines = _outlines(path)
    if name and len(outlines) > 1:
        names = ", ".join(each["name"] for each in outlines)
        raise AdoptError(f"{path} declares several models ({names}), --name can name one", '@conch.model(name="...")')
    return [_entry(path, each, name or each["name"]) for each in outlines]


def _outlines(path: Path) -> list[Outline]:
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as answer:
        try:
            process = subprocess.Popen(  # noqa: S603  our own program
                # -P: what lies in the current folder must not stand in for packages.
                [sys.executable, "-P", "-m", "conch.functions.read", str(path), str(writer)],
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                # What it starts ends with it: all of them hold the pipe open.
                start_new_session=True,
            )
        finally:
            os.close(writer)
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(_PATIENCE_S, end)
        timer.daemon = True
        try:
            timer.start()
            text = answer.read()
        finally:
            timer.cancel()
            # Threads that it began may go on for ever, but it has said what it had to say.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            _kill(process)
            process.wait()
    if late.is_set():
        raise AdoptError(
            f"{path}: importing it took more than {_PATIENCE_S} s", "do long work when the first request comes"
        )
    if not text:
        raise AdoptError(f"{path}: the process that read its signatures ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(text)
    if "error" in found:
        raise AdoptError(found["error"])
    models: list[Outline] = found["models"]
    return models


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _entry(path: Path, outline: Outline, name: str) -> Entry:
    # Not "model.py": that is what our file is called.
    file = path.name if path.name != "model.py" else "functions.py"
    source = _MODEL_FILE.format(file=file, name=outline["name"])
    files: dict[str, Path | bytes] = {"1/model.py": source.encode(), f"1/{file}": path.resolve()}
    for beside in neighbours(path.resolve()):
        # What it imports from its folder: a change of it is a change of the model.
        if beside.suffix == ".py" and beside.stem in imported(path):
            files[f"1/{beside.name}"] = beside
    mapped = [f"function {outline['function']}, {path.name}:{outline['line']}"]
    if outline["about"]:
        mapped.append(outline["about"])
    mapped += [f"{name}: {text}" for name, text in outline.get("docs", {}).items()]
    return Entry(name, function_config(outline, name), files, "Python function", path, mapped)


def with_neighbours(entry: Entry) -> Entry:
    """For a copy that is to stand alone: what the function's file may import or read beside it."""
    beside = {f"1/{each.name}": each for each in neighbours(entry.source.resolve())}
    entry.files = {**beside, **entry.files}
    return entry


def function_config(outline: Outline, name: str) -> ModelConfig:
    config = ModelConfig(name=name, backend="python", max_batch_size=outline["max_batch_size"])
    for tensor in outline["inputs"]:
        _describe(config.input.add(), tensor)
        config.input[-1].optional = tensor["optional"]
    for tensor in outline["outputs"]:
        _describe(config.output.add(), tensor)
    if outline["max_batch_size"] > 1:
        config.dynamic_batching.max_queue_delay_microseconds = outline["wait_us"]
    if outline["instances"] > 1:
        config.instance_group.add(count=outline["instances"], kind="KIND_CPU")
    if outline["concurrency"] > 1:
        config.parameters["MAX_CONCURRENT_EXECUTIONS"].string_value = str(outline["concurrency"])
    # For people who ask for the config; nothing else reads it.
    if outline["about"]:
        config.parameters["description"].string_value = outline["about"]
    for tensor_name, text in outline.get("docs", {}).items():
        config.parameters[f"description.{tensor_name}"].string_value = text
    if outline["decoupled"]:
        config.model_transaction_policy.decoupled = True
    return config


def _describe(entry: Any, tensor: TensorOutline) -> None:
    entry.name = tensor["name"]
    entry.data_type = BY_NAME[tensor["datatype"]].number
    entry.dims.extend(tensor["dims"])
