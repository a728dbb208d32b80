"""Refuses programs of torch.export with pickles that hold more than tensors: torch.export.load would run their code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from conch.backend.torch.content import BROKEN
from conch.backend.torch.runtime import runtime
from conch.types.error import InferError, internal

#: Folders whose files may be pickles, and how the name ends of the file that says which are.
_LISTED: Final = ("data/weights/", "data/constants/")
_LIST: Final = "_config.json"
#: Objects that PyTorch unpickles whatever the list says.
_OPAQUE: Final = "opaque_obj_"
_HINT: Final = "reading it could run any code: export the program again, with arguments of tensors and numbers alone"


def check_pickles(path: Path, model: str) -> None:
    """Raises InferError at the first of them. Other parts of a program are left to the load itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                # Two readers may take two different ones.
                twice = next(name for name in names if names.count(name) > 1)
                raise internal(f"failed to load model '{model}': '{path.name}' holds '{twice}' twice", _HINT)
            for name in _pickles(archive, names):
                _check(archive.read(name), name, path, model)
    except (OSError, *BROKEN) as error:
        raise internal(f"failed to load model '{model}': '{path.name}' cannot be read: {error}") from None


def _pickles(archive: zipfile.ZipFile, names: list[str]) -> Iterator[str]:
    yield from [name for name in names if name.endswith(".pt")]
    for name in names:
        top, _, inside = name.partition("/")
        if inside.endswith(_LIST) and inside.startswith(_LISTED):
            for entry in _entries(json.loads(archive.read(name))):
                place = str(entry.get("path_name"))
                file = f"{top}/{inside.rpartition('/')[0]}/{place}"
                if file in names and (entry.get("use_pickle") or place.startswith(_OPAQUE)):
                    yield file


def _entries(listed: Any) -> Iterator[dict[str, Any]]:
    found = listed.get("config") if isinstance(listed, dict) else None
    yield from [each for each in found.values() if isinstance(each, dict)] if isinstance(found, dict) else []


def _check(content: bytes, name: str, path: Path, model: str) -> None:
    if not content:
        return
    try:
        runtime().load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  its errors have no common base
        raise _unsafe(name, path, model, error) from None


def _unsafe(name: str, path: Path, model: str, error: Exception) -> InferError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)
    return internal(
        f"failed to load model '{model}': '{name}' in '{path.name}' is a pickle of more than tensors: {why}", _HINT
    )
