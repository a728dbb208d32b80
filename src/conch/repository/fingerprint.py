"""What files look like, cheaply: names, sizes and modification times, never contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path


def stamp(path: Path) -> str:
    """A text that changes when the file, or anything in the folder, changes; empty when there is nothing.

    Hidden files and Python's caches do not count: loading a model makes them.
    """
    return stamp_all([path])


def stamp_all(paths: Iterable[Path]) -> str:
    """One stamp over several files or folders."""
    digest = hashlib.blake2b(digest_size=16)
    found = False
    for path in paths:
        for line in _lines(path, path.name, frozenset()):
            digest.update(line.encode("utf-8", "surrogateescape"))
            found = True
    return digest.hexdigest() if found else ""


def _lines(path: Path, shown: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """A line per file below `path`, in a fixed order. `above` are the folders we are in: links may form a circle."""
    try:
        status = path.stat()
        folder = path.is_dir()
        entries = sorted([entry.name for entry in path.iterdir()]) if folder else []
    except OSError:
        return
    # A NUL cannot stand in a name, so no two different trees give the same lines.
    yield f"{shown}\0{0 if folder else status.st_size}\0{0 if folder else status.st_mtime_ns}\n"
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        if not entry.startswith(".") and entry != "__pycache__":
            yield from _lines(path / entry, f"{shown}/{entry}", above | {identity})
