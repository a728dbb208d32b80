"""Environments that were made, kept in folders that all servers of a user share; each is made once.

Of an environment called `<key>` there are `<key>/env`, the mark `<key>/ready` that says it is whole (its time is when
it was used last), and `<key>.lock`. Who uses an environment holds the lock together with others, who makes or removes
it holds it alone; the kernel lets go of locks of processes that die.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conch.types.error import InferError, internal

_LOG = logging.getLogger("conch.backend")


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    #: When it was used last, in seconds.
    used: float


def superfluous(entries: Sequence[Entry], now: float, keep: int, keep_days: int) -> list[Entry]:
    """Those to be removed, unless they are in use: all but the `keep` used last, and those unused for so long."""
    newest = sorted(entries, key=lambda entry: (-entry.used, entry.key))
    return [entry for rank, entry in enumerate(newest) if rank >= keep or now - entry.used > keep_days * 86_400]


class Held:
    """An environment in use: nobody removes it until `close`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


#: Makes an environment in a folder that is not there yet. The descriptor is the lock: processes that write there get
#: it too, so that nobody else begins while they live. Raises InferError.
Make = Callable[[Path, int], None]


class EnvironmentCache:
    """Any thread, any number of processes."""

    def __init__(self, folder: Path, keep: int, keep_days: int) -> None:
        self._folder = folder
        self._keep = keep
        self._keep_days = keep_days

    def get(self, key: str, make: Make, about: str) -> Held:
        """The environment `key`, made if it is not there. `about` says what it is for, in messages. Blocks. Raises
        InferError; then nothing of it is left."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            while True:
                lock = self._lock(key, about)
                try:
                    held = self._use_or_make(key, lock, make)
                except BaseException:
                    os.close(lock)
                    raise
                if held is not None:
                    return held
                os.close(lock)
        except OSError as error:
            raise self._trouble(about, error) from error

    def collect(self, but: str) -> None:
        """Remove what is superfluous or was never finished, and not in use."""
        now = time.time()
        whole: list[Entry] = []
        for lock in self._folder.glob("*.lock"):
            try:
                whole.append(Entry(lock.stem, (self._folder / lock.stem / "ready").stat().st_mtime))
            except OSError:
                # Half made, by someone who died.
                whole.append(Entry(lock.stem, -1e12))
        for entry in superfluous(whole, now, self._keep, self._keep_days):
            if entry.key != but and self._remove(entry.key) and entry.used > 0:
                days = (now - entry.used) / 86_400
                _LOG.info("removed the Python environment %s, not used for %.1f days", entry.key, days)

    def _lock(self, key: str, about: str) -> int:
        """The open lock, held together with others."""
        lock = os.open(self._folder / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("%s: waiting until the environment is made elsewhere", about)
            fcntl.flock(lock, fcntl.LOCK_SH)
        return lock

    def _use_or_make(self, key: str, lock: int, make: Make) -> Held | None:
        """None when the lock was removed meanwhile, or somebody else was faster: try again."""
        place = self._folder / key
        if os.fstat(lock).st_nlink == 0:
            return None
        if self._whole(place):
            return Held(place / "env", lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink == 0 or self._whole(place):
            return None
        begun = time.monotonic()
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        try:
            make(place / "env", lock)
            mark = place / "ready.part"
            mark.write_text(json.dumps({"seconds": round(time.monotonic() - begun, 3)}))
            mark.rename(place / "ready")
        except BaseException:
            # The lock's file last: who waits for it finds it gone and begins again.
            shutil.rmtree(place, ignore_errors=True)
            (self._folder / f"{key}.lock").unlink(missing_ok=True)
            raise
        # Now together with others again. Between the two nobody holds it: who finds it gone makes it again.
        fcntl.flock(lock, fcntl.LOCK_SH)
        if os.fstat(lock).st_nlink == 0 or not self._whole(place):
            return None
        held = Held(place / "env", lock)
        self.collect(key)
        return held

    @staticmethod
    def _whole(place: Path) -> bool:
        try:
            os.utime(place / "ready")
        except FileNotFoundError:
            return False
        return True

    def _remove(self, key: str) -> bool:
        name = self._folder / f"{key}.lock"
        try:
            lock = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The mark first: whatever happens now, it is not taken for whole.
            (self._folder / key / "ready").unlink(missing_ok=True)
            shutil.rmtree(self._folder / key, ignore_errors=True)
            name.unlink(missing_ok=True)
        except OSError:
            return False
        finally:
            os.close(lock)
        return True

    def _trouble(self, about: str, error: OSError) -> InferError:
        return internal(
            f"{about}: cannot keep a Python environment in '{self._folder}': {error.strerror or error}",
            "name a folder that can be written to, on a disk with room: --backend-config=python,environment-cache=DIR",
        )
