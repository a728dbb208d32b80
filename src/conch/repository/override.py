"""A model folder made from files that came with a load request."""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from conch.types.error import InferError, internal, invalid

PREFIX = "file:"
#: The load parameter that switches without asking the gate; it says nothing of the model.
SKIP_GATE = "skip_gate"
#: The load parameter that loads anew what has not changed; it too says nothing of the model.
FORCE_RELOAD = "force_reload"
#: The load parameters that are on or off.
SWITCHES = (SKIP_GATE, FORCE_RELOAD)


def split(parameters: Mapping[str, str | bytes]) -> tuple[bool, dict[str, str | bytes]]:
    """Whether a load has to pass the gate, and the parameters that change the model."""
    plain = {key: value for key, value in parameters.items() if key not in SWITCHES}
    return parameters.get(SKIP_GATE, "false") != "true", plain


def forced(parameters: Mapping[str, str | bytes]) -> bool:
    """Whether a load makes anew even what has not changed."""
    return parameters.get(FORCE_RELOAD) == "true"


def inside(path: str) -> str:
    """`path` in its normal form. Raises InferError unless it names a file inside the model's folder."""
    normal = posixpath.normpath(path) if path else "."
    outside = normal.startswith(("/", "../")) or normal in {".", ".."}
    if outside or path.endswith("/") or "\0" in path:
        shown = normal.replace("\0", "\\0")
        raise invalid(
            f"Invalid file parameter '{PREFIX}{path}' with normalized path '{shown}' must stay within model directory.",
            "name files relative to the model's folder, such as file:1/model.onnx",
        )
    return normal


def build(name: str, files: Mapping[str, bytes]) -> tuple[Path, Callable[[], None]]:
    """Write the files into a private folder called `name`; also returns what removes it. Raises InferError."""
    contents: dict[str, bytes] = {}
    for path, content in files.items():
        normal = inside(path)
        if normal in contents:
            raise invalid(f"File parameters name '{normal}' twice for model '{name}'")
        contents[normal] = content
    try:
        root = Path(tempfile.mkdtemp(prefix="conch_override_"))
    except OSError as error:
        raise internal(f"failed to create a folder for the files of model '{name}': {error.strerror}") from error
    try:
        directory = root / name
        directory.mkdir()
        for normal, content in contents.items():
            target = directory / normal
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except (OSError, ValueError) as error:
        shutil.rmtree(root, ignore_errors=True)
        raise _refusal(name, error) from error
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return directory, lambda: shutil.rmtree(root, ignore_errors=True)


def _refusal(name: str, error: Exception) -> InferError:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError, ValueError)):
        return invalid(f"File parameters of model '{name}' do not form a folder: {reason}")
    return internal(f"failed to write the files of model '{name}': {reason}")
