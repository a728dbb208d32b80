"""The serialization formats of forests, and which file of a version folder is the model. Pure but for looking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from conch.types.error import InferError, unavailable, unsupported

#: Triton's model_type -> the file that a version folder holds unless default_model_filename says otherwise.
FORMATS: Final[Mapping[str, str]] = {
    "xgboost": "xgboost.model",
    "xgboost_json": "xgboost.json",
    "xgboost_ubj": "xgboost.ubj",
    "lightgbm": "model.txt",
    "treelite_checkpoint": "checkpoint.tl",
}
#: What Triton takes for granted where a config says nothing.
DEFAULT: Final = "xgboost"

_PICKLED: Final = frozenset({".pkl", ".pickle", ".joblib"})


def find_forest(folder: Path, filename: str, model_type: str | None, model: str) -> tuple[Path, str]:
    """The model's file in a version `folder` and its format.

    `filename` is the config's default_model_filename; empty, or a name that is not there, for the format's own. Where
    the config names no format, the file's name tells it. Raises InferError when there is no such file.
    """
    path = folder / filename if filename else folder
    if path.is_file():
        return path, model_type or _format_of(path)
    inside = path if path.is_dir() else folder
    found = [kind for kind, name in FORMATS.items() if (inside / name).is_file()]
    kind = model_type or (found[0] if len(found) == 1 else DEFAULT)
    path = inside / FORMATS[kind]
    if not path.is_file():
        raise _missing(path, folder, kind, found, model)
    return path, kind


def _format_of(path: Path) -> str:
    for kind, name in FORMATS.items():
        if path.name == name:
            return kind
    for kind, name in FORMATS.items():
        if path.suffix == Path(name).suffix:
            return kind
    return DEFAULT


def _missing(path: Path, folder: Path, kind: str, found: list[str], model: str) -> InferError:
    held = sorted([each.name for each in folder.iterdir()]) if folder.is_dir() else []
    pickles = [name for name in held if Path(name).suffix in _PICKLED]
    if pickles:
        return unsupported(
            f"unable to load model '{model}': '{pickles[0]}' is a pickle, which runs code when it is read",
            "convert it where it was trained: "
            'treelite.sklearn.import_model(estimator).serialize("checkpoint.tl"), model_type "treelite_checkpoint"',
        )
    if len(found) > 1:
        hint = f"the folder holds several forests, say which in parameter 'model_type': {', '.join(found)}"
    else:
        hint = f"model_type is '{kind}'; the folder holds: {', '.join(held[:10]) or 'nothing'}"
    return unavailable(f"unable to find '{path}' for model '{model}'", hint)
