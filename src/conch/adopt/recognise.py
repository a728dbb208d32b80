"""What a path on the command line is: a repository, a model of one, a lone file, or a model of another server."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

from conch.adopt.api import AdoptError

#: What a file is by the end of its name.
SUFFIXES: Final = {
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".pth": "torchscript",
    ".pt2": "aoti",
    ".xml": "openvino",
    ".plan": "plan",
    ".engine": "plan",
    ".graphdef": "graphdef",
    ".mar": "mar",
    ".py": "python",
    ".joblib": "sklearn",
    ".ubj": "forest",
    ".tl": "forest",
    ".json": "json",
    ".txt": "text",
    ".config": "text",
    ".pbtxt": "text",
    ".pb": "pb",
}
_VERSION: Final = re.compile(r"[0-9]+")


def recognise(path: Path) -> str:
    """The kind of what is there: "repository" where nothing says otherwise. Raises AdoptError for a file of no kind."""
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> str:
    if path.name == "model-settings.json":
        return "mlserver"
    kind = SUFFIXES.get(path.suffix.lower(), "")
    match kind:
        case "python":
            return _python(path)
        case "json":
            kind = "forest" if '"learner"' in _begin(path, 4096) else ""
        case "text":
            begin = _begin(path, 4096)
            if path.name == "config.pbtxt":
                kind = "model"
            elif "model_config_list" in begin:
                kind = "models.config"
            else:
                kind = "forest" if begin.startswith("tree") else ""
        case "pb":
            kind = "savedmodel" if path.name == "saved_model.pb" else "graphdef"
    if not kind:
        raise AdoptError(
            f"{path}: no kind of model is known for this file",
            "known are " + ", ".join(f"*{suffix}" for suffix in SUFFIXES) + ", model-settings.json and repositories",
        )
    return kind


def _folder(path: Path) -> str:  # noqa: PLR0911  one line per kind
    names = {entry.name: entry.is_dir() for entry in sorted(path.iterdir()) if not entry.name.startswith(".")}
    if "config.pbtxt" in names:
        return "model"
    if "model-settings.json" in names:
        return "mlserver"
    if "MAR-INF" in names:
        return "mar"
    if "saved_model.pb" in names:
        return "savedmodel"
    folders = [path / name for name, is_folder in names.items() if is_folder]
    versions = [each for each in folders if _VERSION.fullmatch(each.name) and not _holds_versions(each)]
    if versions:
        return "tfserving" if any((each / "saved_model.pb").is_file() for each in versions) else "model"
    files = [path / name for name, is_folder in names.items() if not is_folder]
    if any((each / "model-settings.json").is_file() for each in folders):
        return "mlserver"
    if any(_is_tensorflow_serving(each) for each in folders):
        return "tfserving"
    if any(each.suffix == ".mar" for each in files):
        return "mar"
    if not folders and len([each for each in files if _is_lone(each)]) == 1:
        return "lone"
    return "repository"


def lone(path: Path) -> Path:
    """The one model file of a folder without folders (kind "lone")."""
    return next(each for each in sorted(path.iterdir()) if _is_lone(each))


def _is_lone(path: Path) -> bool:
    return path.suffix in {".onnx", ".pt", ".pt2", ".xml"} or path.name == "model.py"


def _holds_versions(folder: Path) -> bool:
    """Whether a folder with a number for a name is a model all the same."""
    try:
        return any(
            entry.name == "config.pbtxt" or (entry.is_dir() and _VERSION.fullmatch(entry.name))
            for entry in folder.iterdir()
        )
    except OSError:
        return False


def _is_tensorflow_serving(folder: Path) -> bool:
    """TF Serving has the SavedModel in the version folder itself, Triton in a folder below."""
    return any((each / "saved_model.pb").is_file() for each in folder.glob("[0-9]*"))


def _begin(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(size).decode("utf-8", "replace")
    except OSError as error:
        raise AdoptError(f"{path}: {error.strerror}") from None


def _python(path: Path) -> str:
    """A file with a TritonPythonModel, or with declared functions; found without running it."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise AdoptError(f"{path}:{error.lineno}: SyntaxError: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise AdoptError(f"{path}: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel":
            return "python"
    imported = any(
        (isinstance(node, ast.Import) and any(name.name.partition(".")[0] == "conch" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "conch")
        for node in ast.walk(tree)
    )
    if imported:
        return "functions"
    raise AdoptError(
        f"{path}: neither a class TritonPythonModel nor a function declared with @conch.model is in this file",
        "import conch, and put @conch.model above a function whose parameters are annotated",
    )
