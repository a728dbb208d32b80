"""Puts entries into a repository: by links for a server that runs once, by copies for one that is to stay."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from conch.adopt.api import AdoptError, Entry
from conch.config.pbtxt import format_text
from conch.pb.model_config_pb2 import ModelConfig
from conch.repository.local import CONFIG_FILE, check_name
from conch.types.error import InferError


def lay(entries: Sequence[Entry], repository: Path, *, copy: bool = False, force: bool = False) -> list[Path]:
    """The folders made. With `force` a model that is there already is replaced. Raises AdoptError and OSError."""
    names: dict[str, Entry] = {}
    for entry in entries:
        try:
            check_name(entry.name)
        except InferError as error:
            raise AdoptError(f"{entry.source}: {error.message}", "say --name NAME") from None
        first = names.setdefault(entry.name, entry)
        if first is not entry:
            raise AdoptError(
                f"{first.source} and {entry.source} would both be model '{entry.name}'", "serve one with --name NAME"
            )
        if (repository / entry.name).exists() and not force:
            raise AdoptError(f"{repository / entry.name} is there already", "say --force to replace it")
    return [_lay(entry, repository / entry.name, copy) for entry in entries]


def _lay(entry: Entry, folder: Path, copy: bool) -> Path:
    # Beside its place, so that a model is there as a whole or not at all.
    made = folder.with_name(f".{folder.name}.new")
    if made.exists():
        shutil.rmtree(made)
    made.mkdir(parents=True)
    for inside, content in entry.files.items():
        place = made / inside
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif not copy:
            place.symlink_to(content.absolute(), target_is_directory=content.is_dir())
        elif content.is_dir():
            shutil.copytree(content, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(content, place)
    text = entry.config_text if entry.config_text is not None else format_text(entry.config)
    if text and CONFIG_FILE not in entry.files:
        (made / CONFIG_FILE).write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    return made.rename(folder)


def refresh(entry: Entry, folder: Path) -> None:
    """Bring a folder of links up to date: whoever watches it sees that its files have changed. Raises OSError."""
    text = entry.config_text if entry.config_text is not None else format_text(entry.config)
    for inside, content in {**entry.files, CONFIG_FILE: text.encode()}.items():
        place = folder / inside
        if isinstance(content, bytes):
            if (place.read_bytes() if place.exists() else b"") != content:
                _replace(place, content)
        elif content.is_file():
            _replace(place, content)


def _replace(place: Path, content: Path | bytes) -> None:
    made = place.with_name(f".{place.name}.new")
    made.unlink(missing_ok=True)
    if isinstance(content, bytes):
        made.write_bytes(content)
    else:
        made.symlink_to(content.absolute())
    made.replace(place)


def write_config(config: ModelConfig, file: Path, *, force: bool) -> None:
    """Raises AdoptError where the file is there already, and not `force`."""
    if file.exists() and not force:
        raise AdoptError(f"{file} is there already", "say --force to replace it, or --write-config=FILE")
    try:
        file.write_text(format_text(config), encoding="utf-8")
    except OSError as error:
        raise AdoptError(f"{file} cannot be written: {error.strerror}") from None
