"""The environment that a Python model asks for: the folder or archive, and requirements that can be read."""

from __future__ import annotations

import re
from pathlib import Path

from conch.backend.python import requirements
from conch.backend.python.environment import PATH
from conch.check.finding import Place
from conch.check.locate import locate
from conch.check.subject import Subject
from conch.types.error import InferError


def has_environment(subject: Subject) -> bool:
    """Whether the model runs in an environment of its own, of whose packages nothing is known here."""
    return bool(_named(subject)) or any(
        (folder / file).is_file() for folder in _folders(subject) for file in ("requirements.txt", "pyproject.toml")
    )


def environment_is_sound(subject: Subject) -> None:
    text = _named(subject)
    if text:
        _folder(subject, text)
    if not subject.served:
        return
    try:
        requirements.find(_folders(subject))
    except InferError as error:
        said = re.search(r"'([^']+)'(?:, line (\d+))?", error.message)
        at = Place(Path(said[1]), int(said[2] or 0), 1 if said[2] else 0) if said else None
        subject.find("requirements-can-be-read", error.message, error.hint, at=at)


def _folder(subject: Subject, text: str) -> None:
    name = text.replace("$$TRITON_MODEL_DIRECTORY", str(subject.directory))
    path = next((each for each in (subject.directory / name, Path(name).absolute()) if each.exists()), None)
    at = locate(subject.root, f"'{PATH}'")
    if path is None:
        hint = "write $$TRITON_MODEL_DIRECTORY/<file> for what lies in the model's folder"
        subject.find("environment-is-there", f"the environment '{text}' is not there", hint, at=at)
    elif path.is_dir() and not (path / "bin" / "python").exists():
        hint = "name the folder of a virtual environment or of an unpacked conda environment, or its archive (.tar.gz)"
        subject.find("environment-is-there", f"the environment '{text}' has no bin/python", hint, at=at)


def _named(subject: Subject) -> str:
    config = subject.config
    return config.parameters[PATH].string_value if config is not None and PATH in config.parameters else ""


def _folders(subject: Subject) -> list[Path]:
    """In the order in which the server looks, for the newest version."""
    newest = [subject.version_folder(max(subject.served))] if subject.served else []
    return [*newest, subject.directory]
