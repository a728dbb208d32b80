"""Complete files of cloud repositories on the local disk, found by what is in them, shared by models and servers."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from conch.repository.eviction import CachedObject, evict
from conch.types.error import InferError, internal

log = logging.getLogger("conch.repository")

_OURS_ALONE: Final = 0o700
#: Files are shared: who writes into one would change it for all.
_READ_ONLY: Final = 0o444


class ContentCache:
    """One folder, which several servers may share. All calls from any thread.

    `objects/` holds complete files by key, `views/` the folders that models are loaded from, made of hard links. So an
    object is in use exactly when it has more than one link, whoever uses it. `views/<server>.lock` is locked while
    that server lives. `limit` is in bytes and says what may lie here; what is in use stays even beyond it.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self._limit = limit
        self._lock = threading.Lock()
        #: Keys that a load is about to link.
        self._pinned: Counter[str] = Counter()
        self._lock_file = -1
        self._views = directory / "views"
        self._mine: Path | None = None

    def has(self, key: str, size: int) -> bool:
        """Whether the file is here, whole; it then counts as used now. `size` below 0: not known."""
        path = self._path(key)
        try:
            if size >= 0 and path.stat().st_size != size:
                path.unlink()
                return False
            os.utime(path)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def pinned(self, keys: Iterable[str]) -> Iterator[None]:
        """Within the block this server evicts none of them."""
        pins = Counter(keys)
        with self._lock:
            self._pinned.update(pins)
        try:
            yield
        finally:
            with self._lock:
                self._pinned.subtract(pins)
                self._pinned += Counter()

    def begin(self) -> Path:
        """An empty file to write to; `finish` or unlink it. Raises InferError."""
        try:
            self._open()
            handle, name = tempfile.mkstemp(dir=self.directory / "partial")
            os.close(handle)
        except OSError as error:
            raise self.refusal(error) from error
        return Path(name)

    def finish(self, partial: Path, key: str) -> None:
        """What was begun is complete: from now on it is found. Raises InferError."""
        path = self._path(key)
        try:
            partial.chmod(_READ_ONLY)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        except OSError as error:
            raise self.refusal(error) from error

    def read(self, key: str) -> bytes:
        """Raises OSError."""
        return self._path(key).read_bytes()

    def view(self, name: str) -> tuple[Path, Callable[[], None]]:
        """A new folder called `name` for a model's files, and what removes it. Raises InferError."""
        try:
            root = Path(tempfile.mkdtemp(dir=self._open()))
        except OSError as error:
            raise self.refusal(error) from error

        def remove() -> None:
            shutil.rmtree(root, ignore_errors=True)
            self.make_room(0)

        directory = root / name
        try:
            directory.mkdir()
        except OSError as error:
            remove()
            raise self.refusal(error) from error
        return directory, remove

    def link(self, key: str, target: Path) -> None:
        """Put the file at `target`, where nothing may be. Raises FileNotFoundError when it is gone, which another
        server may cause, and OSError."""
        path = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:
            # File systems without hard links, or a file with all the links it can have.
            shutil.copyfile(path, target)

    def make_room(self, needed: int) -> None:
        """Remove what has not been used for longest until `needed` more bytes fit, or nothing more can be removed."""
        failed: OSError | None = None
        with self._lock:
            gone = evict(self._scan(), self._limit, needed)
            for key in gone:
                try:
                    self._path(key).unlink(missing_ok=True)
                except OSError as error:
                    failed = error
        if failed is not None:
            log.warning("the repository cache %s cannot be kept to its size: %s", self.directory, failed.strerror)
        elif gone:
            log.info("removed %d files that no model uses from %s", len(gone), self.directory)

    def close(self) -> None:
        """Remove this server's views; what is cached stays."""
        with self._lock:
            if self._mine is not None:
                shutil.rmtree(self._mine, ignore_errors=True)
                Path(f"{self._mine}.lock").unlink(missing_ok=True)
                os.close(self._lock_file)
                self._mine = None

    def refusal(self, error: OSError) -> InferError:
        return internal(
            f"failed to write to the repository cache {self.directory}: {error.strerror or error}",
            "choose a folder with enough space by --repository-cache=DIR",
        )

    def _path(self, key: str) -> Path:
        return self.directory / "objects" / key[:2] / key

    def _scan(self) -> Iterator[CachedObject]:
        for path in (self.directory / "objects").glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                in_use = status.st_nlink > 1 or path.name in self._pinned
                yield CachedObject(path.name, status.st_size, status.st_mtime, in_use)

    def _open(self) -> Path:
        """This server's own folder of views; the first call makes it and removes what dead servers left behind."""
        with self._lock:
            if self._mine is not None:
                return self._mine
            for each in (self.directory, self.directory / "objects", self.directory / "partial", self._views):
                each.mkdir(mode=_OURS_ALONE, parents=True, exist_ok=True)
            owner = self.directory.stat().st_uid
            if owner not in (os.geteuid(), 0):
                # Models are code: whoever owns the folder could run theirs.
                raise PermissionError(1, f"it belongs to another user ({owner})")
            with self._alone():
                self._sweep()
                self._mine = self._settle()
            return self._mine

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the block no other server sweeps or settles: one that has made its lock file and not locked it yet
        looks like a dead one."""
        handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _settle(self) -> Path:
        """A folder of views of this server's own; raises OSError, and then nothing is left of it."""
        handle, name = tempfile.mkstemp(dir=self._views, suffix=".lock")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = Path(name.removesuffix(".lock"))
            mine.mkdir(mode=_OURS_ALONE)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            os.close(handle)
            raise
        self._lock_file = handle
        return mine

    def _sweep(self) -> None:
        """Views and partial files of servers that have died."""
        alive = False
        for lock in self._views.glob("*.lock"):
            try:
                handle = os.open(lock, os.O_RDWR)
            except OSError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                alive = True
            else:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
            finally:
                os.close(handle)
        if not alive:
            for partial in (self.directory / "partial").iterdir():
                partial.unlink(missing_ok=True)
