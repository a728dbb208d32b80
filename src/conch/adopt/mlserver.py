"""MLServer's model-settings.json: its scikit-learn, XGBoost, LightGBM runtimes and custom ones, as Python models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from conch.adopt.api import AdoptError, Content, Entry
from conch.adopt.run_mlserver import ELSEWHERE
from conch.adopt.single import is_noise, neighbours
from conch.adopt.sklearn import estimator
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NAME

_FILE: Final = "model-settings.json"
_LIBRARIES: Final = {
    "mlserver_sklearn.SKLearnModel": ("sklearn", ("model.joblib", "model.pickle", "model.pkl")),
    "mlserver_xgboost.XGBoostModel": ("xgboost", ("model.bst", "model.json", "model.ubj")),
    "mlserver_lightgbm.LightGBMModel": ("lightgbm", ("model.bst", "model.txt")),
}
#: Old names of the same, and runtimes of MLServer that have no counterpart here yet.
_ALIASES: Final = {"mlserver.sklearn.SKLearnModel": "mlserver_sklearn.SKLearnModel"}
_MODEL_FILE: Final = '''\
"""Made by Conch: serves the MLServer runtime below."""

from pathlib import Path

from conch.adopt.run_mlserver import serve

TritonPythonModel = serve(Path(__file__).parent, {implementation!r})
'''
_HANDLED: Final = frozenset(
    {"name", "implementation", "parameters", "inputs", "outputs", "max_batch_size", "max_batch_time"}
)


def read_settings_files(path: Path, name: str) -> list[Entry]:
    """A model-settings.json, its folder, or a folder of such folders."""
    if path.is_file():
        path = path.parent
    folders = [path] if (path / _FILE).is_file() else sorted(each.parent for each in path.glob(f"*/{_FILE}"))
    entries = [_read(folder, name) for folder in folders]
    for place in {path, *folders}:
        if (place / "settings.json").is_file() and entries:
            entries[0].unmapped.append(
                f"{place / 'settings.json'}: settings of the server itself, which are flags here (conch serve --help)"
            )
    return entries


def _read(folder: Path, name: str) -> Entry:
    file = folder / _FILE
    try:
        settings: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise AdoptError(f"{file} is no JSON: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("implementation"), str):
        raise AdoptError(f"{file} has no 'implementation'", 'such as "mlserver_sklearn.SKLearnModel"')
    parameters: dict[str, Any] = settings.get("parameters") or {}
    called = name or str(settings.get("name") or folder.resolve().name)
    implementation = str(settings["implementation"])
    implementation = _ALIASES.get(implementation, implementation)
    known = _LIBRARIES.get(implementation)
    if known is not None:
        library, usual = known
        entry = estimator(_artefact(folder, parameters, usual), called, library, "predict")
        entry.unmapped.append("inputs of any name and data type: the config has one name and one data type")
        if not settings.get("outputs"):
            entry.unmapped.append("answers have all outputs unless a request names those it wants (MLServer: predict)")
        _take_tensors(entry.config, settings, file)
    elif implementation.partition(".")[0].startswith("mlserver"):
        raise AdoptError(
            f"{file}: there is no counterpart to MLServer's runtime {implementation} here",
            f"taken over are {', '.join(_LIBRARIES)} and custom runtimes beside the file",
        )
    else:
        entry = _custom(folder, called, implementation, settings)
    entry.what = f"MLServer model ({implementation})"
    entry.source = file
    _batches(entry, settings)
    _version(entry, parameters)
    _rest(entry, settings, parameters, custom=known is None)
    return entry


def _artefact(folder: Path, parameters: Mapping[str, Any], usual: tuple[str, ...]) -> Path:
    uri = str(parameters.get("uri") or "")
    if "://" in uri and not uri.startswith("file://"):
        raise AdoptError(f"{folder / _FILE}: its uri {uri} is remote", "download the file, and let uri name it")
    place = folder / uri.removeprefix("file://") if uri else folder
    if place.is_file():
        return place
    for candidate in usual:
        if (place / candidate).is_file():
            return place / candidate
    raise AdoptError(f"{folder / _FILE}: there is no model file {place}", f"expected one of {', '.join(usual)}")


def _custom(folder: Path, name: str, implementation: str, settings: Mapping[str, Any]) -> Entry:
    """A class of the user's own, in a file beside the settings."""
    module, dot, kind = implementation.rpartition(".")
    if not all(each.isidentifier() for each in implementation.split(".")):
        raise AdoptError(
            f"{folder / _FILE}: 'implementation' is {implementation!r:.80}, which names no class",
            'such as "runtime.MyModel", a class in runtime.py beside the file',
        )
    source = folder / f"{module.replace('.', '/')}.py"
    if not dot or not kind or not source.is_file():
        raise AdoptError(f"{folder / _FILE}: there is no file {source} with the class of '{implementation}'")
    for side in ("inputs", "outputs"):
        if not settings.get(side):
            raise AdoptError(
                f"{folder / _FILE} does not describe the model's {side}",
                f'write "{side}": [{{"name": "x", "datatype": "FP32", "shape": [-1, 4]}}], as in MLServer\'s metadata',
            )
    content = _MODEL_FILE.format(implementation=implementation).encode()
    files: dict[str, Path | bytes] = {f"1/{each.name}": each for each in neighbours(source)}
    if module == "model":
        raise AdoptError(f"{source}: the name model.py is taken here", "rename the file, and 'implementation' with it")
    top = folder / module.partition(".")[0]
    own = top if top.is_dir() else source
    files |= {f"1/{own.name}": own, f"1/{_FILE}": folder / _FILE, "1/model.py": content}
    for beside in folder.iterdir():
        if beside.is_file() and not is_noise(beside):
            files.setdefault(f"1/{beside.name}", beside)
    entry = Entry(name, ModelConfig(name=name, backend="python"), files, "", folder)
    _take_tensors(entry.config, settings, folder / _FILE)
    entry.files = {**_named(entry, folder, str((settings.get("parameters") or {}).get("uri") or "")), **files}
    return entry


def _named(entry: Entry, folder: Path, uri: str) -> dict[str, Content]:
    """What a custom runtime finds under its `parameters.uri`; `run_mlserver.artefact` looks where this puts it."""
    path = PurePosixPath(uri.removeprefix("file://"))
    if not uri:
        return {}
    if "://" in uri and not uri.startswith("file://"):
        entry.unmapped.append(f"parameters.uri {uri}: it is remote, the runtime is told it as it is")
        return {}
    if not (folder / path).exists():
        entry.unmapped.append(f"parameters.uri {uri}: there is no such file here, the runtime is told it as it is")
        return {}
    entry.mapped.append(f"parameters.uri {uri} -> self.settings.parameters.uri")
    if path.is_absolute() or ".." in path.parts:
        return {f"1/{ELSEWHERE}/{path.name}": (folder / path).resolve()}
    if path.parts:
        return {f"1/{path.parts[0]}": folder / path.parts[0]}
    return {f"1/{each.name}": each for each in folder.iterdir() if not is_noise(each)}


def _take_tensors(config: ModelConfig, settings: Mapping[str, Any], file: Path) -> None:
    """`inputs` and `outputs` of the settings, where they are given."""
    for side, tensors in (("inputs", config.input), ("outputs", config.output)):
        given = settings.get(side)
        if not given:
            continue
        del tensors[:]
        for each in given:
            kind = BY_NAME.get(str(each.get("datatype")))
            if kind is None or not each.get("name") or not each.get("shape"):
                raise AdoptError(f"{file}: {side} has {each}, expected a name, a datatype such as FP32 and a shape")
            tensors.add(name=each["name"], data_type=kind.number, dims=each["shape"])


def _batches(entry: Entry, settings: Mapping[str, Any]) -> None:
    size = int(settings.get("max_batch_size") or 0)
    if size <= 1:
        return
    config = entry.config
    tensors: list[Any] = [*config.input, *config.output]
    for tensor in tensors:
        if tensor.dims[0] != -1:
            entry.unmapped.append(
                f"max_batch_size {size}: '{tensor.name}' has the shape {list(tensor.dims)}, whose first size is not -1"
            )
            return
    for tensor in tensors:
        if len(tensor.dims) == 1:
            # Rows of one value each: clients send [n, 1].
            entry.unmapped.append(f"the shape [n] of '{tensor.name}': with batches it is [n, 1]")
        tensor.dims[:] = list(tensor.dims)[1:] or [1]
    delay = round(float(settings.get("max_batch_time") or 0) * 1_000_000)
    config.max_batch_size = size
    config.dynamic_batching.max_queue_delay_microseconds = delay
    entry.mapped.append(f"max_batch_size {size}, max_batch_time {delay / 1e6:g} s -> dynamic batching")


def _version(entry: Entry, parameters: Mapping[str, Any]) -> None:
    text = str(parameters.get("version") or "")
    found = re.fullmatch(r"v?(\d+)(\.0+)*", text)
    if not found or int(found[1]) < 1:
        if text:
            entry.unmapped.append(f"version {text}: versions are whole numbers here, so it is version 1")
        return
    entry.files = {f"{int(found[1])}/{inside.removeprefix('1/')}": each for inside, each in entry.files.items()}
    entry.mapped.append(f"version {text} -> {int(found[1])}")


def _rest(entry: Entry, settings: Mapping[str, Any], parameters: Mapping[str, Any], *, custom: bool) -> None:
    for key, value in settings.items():
        if key == "parallel_workers":
            entry.config.instance_group.add(count=max(1, int(value)), kind="KIND_CPU")
            entry.mapped.append(f"parallel_workers {value} -> {max(1, int(value))} instances")
        elif key not in _HANDLED:
            entry.unmapped.append(f"{key}: {json.dumps(value):.80}")
    for key, value in parameters.items():
        if key == "extra" and custom:
            entry.mapped.append("parameters.extra -> self.settings.parameters.extra")
        elif key not in ("uri", "version"):
            entry.unmapped.append(f"parameters.{key}: {json.dumps(value):.80}")
