"""What a PyTorch file is, told by its content: names like model.pt say little. Nothing here needs PyTorch."""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError, internal, invalid

#: What is looked for in a version folder where the config names no file, in this order.
FILENAMES: Final = ("model.pt", "model.pt2", "model.py", "model.pth", "model.safetensors")
_WEIGHTS: Final = ("model.pt", "model.pth", "model.safetensors")
#: `self.n = ...` in the code of a TorchScript file; and `b = self.b` with `torch.add_(b, ...)` after it.
_ASSIGNS: Final = re.compile(r"^\s*(?:s|self)(?:\.\w+)+ = ", re.MULTILINE)
_FETCHES: Final = re.compile(r"^\s*(\w+) = (?:s|self)(?:\.\w+)*\.\w+$", re.MULTILINE)
_WRITES: Final = re.compile(r"\b(?:torch|ops\.\w+)\.\w+_\((\w+)[,)]")

#: What `zipfile` raises for archives that are damaged, or packed in ways that PyTorch has not.
BROKEN: Final = (EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
#: How often its packed size an entry may unpack to, beyond so many bytes. PyTorch packs code alone, to about a tenth.
_MOST_PACKED: Final = 100
_FREE: Final = 64 << 20
#: Bytes of a file of code that are looked at.
_MOST_CODE: Final = 16 << 20


class Kind(Enum):
    """What is served, by what people call it."""

    SCRIPT = "TorchScript file"
    EXPORTED = "torch.export program"
    PACKAGE = "AOTInductor package"
    MODULE = "Python module"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What one version of a model consists of. `path` is the file; for a module `weights` are its state, or None."""

    kind: Kind
    path: Path
    weights: Path | None = None


def find_artifact(directory: Path, config: ModelConfig) -> Artifact:
    """What to serve of a version folder. Raises InferError where nothing there can be."""
    path = _file(directory, config)
    module = _module(directory, config, path)
    if path.suffix == ".py":
        return Artifact(Kind.MODULE, path, _weights(directory, path))
    kind = kind_of(path, config.name)
    if kind is None or (module is not None and kind is not Kind.SCRIPT and path.suffix != ".pt2"):
        if module is None:
            raise internal(
                f"failed to load model '{config.name}': '{path.name}' holds weights alone, no model",
                f"put the file model.py with the torch.nn.Module beside it in {directory}, or save TorchScript: "
                "torch.jit.script(model.eval()).save('model.pt')",
            )
        return Artifact(Kind.MODULE, module, path)
    return Artifact(kind, path)


def kind_of(path: Path, model: str) -> Kind | None:
    """The kind of a file; None for weights. Raises InferError for what no PyTorch wrote."""
    if path.suffix == ".safetensors":
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except BROKEN:
        raise _foreign(path, model) from None
    except OSError as error:
        raise internal(f"failed to load model '{model}': {path}: {error.strerror}") from None
    for entry in entries:
        if entry.file_size > _FREE + _MOST_PACKED * entry.compress_size:
            raise internal(
                f"failed to load model '{model}': '{entry.filename}' in '{path}' unpacks from {entry.compress_size} "
                f"bytes to {entry.file_size}, at most {_MOST_PACKED} times as many are expected",
                "no PyTorch packs so tightly: save the model again",
            )
    names = [entry.filename for entry in entries]
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("data/aotinductor/") for name in inside):
        return Kind.PACKAGE
    if any(name.startswith("models/") and name.endswith(".json") for name in inside):
        return Kind.EXPORTED
    # Older packages of torch.export have these at the top.
    if "serialized_exported_program.json" in {*names, *inside}:
        return Kind.EXPORTED
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return Kind.SCRIPT
    if "data.pkl" in inside:
        return None
    raise _foreign(path, model)


def keeps_state(path: Path) -> bool:
    """Whether the code of a TorchScript file seems to change the module's own values as it runs."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if "/code/" in name and name.endswith(".py"):
                    with archive.open(name) as code:
                        if _changes(code.read(_MOST_CODE).decode(errors="replace")):
                            return True
    except (OSError, *BROKEN):
        return False
    return False


def _changes(code: str) -> bool:
    if _ASSIGNS.search(code):
        return True
    fetched = set(_FETCHES.findall(code))
    return any(written in fetched for written in _WRITES.findall(code))


def _file(directory: Path, config: ModelConfig) -> Path:
    # The platform's usual name is filled in for every PyTorch model that names none: it is no word of the operator's.
    named = config.default_model_filename
    for name in (named, *FILENAMES) if named in ("", *FILENAMES[:2]) else (named,):
        if name and (directory / name).is_file():
            return directory / name
    raise InferError(
        Code.UNAVAILABLE,
        f"unable to find '{directory / (named or FILENAMES[0])}' for model instance '{config.name}'",
        "put the model there, or name its file in default_model_filename",
    )


def _module(directory: Path, config: ModelConfig, path: Path) -> Path | None:
    """The Python file that the weights at `path` belong to."""
    if config.runtime and not config.runtime.endswith(".py"):
        raise invalid(
            f"unable to load model '{config.name}', runtime '{config.runtime}' is not one that the pytorch backend has",
            'remove it, or write runtime: "model.py" for a torch.nn.Module in model.py',
        )
    for name in dict.fromkeys((path.with_suffix(".py").name, "model.py")):
        if (directory / name).is_file():
            return directory / name
    return None


def _weights(directory: Path, module: Path) -> Path | None:
    for name in (*(f"{module.stem}{Path(each).suffix}" for each in _WEIGHTS), *_WEIGHTS):
        if (directory / name).is_file():
            return directory / name
    return None


def _foreign(path: Path, model: str) -> InferError:
    return internal(
        f"failed to load model '{model}': '{path}' is no PyTorch file, or only a part of one ({_size(path)} bytes)",
        "copy the file again; it is written by torch.jit.save, torch.export.save or "
        "torch._inductor.aoti_compile_and_package",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
