"""The folder of files that were brought from storages: what is written where, and who may be in it."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from conch.repository.content_cache import ContentCache
from conch.types.error import InferError


def cached(place: Path, key: str = "key") -> ContentCache:
    cache = ContentCache(place, 10**9)
    partial = cache.begin()
    partial.write_text("new")
    cache.finish(partial, key)
    return cache


def test_nothing_is_written_over(tmp_path: Path) -> None:
    """A file that lies where another one is to be put stays as it is."""
    cache = cached(tmp_path / "cache")
    target = tmp_path / "theirs"
    target.write_text("old")
    with pytest.raises(FileExistsError):
        cache.link("key", target)
    assert target.read_text() == "old"
    cache.close()


def test_a_server_that_begins_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's lock file that is made and not locked yet looks like a dead one's: no other sweeps meanwhile."""
    first, second = ContentCache(tmp_path, 10), ContentCache(tmp_path, 10)
    make, made, swept = tempfile.mkstemp, threading.Event(), threading.Event()
    sweep = second._sweep

    def slow(**options: Any) -> tuple[int, str]:
        found = make(**options)
        if not made.is_set():
            made.set()
            assert not swept.wait(0.1)
        return found

    def noted() -> None:
        swept.set()
        sweep()

    monkeypatch.setattr("conch.repository.content_cache.tempfile.mkstemp", slow)
    monkeypatch.setattr(second, "_sweep", noted)
    threads = [threading.Thread(target=first._open)]
    threads[0].start()
    assert made.wait(10)
    threads.append(threading.Thread(target=second._open))
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert len(list((tmp_path / "views").glob("*.lock"))) == 2
    first.close()
    second.close()


def test_a_server_that_cannot_settle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a lock file nor an open file."""
    cache = ContentCache(tmp_path, 10)
    cache.view("m")[1]()
    cache.close()
    mkdir, before = Path.mkdir, len(os.listdir("/proc/self/fd"))  # noqa: PTH208  pathlib opens one itself

    def full(self: Path, *arguments: Any, **options: Any) -> None:
        if self.parent.name == "views":
            raise OSError(28, "No space left on device")
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(InferError, match="No space left"):
        ContentCache(tmp_path, 10).view("m")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not list((tmp_path / "views").iterdir())
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_model_whose_name_no_disk_takes_leaves_nothing(tmp_path: Path) -> None:
    """Keys of storages may be longer than names of files."""
    cache = ContentCache(tmp_path, 10)
    with pytest.raises(InferError, match="File name too long"):
        cache.view("m" * 300)
    assert list((tmp_path / "views").glob("*/*")) == []
    cache.close()


def test_what_cannot_be_removed_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that is too full and read-only is warned of; who needs a file that is there has it."""
    cache = cached(tmp_path)
    cache._limit = 0
    unlink = Path.unlink

    def refused(self: Path, *arguments: Any, **options: Any) -> None:
        if self.parent.parent.name == "objects":
            raise OSError(30, "Read-only file system")
        unlink(self, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", refused)
    directory, remove = cache.view("m")
    cache.link("key", directory / "w")
    remove()
    assert f"the repository cache {tmp_path} cannot be kept to its size: Read-only file system" in caplog.text
    cache.close()
