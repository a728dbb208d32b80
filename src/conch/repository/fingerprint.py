"""What files look like (names, sizes, times) and what they hold: a digest each, kept while they look the same."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

#: Bytes read at a time: a file of any size takes this much memory.
_CHUNK: Final = 1 << 20
#: Digests that are remembered; a file beyond that is read again when it is asked for.
_REMEMBERED: Final = 1 << 16
#: Seconds: file systems count times in steps. What was written this shortly before it was read may be written again
#: within the same step, and then looks as before.
_COARSEST_STEP: Final = 2.0

#: What tells one state of a file from another without reading it.
_Look = tuple[int, int, int, int, int]


class Contents:
    """Digests of files by content. A file is read again only when it looks otherwise than at the last reading.

    Any thread. Blocking, for as long as reading takes.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[_Look, str]] = OrderedDict()
        #: How many files were read, for tests.
        self.read = 0

    def digest(self, path: Path, status: os.stat_result) -> str:
        """What the file holds, as a text. `status` is its present state. A file that cannot be read is its look."""
        look = look_of(status)
        name = str(path)
        with self._lock:
            known = self._known.get(name)
            if known is not None and known[0] == look:
                self._known.move_to_end(name)
                return known[1]
        begun = self._clock()
        try:
            found, after = self._read(path)
        except OSError:
            return repr(look)
        # Only what has stood still since well before it was read can be recognised by its look.
        if after == look and max(status.st_mtime, status.st_ctime) < begun - _COARSEST_STEP:
            with self._lock:
                self._known[name] = look, found
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return found

    def _read(self, path: Path) -> tuple[str, _Look]:
        digest = blake3()
        buffer = memoryview(bytearray(_CHUNK))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
            after = look_of(os.fstat(file.fileno()))
        with self._lock:
            self.read += 1
        return digest.hexdigest(), after


def look_of(status: os.stat_result) -> _Look:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp(path: Path, contents: Contents | None = None) -> str:
    """A text that changes when the file, or anything in the folder, changes; empty when there is nothing.

    With `contents` only what files are called and hold counts, without it how they look too. Hidden files and Python's
    caches do not count: loading a model makes them.
    """
    return stamp_all([path], contents)


def stamp_all(paths: Iterable[Path], contents: Contents | None = None) -> str:
    """One stamp over several files or folders."""
    digest = hashlib.blake2b(digest_size=16)
    found = False
    for path in paths:
        for line in _lines(path, path.name, frozenset(), contents):
            digest.update(line.encode("utf-8", "surrogateescape"))
            found = True
    return digest.hexdigest() if found else ""


def _lines(path: Path, shown: str, above: frozenset[tuple[int, int]], contents: Contents | None) -> Iterator[str]:
    """A line per file below `path`, in a fixed order. `above` are the folders we are in: links may form a circle."""
    try:
        status = path.stat()
        folder = stat.S_ISDIR(status.st_mode)
        entries = sorted([entry.name for entry in path.iterdir()]) if folder else []
    except OSError:
        return
    # A NUL cannot stand in a name, so no two different trees give the same lines.
    yield f"{shown}\0{_state(path, status, contents)}\n"
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries:
        if not entry.startswith(".") and entry != "__pycache__":
            yield from _lines(path / entry, f"{shown}/{entry}", above | {identity}, contents)


def _state(path: Path, status: os.stat_result, contents: Contents | None) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if contents is None:
        return repr(look_of(status))
    # Reading a pipe or a device might never end.
    return contents.digest(path, status) if stat.S_ISREG(status.st_mode) else "special"
