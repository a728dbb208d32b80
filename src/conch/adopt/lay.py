"""Puts entries into a repository: by links for a server that runs once, by copies for one that is to stay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from conch.adopt.api import AdoptError, Content, Entry, Packed
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
        _check_sources(entry, repository / entry.name, copy)
    return [_lay(entry, repository / entry.name, copy) for entry in entries]


def _lay(entry: Entry, folder: Path, copy: bool) -> Path:
    # Beside its place, so that a model is there as a whole or not at all; what it replaces goes last.
    made, before = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    _remove(made)
    made.mkdir(parents=True)
    try:
        for inside, content in entry.files.items():
            _put(content, _place(entry, made, inside), copy)
        text = entry.config_text if entry.config_text is not None else format_text(entry.config)
        if text and CONFIG_FILE not in entry.files:
            (made / CONFIG_FILE).write_text(text, encoding="utf-8")
        _remove(before)
        _swap(made, folder, before)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    _remove(before)
    return folder


def _swap(made: Path, folder: Path, before: Path) -> None:
    """`made` becomes `folder`, and what was there `before`. Raises AdoptError; then all is as it was."""
    there = os.path.lexists(folder)
    try:
        if there:
            folder.rename(before)
        made.rename(folder)
    except OSError as error:
        if os.path.lexists(before):
            before.rename(folder)
        text = "cannot be replaced, it is as it was" if there else "cannot be made"
        raise AdoptError(f"{folder} {text}: {error.strerror}", "see who may write there") from error


def _check_sources(entry: Entry, folder: Path, copy: bool) -> None:
    """Raises AdoptError for files that would go with the folder that is replaced, and be nowhere else."""
    for content in entry.files.values():
        source = content.archive if isinstance(content, Packed) else None if copy else content
        if isinstance(source, Path) and source.resolve().is_relative_to(folder.resolve()):
            raise AdoptError(f"{source} lies in {folder}, which would be replaced", "move it elsewhere before")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _place(entry: Entry, folder: Path, inside: str) -> Path:
    """Where a file goes. Names come out of files of anybody's: none may lead out, also not through a link."""
    path = PurePosixPath(inside)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in inside:
        raise _outside(entry, inside)
    place = folder / path
    if not place.parent.resolve().is_relative_to(folder.resolve()):
        raise _outside(entry, inside)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _outside(entry: Entry, inside: str) -> AdoptError:
    return AdoptError(f"{entry.source} has a file that would lie outside of the model's folder: '{inside}'")


def _put(content: Content, place: Path, copy: bool) -> None:
    if isinstance(content, bytes):
        place.write_bytes(content)
    elif isinstance(content, Packed):
        content.unpack(place)
    elif not copy:
        place.symlink_to(content.absolute(), target_is_directory=content.is_dir())
    elif content.is_dir():
        shutil.copytree(content, place, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(content, place)


Look: TypeAlias = tuple[int, ...]


def looks(entry: Entry, folder: Path) -> dict[Path, Look]:
    """How the files look that an entry's places in a folder are linked to, or were unpacked from."""
    return {folder / inside: look for inside, content in entry.files.items() for look in _look(content)}


def _look(content: Content) -> list[Look]:
    path = content.archive if isinstance(content, Packed) else content
    if isinstance(path, bytes) or not path.is_file():
        return []
    status = path.stat()
    return [(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)]


def refresh(entry: Entry, folder: Path, known: Mapping[Path, Look]) -> None:
    """Bring a folder of links up to date: whoever watches it sees which files have changed, and nothing where none
    has. `known` are the looks of before. Raises AdoptError and OSError."""
    text = entry.config_text if entry.config_text is not None else format_text(entry.config)
    now = looks(entry, folder)
    for inside, content in {**entry.files, CONFIG_FILE: text.encode()}.items():
        place = _place(entry, folder, inside)
        if isinstance(content, bytes):
            if (place.read_bytes() if place.exists() else b"") != content:
                _replace(place, content)
        elif place in now and (now[place] != known.get(place) or not place.exists()):
            _replace(place, content)


def _replace(place: Path, content: Content) -> None:
    made = place.with_name(f".{place.name}.new")
    made.unlink(missing_ok=True)
    try:
        _put(content, made, copy=False)
        made.replace(place)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def write_config(config: ModelConfig, file: Path, *, force: bool) -> None:
    """Raises AdoptError where the file is there already, and not `force`."""
    if file.exists() and not force:
        raise AdoptError(f"{file} is there already", "say --force to replace it, or --write-config=FILE")
    try:
        file.write_text(format_text(config), encoding="utf-8")
    except OSError as error:
        raise AdoptError(f"{file} cannot be written: {error.strerror}") from None
