"""From a path on the command line to the models in it, whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from conch.adopt import single
from conch.adopt.api import AdoptError, Entry, said
from conch.adopt.functions import read_functions
from conch.adopt.mlserver import read_settings_files
from conch.adopt.recognise import lone, recognise
from conch.adopt.sklearn import read_sklearn
from conch.adopt.tfserving import read_folders, read_models_config
from conch.adopt.torchserve import read_archives


def _one(read: Callable[[Path, str], Entry]) -> Callable[[Path, str], list[Entry]]:
    return lambda path, name: [read(path, name)]


_READERS: Final[Mapping[str, Callable[[Path, str], list[Entry]]]] = {
    "functions": read_functions,
    "python": _one(single.read_python),
    "model": _one(single.read_model),
    "forest": _one(single.read_forest),
    "sklearn": _one(read_sklearn),
    "mar": read_archives,
    "mlserver": read_settings_files,
    "tfserving": read_folders,
    "models.config": read_models_config,
}


def read_target(path: Path, name: str = "") -> list[Entry] | None:
    """The models at `path`; None for a Triton repository, which is served as it is. `name` is for a lone model.

    Raises AdoptError.
    """
    try:
        kind = recognise(path)
        if kind == "repository":
            return None
        if kind == "lone":
            path = lone(path)
            kind = recognise(path)
        read = _READERS.get(kind)
        entries = read(path, name) if read is not None else [single.read_file(path, kind, name)]
    except OSError as error:
        raise AdoptError(said(error, path)) from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        # Other servers' files hold whatever somebody wrote into them.
        text = "it is nested too deeply" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
        raise AdoptError(
            f"{path}: a value in it is not what is expected there: {text:.300}", "see what its own server says of it"
        ) from error
    if not entries:
        raise AdoptError(f"{path}: there is no model in it")
    if name and len(entries) > 1:
        raise AdoptError(f"{path} holds {len(entries)} models, --name can name one", "leave --name out")
    return entries
