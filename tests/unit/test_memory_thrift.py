"""What loads and closed models have freed goes back to the system, and requests keep the allocator as they know it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conch.memory.thrift import MMAP_THRESHOLD, TRIM_THRESHOLD, Thrift, allocator
from support.fake_models import FakeLoaded, House

#: Eight threads, one after the other, each with an arena of its own, free pieces of several sizes; all of them are
#: alive at the end. Prints what the arenas keep then, and what is mapped while one piece of 8 MiB is held.
PROGRAM = """
import contextlib, ctypes, sys, threading
from conch.memory.thrift import THRIFT

library = ctypes.CDLL(None)
class Info(ctypes.Structure):
    _fields_ = [(each, ctypes.c_size_t) for each in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]
library.mallinfo2.restype = Info
mapped = []

def load():
    with THRIFT if sys.argv[1] == "thrifty" else contextlib.nullcontext():
        before = library.mallinfo2().hblkhd
        pieces = [bytes(size << 10) for size in (8192, 8192, 100, 100, 900, 900) * 4]
        mapped.append(library.mallinfo2().hblkhd - before)
        del pieces
    loaded.set()
    end.wait()

end = threading.Event()
threads = []
for _ in range(8):
    loaded = threading.Event()
    threads.append(threading.Thread(target=load))
    threads[-1].start()
    loaded.wait()
library.malloc_trim(0)
print(library.mallinfo2().fordblks >> 20, min(mapped) >> 20)
end.set()
"""


class Options:
    """Stands for `mallopt`."""

    def __init__(self) -> None:
        self.now: dict[int, int] = {}
        self.calls = 0

    def __call__(self, option: int, value: int) -> int:
        self.now[option] = value
        self.calls += 1
        return 1


def held(way: str) -> tuple[int, int]:
    said = subprocess.run([sys.executable, "-c", PROGRAM, way], check=True, capture_output=True, text=True).stdout
    kept, mapped = said.split()
    return int(kept), int(mapped)


def test_thresholds_are_low_while_anything_is_loaded_and_closed() -> None:
    """The first to come lowers the thresholds, the last to go raises them, errors or not."""
    options = Options()
    thrift = Thrift(options)
    with thrift:
        low = dict(options.now)
        with pytest.raises(ValueError, match="broken"), thrift:
            raise ValueError("broken")
        assert options.now == low
        assert options.calls == 2
    assert options.now.keys() == low.keys() == {MMAP_THRESHOLD, TRIM_THRESHOLD}
    assert all(options.now[each] > low[each] for each in low)
    with thrift:
        assert options.now == low


def test_the_allocator_of_an_operator_is_left_alone() -> None:
    """Who has set thresholds by the environment keeps them, and so does a C library without `mallopt`."""
    assert allocator({"MALLOC_TRIM_THRESHOLD_": "1"}) is None
    assert allocator({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1"}) is None
    with Thrift(None):
        pass


def test_versions_that_were_replaced_are_closed_in_thrift(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a version frees when it is closed goes back to the system."""
    options = Options()
    thrift = Thrift(options)
    with thrift:
        low = dict(options.now)
    closed = []
    monkeypatch.setattr("conch.registry.reaper.THRIFT", thrift)
    monkeypatch.setattr(FakeLoaded, "close", lambda _: closed.append(dict(options.now)))
    with House() as house:
        house.store.put("m", 1)
        house.load("m")
    assert closed == [low]
    assert options.now[TRIM_THRESHOLD] > low[TRIM_THRESHOLD]


@pytest.mark.skipif(allocator({}) is None, reason="not glibc")
def test_arenas_of_threads_that_load_keep_nothing() -> None:
    """However many threads have loaded models, large pieces were mapped, and what is freed is not kept."""
    kept, mapped = held("thrifty")
    assert mapped >= 64
    assert kept < 16
    # The same without: the reason for all this.
    assert held("plain")[0] > 2 * kept
