"""Pinned memory: when it is made, how it is lent, and what happens where there is none."""

from __future__ import annotations

import gc
import logging
from typing import Any

import numpy as np
import pytest

from conch.config.flags import parse
from conch.config.gpus import Absent, Gpu
from conch.gpus import Gpus
from conch.memory.cuda import CudaDriver
from conch.memory.pinned import PinnedPool, Staging
from support.devices import FakeCuda

KIB = 1 << 10


def lent_by(cuda: FakeCuda, staging: Staging) -> bool:
    """Whether the bytes lie in what `cuda` has allocated."""
    begin = staging.ctypes.data
    return any(at <= begin < at + len(memory) for at, memory in cuda.allocated.items())


def opened(size: int = 4 * KIB) -> tuple[PinnedPool, FakeCuda]:
    cuda = FakeCuda()
    pool = PinnedPool(size, lambda: cuda)
    pool.open(0)
    return pool, cuda


def test_nothing_is_made_before_a_model_is_on_a_gpu() -> None:
    """Then once, whatever is opened after that."""
    cuda = FakeCuda()
    pool = PinnedPool(4 * KIB, lambda: cuda)
    assert not lent_by(cuda, pool.take(10))
    assert cuda.allocated == {}
    pool.open(0)
    pool.open(1)
    assert [len(memory) for memory in cuda.allocated.values()] == [4 * KIB]
    assert lent_by(cuda, pool.take(10))


@pytest.mark.slow
def test_a_full_pool_lends_ordinary_memory() -> None:
    """Never an error; and pinned memory again as soon as some has come back."""
    pool, cuda = opened()
    first, second, third = pool.take(3 * KIB), pool.take(3 * KIB), pool.take(KIB)
    assert [lent_by(cuda, each) for each in (first, second, third)] == [True, False, True]
    assert [each.size for each in (first, second, third)] == [3 * KIB, 3 * KIB, KIB]
    del first
    gc.collect()
    assert lent_by(cuda, pool.take(3 * KIB))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [lambda each: each.data, lambda each: each.view(np.float32).reshape(2, -1)[1:]])
def test_memory_comes_back_when_nothing_refers_to_it(keep: Any) -> None:
    """Views and arrays over it count, however far they are from what was lent."""
    pool, cuda = opened()
    kept = keep(pool.take(4 * KIB))
    gc.collect()
    assert not lent_by(cuda, pool.take(4 * KIB))
    del kept
    gc.collect()
    assert lent_by(cuda, pool.take(4 * KIB))


@pytest.mark.slow
def test_tensors_of_frameworks_keep_it() -> None:
    """PyTorch's tensors over lent memory, and what is made of them."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pool, cuda = opened()
    tensor = torch.from_numpy(pool.take(4 * KIB)).view(torch.float32).reshape(2, -1)
    array = tensor.numpy()
    del tensor
    gc.collect()
    assert not lent_by(cuda, pool.take(KIB))
    del array
    gc.collect()
    assert lent_by(cuda, pool.take(KIB))


@pytest.mark.slow
def test_the_memory_goes_with_the_last_who_uses_it() -> None:
    """A pool that is gone leaves what it has lent valid."""
    pool, cuda = opened()
    lent = pool.take(KIB)
    lent[:] = 7
    del pool
    gc.collect()
    assert set(lent.tolist()) == {7}
    assert len(cuda.allocated) == 1
    del lent
    gc.collect()
    assert cuda.allocated == {}


@pytest.mark.parametrize(
    ("size", "cuda", "said"), [(0, FakeCuda(), 0), (KIB, None, 0), (KIB, FakeCuda(broken=True), 1)]
)
def test_without_pinned_memory(size: int, cuda: FakeCuda | None, said: int, caplog: pytest.LogCaptureFixture) -> None:
    """0 bytes, no driver, or a driver that has none: ordinary memory, and the log says what nobody asked for."""
    pool = PinnedPool(size, lambda: cuda)
    with caplog.at_level(logging.WARNING, "conch"):
        pool.open(0)
    assert pool.take(10).size == 10
    assert caplog.text.count("there are no 1024 bytes of pinned memory") == said


class FakeLibrary:
    """libcuda as far as `CudaDriver` calls it: contexts are 100 + device; `stack` is the thread's."""

    def __init__(self, fails: str = "") -> None:
        self.stack: list[int] = []
        self.calls: list[tuple[str, int]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == self.fails:
                return 2
            if name == "cuDeviceGet":
                arguments[0]._obj.value = arguments[1]
            elif name == "cuDevicePrimaryCtxRetain":
                arguments[0]._obj.value = 100 + arguments[1].value
            elif name == "cuCtxPushCurrent_v2":
                self.stack.append(arguments[0].value)
            elif name == "cuCtxPopCurrent_v2":
                self.stack.pop()
            elif name != "cuInit":
                self.calls.append((name, self.stack[-1]))
            if name == "cuMemHostAlloc":
                arguments[0]._obj.value = 4096
            return 0

        self.__dict__[name] = call
        return call


def driver(library: FakeLibrary) -> CudaDriver:
    return CudaDriver(library)  # type: ignore[arg-type]


def test_each_call_has_its_devices_context_and_leaves_the_threads_own() -> None:
    """Frameworks in the same thread find what they had made current."""
    library = FakeLibrary()
    made = driver(library)
    assert made.host_alloc(0, 10) == 4096
    made.copy(1, 1, 2, 3)
    made.finish(1)
    made.host_free(0, 4096)
    made.read(0, 1, 2)
    assert library.calls == [
        ("cuMemHostAlloc", 100),
        ("cuMemcpyDtoD_v2", 101),
        ("cuStreamSynchronize", 101),
        ("cuMemFreeHost", 100),
        ("cuMemcpyDtoH_v2", 100),
    ]
    assert library.stack == []


def test_a_call_that_fails_leaves_the_threads_own_context_too() -> None:
    """And says which it was."""
    library = FakeLibrary(fails="cuMemHostAlloc")
    with pytest.raises(Exception, match="cuMemHostAlloc failed with CUresult 2"):
        driver(library).host_alloc(0, 10)
    assert library.stack == []


@pytest.mark.parametrize(("arguments", "said"), [((), False), (("--pinned-memory-pool-byte-size=1024",), True)])
def test_the_flag_without_gpus_is_told_of(
    arguments: tuple[str, ...], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine without GPUs a size means nothing, and the log says so."""

    def absent() -> list[Gpu]:
        raise Absent("there are none")

    with caplog.at_level(logging.WARNING, "conch"):
        Gpus(parse(["--model-repository=/r", *arguments], "tritonserver", {}), absent).find()
    assert ("--pinned-memory-pool-byte-size has no effect" in caplog.text) is said
