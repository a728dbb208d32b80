"""Lone models: one file or folder of a framework, and models of a repository served by themselves."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from conch.adopt.api import AdoptError, Entry
from conch.adopt.external import external_files
from conch.config.pbtxt import format_text, parse_text
from conch.pb.model_config_pb2 import DataType as Number
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types.error import InferError

#: Kind -> what it is called, the name Triton gives the file, and what the config has to say beyond it.
_FILES: Final = {
    "onnx": ("ONNX model", "model.onnx", "", ""),
    "torchscript": ("TorchScript model", "model.pt", "pytorch", "pytorch_libtorch"),
    "aoti": ("AOTInductor package", "model.pt2", "pytorch", "torch_aoti"),
    "openvino": ("OpenVINO model", "model.xml", "openvino", ""),
    "plan": ("TensorRT plan", "model.plan", "tensorrt", "tensorrt_plan"),
    "graphdef": ("TensorFlow graph", "model.graphdef", "tensorflow", "tensorflow_graphdef"),
    "savedmodel": ("TensorFlow SavedModel", "model.savedmodel", "tensorflow", "tensorflow_savedmodel"),
}
#: Files of forests -> Triton's name for the file, and for the kind of model.
_FORESTS: Final = {
    ".json": ("xgboost.json", "xgboost_json"),
    ".ubj": ("xgboost.ubj", "xgboost_ubj"),
    ".txt": ("model.txt", "lightgbm"),
    ".tl": ("checkpoint.tl", "treelite_checkpoint"),
}


def read_file(path: Path, kind: str, name: str) -> Entry:
    """A framework's model file, or SavedModel folder."""
    if kind == "savedmodel" and path.is_file():
        path = path.parent
    what, filename, backend, platform = _FILES[kind]
    files: dict[str, Path | bytes] = {f"1/{filename}": path}
    mapped: list[str] = []
    if kind == "onnx":
        for inside in external_files(path):
            parts = PurePosixPath(inside)
            if parts.is_absolute() or ".." in parts.parts or inside in ("", "."):
                raise AdoptError(
                    f"{path} names the file '{inside}' for its weights, which is not in its folder",
                    "export it again: weights lie beside the file",
                )
            beside = path.parent / inside
            if not beside.is_file():
                raise AdoptError(
                    f"{path} keeps weights in the file '{inside}' beside it, and there is no {beside}",
                    "put it there, as the exporter wrote it",
                )
            files[f"1/{inside}"] = beside
            mapped.append(f"weights in {inside}")
    if kind == "openvino":
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise AdoptError(f"{path} needs its weights beside it, and there is no {weights}")
        files["1/model.bin"] = weights
    config = ModelConfig(backend=backend, platform=platform)
    return Entry(name or own_name(path), config, files, what, path, mapped)


def read_forest(path: Path, name: str) -> Entry:
    """A forest of XGBoost, LightGBM or Treelite, for Triton's backend `fil`."""
    filename, kind = _FORESTS[path.suffix.lower()]
    config = ModelConfig(backend="fil", max_batch_size=8192, default_model_filename=filename)
    config.parameters["model_type"].string_value = kind
    features = _features(path, kind)
    if features:
        config.input.append(ModelInput(name="input__0", data_type=Number.TYPE_FP32, dims=[features]))
        config.output.append(ModelOutput(name="output__0", data_type=Number.TYPE_FP32, dims=[1]))
        config.dynamic_batching.SetInParent()
    return Entry(name or own_name(path), config, {f"1/{filename}": path}, f"forest ({kind})", path)


def _features(path: Path, kind: str) -> int:
    try:
        if kind == "xgboost_json":
            return int(json.loads(path.read_bytes())["learner"]["learner_model_param"]["num_feature"])
        if kind == "lightgbm":
            line = next(line for line in path.read_text().splitlines() if line.startswith("max_feature_idx="))
            return int(line.partition("=")[2]) + 1
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise AdoptError(f"{path}: this is no whole {kind} file: {type(error).__name__}: {error}") from None
    return 0


def read_python(path: Path, name: str) -> Entry:
    """A file with a TritonPythonModel; with it goes what lies beside it: files, and packages that it imports."""
    files: dict[str, Path | bytes] = {"1/model.py": path}
    for beside in neighbours(path):
        files[f"1/{beside.name}"] = beside
    mapped = [f"beside it: {', '.join(sorted(name[2:] for name in files if name != '1/model.py'))}"]
    return Entry(name or own_name(path), ModelConfig(), files, "Python model", path, mapped if len(files) > 1 else [])


def neighbours(path: Path) -> Iterator[Path]:
    """What a Python file may need of its folder: the files in it, and the folders that it imports."""
    wanted = imported(path)
    for entry in sorted(path.parent.iterdir()):
        if entry == path or entry.name in ("model.py", "config.pbtxt") or is_noise(entry):
            continue
        if entry.is_file() or entry.name in wanted:
            yield entry


def is_noise(path: Path) -> bool:
    """Whether no model can need a file: hidden ones, logs, and what this process writes its own words to."""
    if path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".log":
        return True
    try:
        status = path.stat()
        return any(os.path.samestat(status, os.fstat(descriptor)) for descriptor in (1, 2))
    except OSError:
        return False


def imported(path: Path) -> set[str]:
    """The first parts of the names of modules that a Python file imports."""
    found: set[str] = set()
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0], *(name.name for name in node.names if node.level)}
    return found


def read_model(path: Path, name: str) -> Entry:
    """A model's folder out of a repository."""
    if path.is_file():
        path = path.parent
    files: dict[str, Path | bytes] = {
        entry.name: entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")
    }
    config_file = files.pop("config.pbtxt", None)
    config = ModelConfig()
    text: str | None = None
    if isinstance(config_file, Path):
        try:
            text = config_file.read_text(encoding="utf-8")
            config = parse_text(text, str(config_file))
        except UnicodeDecodeError as error:
            raise AdoptError(f"{config_file} is not UTF-8 text: {error.reason}") from None
        except InferError as error:
            raise AdoptError(error.message, error.hint) from None
    if not name:
        name = config.name or path.resolve().name
    elif text is not None and config.name not in ("", name):
        config.name = name
        text = format_text(config)
    return Entry(name, config, files, "model folder", path, config_text=text)


def own_name(path: Path) -> str:
    """`m/1/model.onnx` is m, `resnet.onnx` resnet."""
    path = path.resolve()
    folder = path.parent
    if folder.name.isdecimal() and path.stem in ("model", "xgboost", "checkpoint"):
        return folder.parent.name
    return path.stem if path.suffix else path.name
