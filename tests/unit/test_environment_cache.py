"""The cache of environments: made once, whole or not at all, kept while in use."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.python.environment_cache import Entry, EnvironmentCache, superfluous
from conch.types.error import InferError, internal


def make(folder: Path, lock: int) -> None:
    folder.mkdir()
    (folder / "file").write_text("whole")


def fail(folder: Path, lock: int) -> None:
    folder.mkdir()
    raise internal("no such package")


def test_made_once(tmp_path: Path) -> None:
    """Whoever asks at the same time waits for the first, and gets the same folder."""
    cache = EnvironmentCache(tmp_path / "cache", 20, 30)
    made = []
    begun = threading.Barrier(4)

    def slow(folder: Path, lock: int) -> None:
        made.append(folder)
        make(folder, lock)

    def ask() -> Path:
        begun.wait()
        held = cache.get("k", slow, "model 'm'")
        assert (held.folder / "file").read_text() == "whole"
        held.close()
        return held.folder

    with ThreadPoolExecutor(4) as pool:
        folders = {future.result() for future in [pool.submit(ask) for _ in range(4)]}
    assert folders == {tmp_path / "cache" / "k" / "env"}
    assert len(made) == 1


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """Neither folder nor lock; the next one tries again."""
    cache = EnvironmentCache(tmp_path, 20, 30)
    with pytest.raises(InferError, match="no such package"):
        cache.get("k", fail, "model 'm'")
    assert list(tmp_path.iterdir()) == []
    cache.get("k", make, "model 'm'").close()
    assert (tmp_path / "k" / "ready").is_file()


def test_half_made_is_made_anew(tmp_path: Path) -> None:
    """What a process left behind that died is thrown away."""
    (tmp_path / "k" / "env").mkdir(parents=True)
    (tmp_path / "k" / "env" / "file").write_text("ha")
    held = EnvironmentCache(tmp_path, 20, 30).get("k", make, "model 'm'")
    assert (held.folder / "file").read_text() == "whole"
    held.close()


def test_old_ones_go_but_those_in_use_stay(tmp_path: Path) -> None:
    """With room for two, a third pushes out the one used longest ago that nobody holds."""
    cache = EnvironmentCache(tmp_path, 2, 30)
    held = [cache.get(f"k{n}", make, "model 'm'") for n in range(2)]
    for n in range(2):
        os.utime(tmp_path / f"k{n}" / "ready", (n + 1e9, time.time() - 1000 + n))
    cache.get("k2", make, "model 'm'").close()
    assert sorted(each.name for each in tmp_path.glob("k?")) == ["k0", "k1", "k2"]
    held[0].close()
    cache.get("k3", make, "model 'm'").close()
    assert sorted(each.name for each in tmp_path.glob("k?")) == ["k1", "k2", "k3"]
    assert (tmp_path / "k1" / "env" / "file").read_text() == "whole"
    held[1].close()


def test_nowhere_to_keep_it(tmp_path: Path) -> None:
    """A cache that cannot be made is told with the setting that helps."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InferError) as caught:
        EnvironmentCache(tmp_path / "file" / "cache", 20, 30).get("k", make, "model 'm'")
    assert caught.value.message.startswith("model 'm': cannot keep a Python environment in")
    assert "environment-cache=DIR" in caught.value.hint


@given(st.lists(st.floats(0, 1e7), max_size=30), st.integers(1, 10), st.integers(1, 100))
def test_what_is_superfluous(ages: list[float], keep: int, days: int) -> None:
    """Of what stays there are at most `keep`, none too old, and none was used before one that goes for its rank."""
    now = 2e9
    entries = [Entry(str(number), now - age) for number, age in enumerate(ages)]
    gone = superfluous(entries, now, keep, days)
    stay = [each for each in entries if each not in gone]
    assert len(stay) <= keep
    assert all(now - each.used <= days * 86_400 for each in stay)
    young = [each for each in gone if now - each.used <= days * 86_400]
    assert not young or (len(stay) == keep and min(s.used for s in stay) >= max(y.used for y in young))
