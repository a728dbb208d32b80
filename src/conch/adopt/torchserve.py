"""TorchServe archives (.mar): custom handlers run as Python models, TorchScript without one as a PyTorch model."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from conch.adopt.api import AdoptError, Content, Entry, Packed
from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelOutput

_MANIFEST: Final = "MAR-INF/MANIFEST.json"
#: TorchServe's own handlers: they come with it, not with the archive.
_OWN_HANDLERS: Final = ("image_classifier", "image_segmenter", "object_detector", "text_classifier", "base_handler")
_MODEL_FILE: Final = '''\
"""Made by Conch: serves the TorchServe archive in this folder."""

from pathlib import Path

from conch.adopt.run_torchserve import serve

TritonPythonModel = serve(Path(__file__).parent)
'''
#: Keys of model-config.yaml that have a place in a config.
_WORKERS: Final = ("minWorkers", "maxWorkers")
_KNOWN: Final = frozenset({*_WORKERS, "batchSize", "maxBatchDelay", "handler"})


def read_archives(path: Path, name: str) -> list[Entry]:
    """A .mar file, an unpacked one, or a model store: a folder of them."""
    if path.is_dir() and not (path / "MAR-INF").is_dir():
        return [_read(each, name) for each in sorted(path.glob("*.mar"))]
    return [_read(path, name)]


def _read(path: Path, name: str) -> Entry:
    contents = _contents(path)
    try:
        manifest: dict[str, Any] = json.loads(_bytes(contents[_MANIFEST]))
        model: dict[str, Any] = manifest["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise AdoptError(f"{path}: {_MANIFEST} is missing or broken: {type(error).__name__}: {error}") from None
    entry = Entry(name or str(model.get("modelName") or path.stem), ModelConfig(), {}, "TorchServe archive", path)
    version = _version(model, entry)
    serialized, handler = str(model.get("serializedFile") or ""), str(model.get("handler") or "")
    file = _handler_file(handler, contents)
    if file:
        _python(entry, contents, model, version)
    elif serialized.endswith((".pt", ".pt2")) and (not handler or handler.partition(":")[0] in _OWN_HANDLERS):
        _torchscript(entry, contents, model, version)
    else:
        raise AdoptError(
            f"{path}: its handler is '{handler}', and the archive holds no such file",
            "pack it with --handler FILE.py, a file that has handle(data, context)",
        )
    for key in ("runtime", "createdOn", "archiverVersion", "publisher", "license"):
        if key in manifest:
            entry.mapped.append(f"{key} {manifest[key]}: nothing depends on it")
    return entry


def _python(entry: Entry, contents: Mapping[str, Content], model: dict[str, Any], version: int) -> None:
    files: dict[str, Content] = {f"{version}/{inside}": content for inside, content in contents.items()}
    if f"{version}/model.py" in files:
        # The archive's own; the handler finds it under its own name in the folder that it is told.
        files = {f"{version}/archive/{inside}": content for inside, content in contents.items()}
    files[f"{version}/model.py"] = _MODEL_FILE.encode()
    requirements = str(model.get("requirementsFile") or "")
    if requirements in contents:
        files[f"{version}/requirements.txt"] = contents[requirements]
        entry.mapped.append(f"{requirements} -> requirements.txt beside model.py")
    entry.files = files
    config = entry.config
    config.backend = "python"
    config.max_batch_size = 1
    config.input.append(ModelInput(name="data", data_type=DataType.TYPE_STRING, dims=[1]))
    config.output.append(ModelOutput(name="output", data_type=DataType.TYPE_STRING, dims=[1]))
    entry.mapped.append(f"handler {model['handler']}: each row of input 'data' is one request's body")
    entry.unmapped.append(
        "the request's content type: bodies reach the handler as bytes, as JSON objects with the request parameter "
        'content_type="application/json"'
    )
    _settings(entry, contents, str(model.get("configFile") or ""))


def _torchscript(entry: Entry, contents: Mapping[str, Content], model: dict[str, Any], version: int) -> None:
    serialized = str(model["serializedFile"])
    filename = "model.pt2" if serialized.endswith(".pt2") else "model.pt"
    if serialized not in contents:
        raise AdoptError(f"{entry.source}: its manifest names '{serialized}', which is not in the archive")
    if model.get("modelFile"):
        raise AdoptError(
            f"{entry.source}: '{serialized}' holds weights for the code in '{model['modelFile']}', and the handler "
            f"'{model.get('handler')}' that joins them is TorchServe's own",
            "export it with torch.jit.script or torch.export, or pack it with a handler of your own",
        )
    entry.files = {f"{version}/{filename}": contents[serialized]}
    entry.config.backend = "pytorch"
    entry.config.platform = "pytorch_libtorch" if filename == "model.pt" else "torch_aoti"
    entry.mapped.append(f"{serialized} -> {version}/{filename}, for the PyTorch backend")
    if model.get("handler"):
        entry.unmapped.append(
            f"handler {model['handler']}: what it does before and after the model (clients send and get tensors)"
        )
    entry.unmapped += [
        f"{inside}: without the handler nothing reads it"
        for inside in contents
        if inside not in (_MANIFEST, serialized)
    ]


def _settings(entry: Entry, contents: Mapping[str, Content], file: str) -> None:
    """model-config.yaml: workers, batches; the handler reads the whole of it too."""
    if not file:
        return
    if file not in contents:
        raise AdoptError(f"{entry.source}: its manifest names '{file}', which is not in the archive")
    config = entry.config
    values = read_yaml(_bytes(contents[file]).decode(), f"{entry.source}: {file}")
    workers = [int(values[key]) for key in _WORKERS if key in values]
    if workers:
        config.instance_group.add(count=max(1, workers[0]), kind="KIND_CPU")
        entry.mapped.append(f"minWorkers {workers[0]} -> {max(1, workers[0])} instances")
        if len(workers) == 2 and workers[0] != workers[1]:
            entry.unmapped.append(f"maxWorkers {workers[1]}: the number of instances is fixed, and now {workers[0]}")
    if int(values.get("batchSize", 1)) > 1:
        config.max_batch_size = int(values["batchSize"])
        delay = int(values.get("maxBatchDelay", 100)) * 1000
        config.dynamic_batching.max_queue_delay_microseconds = delay
        entry.mapped.append(f"batchSize {config.max_batch_size}, maxBatchDelay {delay // 1000} ms -> dynamic batching")
    for key in values:
        if key == "handler":
            entry.mapped.append("handler settings -> context.model_yaml_config")
        elif key not in _KNOWN:
            entry.unmapped.append(f"{key} of {file}: the handler sees it, the server does not act on it")


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """With PyYAML where it is installed; else `key: value` lines alone. Raises AdoptError."""
    if importlib.util.find_spec("yaml") is not None:
        import yaml  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415  only this file's readers need it

        try:
            found = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise AdoptError(f"{source} is no YAML: {' '.join(str(error).split())}") from None
        if not isinstance(found, dict):
            raise AdoptError(f"{source} is no YAML mapping")
        return found
    values: dict[str, Any] = {}
    for line in text.splitlines():
        plain = line.split(" #")[0].rstrip()
        if not plain or plain.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+):\s*(.*)", plain)
        if match is None or not match[2]:
            raise AdoptError(f"{source}: nested YAML cannot be read without PyYAML", "pip install pyyaml")
        value = match[2].strip("\"'")
        values[match[1]] = int(value) if value.isdecimal() else value
    return values


def _handler_file(handler: str, contents: Mapping[str, Content]) -> str:
    """The handler's file in the archive: it is named with or without .py, with or without `:function`."""
    file = handler.partition(":")[0]
    for candidate in (file, f"{file}.py", PurePosixPath(file).name):
        if candidate.endswith(".py") and candidate in contents:
            return candidate
    return ""


def _version(model: Mapping[str, Any], entry: Entry) -> int:
    text = str(model.get("modelVersion") or "1")
    whole = re.fullmatch(r"(\d+)(\.0+)*", text)
    if whole and 1 <= int(whole[1]) < 1 << 31:
        return int(whole[1])
    entry.unmapped.append(f"version {text}: versions are whole numbers here, so it is version 1")
    return 1


def _contents(path: Path) -> dict[str, Content]:
    if path.is_dir():
        return {
            str(each.relative_to(path)): each
            for each in sorted(path.rglob("*"))
            if each.is_file() and "__pycache__" not in each.parts
        }
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each.filename for each in archive.infolist() if not each.is_dir()]
            for each in names:
                parts = PurePosixPath(each).parts
                if each.startswith("/") or ".." in parts or "\\" in each:
                    raise AdoptError(f"{path} holds a file that would lie outside of the model's folder: '{each}'")
            return {each: Packed(path, each) for each in names}
    except (zipfile.BadZipFile, struct.error, RuntimeError) as error:
        raise AdoptError(
            f"{path} is no archive: {error}", "archives in the format tgz are to be unpacked first"
        ) from None


def _bytes(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.read() if isinstance(content, Packed) else content.read_bytes()
