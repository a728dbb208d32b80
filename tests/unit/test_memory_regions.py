"""Registered regions: what may be registered, what may be read, and how long it lives. Texts are Triton's."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conch.memory.cuda import CudaError
from conch.memory.regions import Regions
from conch.memory.system import COPY_LIMIT
from conch.types.error import Code, InferError
from conch.types.tensor import Buffer

SIZE = 4 * COPY_LIMIT
HANDLE = bytes(range(64))


class FakeDriver:
    """GPU memory of other processes: 16 bytes behind each handle. Implements `memory.cuda.Driver`."""

    def __init__(self) -> None:
        self.memory = bytearray(range(16))
        self.opened: list[int] = []
        self.broken = False
        #: What has been written and may not have arrived.
        self.under_way = 0

    def open(self, device: int, handle: bytes) -> int:
        if device > 0:
            raise CudaError("no such device")
        self.opened.append(device)
        return 1000

    def close(self, device: int, address: int) -> None:
        self.opened.remove(device)

    def read(self, device: int, address: int, size: int) -> bytearray:
        if self.broken:
            raise CudaError("broken")
        return self.memory[address - 1000 : address - 1000 + size]

    def write(self, device: int, address: int, data: Buffer) -> None:
        if self.broken:
            raise CudaError("broken")
        self.memory[address - 1000 : address - 1000 + len(data)] = data
        self.under_way += len(data)

    def finish(self, device: int) -> None:
        self.under_way = 0


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "segment"
    path.write_bytes(bytes(number % 251 for number in range(SIZE)))
    return path


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    driver = FakeDriver()
    made = Regions(allowed=True, folder=str(tmp_path), driver=lambda: driver)
    made.register_cuda("gpu", HANDLE, 0, 16)
    return made


def refusal(call: Callable[[], object]) -> tuple[Code, str]:
    with pytest.raises(InferError) as caught:
        call()
    return caught.value.code, caught.value.message


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


HOSTILE = [
    "", "nope", "/../x", "../segment", "..", "/..", ".", "/a/b", "sub/x", "//sub/x", "/sub", "link", "/loop", "pipe",
    "a\0b", "x" * 256, "/etc/passwd", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_leads_to_one_segment_and_nowhere_else(regions: Regions, segment: Path, tmp_path: Path, key: str) -> None:
    """Folders, links, pipes, parents and names that no segment has are all the same to the client."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"12345678")
    (tmp_path / "link").symlink_to(segment)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    asked = refusal(lambda: regions.register_system("r", key, 0, 8))
    assert asked == (Code.INTERNAL, f"Unable to open shared memory region: '{key}'")
    assert regions.system("") == []


@pytest.mark.parametrize("key", ["/", "//", "///"])
def test_a_key_of_slashes_is_none(regions: Regions, key: str) -> None:
    text = f"cannot register shared memory region 'r' - invalid shm key '{key}'"
    assert refusal(lambda: regions.register_system("r", key, 0, 8)) == (Code.INVALID_ARG, text)


@pytest.mark.parametrize("key", ["triton_python_backend_shm_region_1", "//triton_python_backend_shm_region_"])
def test_reserved_keys_are_refused(regions: Regions, key: str) -> None:
    asked = refusal(lambda: regions.register_system("r", key, 0, 8))
    text = (
        f"cannot register shared memory region 'r' with key '{key}' as the key contains the reserved prefix "
        "'triton_python_backend_shm_region_'"
    )
    assert asked == (Code.INVALID_ARG, text)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, SIZE + 1), (1, SIZE), (SIZE, 1), (2**63, 1), (0, 2**64 - 1), (2, 2**64 - 1), (2**64 - 1, 1)],
)
def test_a_region_lies_within_its_segment(regions: Regions, segment: Path, offset: int, size: int) -> None:
    text = "failed to register shared memory region 'r': invalid args"
    assert refusal(lambda: regions.register_system("r", "segment", offset, size)) == (Code.INVALID_ARG, text)


def test_a_region_has_at_least_one_byte(regions: Regions, segment: Path) -> None:
    code, text = refusal(lambda: regions.register_system("r", "segment", 0, 0))
    assert (code, text.partition(": ")[2][:32]) == (Code.INVALID_ARG, "unable to process address spaceI")


def test_names_are_one_map_for_both_kinds(regions: Regions, segment: Path) -> None:
    """A name that one kind has, the other cannot have, and each kind says of the other's what it is."""
    regions.register_system("r", "/segment", 0, 8)
    exists = (Code.ALREADY_EXISTS, "shared memory region 'r' already in manager")
    assert refusal(lambda: regions.register_system("r", "nope", 0, 8)) == exists
    assert refusal(lambda: regions.register_cuda("r", HANDLE, 0, 8)) == exists
    assert refusal(lambda: regions.cuda("r")) == (
        Code.NOT_FOUND, "The region named 'r' is registered as system shared memory, not CUDA shared memory",
    )  # fmt: skip
    assert refusal(lambda: regions.system("gpu")) == (
        Code.NOT_FOUND, "The region named 'gpu' is registered as CUDA shared memory, not system shared memory",
    )  # fmt: skip
    assert refusal(lambda: regions.system("x")) == (
        Code.NOT_FOUND, "Unable to find system shared memory region: 'x'",
    )  # fmt: skip
    assert refusal(lambda: regions.cuda("x")) == (Code.NOT_FOUND, "Unable to find cuda shared memory region: 'x'")


def test_each_kind_unregisters_its_own(regions: Regions, segment: Path) -> None:
    """By name or all; another kind's region and one that is not there are left alone."""
    for name in ("b", "a", "c"):
        regions.register_system(name, "segment", 1, 8)
    assert [(each.name, each.key, each.offset, each.byte_size) for each in regions.system("")] == [
        (name, "segment", 1, 8) for name in "abc"
    ]
    regions.unregister_cuda("a")
    regions.unregister_system("gpu")
    regions.unregister_system("none")
    regions.unregister_system("b")
    assert [each.name for each in regions.system("")] == ["a", "c"]
    regions.unregister_system("")
    assert [each.name for each in regions.system("")] == []
    assert [each.name for each in regions.cuda("")] == ["gpu"]
    regions.unregister_cuda("")
    assert regions.cuda("") == []


def test_what_is_off_cannot_be_registered(tmp_path: Path, segment: Path) -> None:
    """Without the flag nothing is registered or unregistered; the status can be asked for."""
    regions = Regions(allowed=False, folder=str(tmp_path))
    off = (
        Code.UNSUPPORTED,
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
    )
    assert refusal(lambda: regions.register_system("r", "segment", 0, 8)) == off
    assert refusal(lambda: regions.register_cuda("r", HANDLE, 0, 8)) == off
    assert refusal(lambda: regions.unregister_system("")) == off
    assert refusal(lambda: regions.unregister_cuda("")) == off
    assert regions.system("") == []
    assert refusal(lambda: regions.read("r", 0, 8)) == (
        Code.NOT_FOUND, "Unable to find shared memory region: 'r'",
    )  # fmt: skip


def test_large_tensors_are_views_and_small_ones_copies(regions: Regions, segment: Path) -> None:
    """A view shows what the client writes later; a copy, and what is asked for as one, does not."""
    regions.register_system("r", "segment", 100, SIZE - 100)
    large = regions.read("r", 0, SIZE - 100)
    copied = regions.read("r", 0, SIZE - 100, copy=True)
    small = regions.read("r", 0, 8)
    with segment.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 8)
    assert isinstance(large, memoryview)
    assert large.readonly
    assert bytes(large[:8]) == b"\xff" * 8
    assert bytes(large[8:]) == bytes(copied)[8:]
    assert bytes(small) == bytes(copied)[:8] == bytes(range(100, 108))


@pytest.mark.slow
def test_a_request_keeps_what_is_unregistered(regions: Regions, segment: Path) -> None:
    """Views and windows live on after unregistering; a new region of the name is another one."""
    regions.register_system("r", "segment", 0, SIZE)
    view, window = regions.read("r", 0, SIZE), regions.window("r", 8, 4)
    regions.unregister_system("r")
    gc.collect()
    window.write(b"abcd")
    assert bytes(view[8:12]) == b"abcd"
    regions.register_system("r", "segment", 0, SIZE)
    assert bytes(regions.read("r", 8, 4)) == b"abcd"


@pytest.mark.slow
def test_files_are_closed_when_nobody_uses_them(regions: Regions, segment: Path) -> None:
    # What other tests have left for the collector holds descriptors.
    gc.collect()
    before = open_files()
    for number in range(20):
        regions.register_system(str(number), "segment", 0, SIZE)
        regions.read(str(number), 0, SIZE)
    assert open_files() > before
    regions.unregister_system("")
    gc.collect()
    assert open_files() <= before


def test_a_segment_that_has_shrunk_is_an_error(regions: Regions, segment: Path) -> None:
    """The server does not look at memory that is gone, neither for copies nor for views."""
    regions.register_system("r", "segment", 0, SIZE)
    regions.read("r", 0, SIZE)
    os.truncate(segment, 100)
    for size, copy in ((SIZE, False), (SIZE, True), (200, False)):
        code, text = refusal(lambda size=size, copy=copy: regions.read("r", 0, size, copy=copy))  # type: ignore[misc]
        assert (code, text[:36]) == (Code.INTERNAL, "shared memory region 'r' is shorter ")
    regions.window("r", 0, 200).write(b"x" * 200)
    assert segment.stat().st_size == 200


def test_there_is_an_end_to_the_number_of_regions(regions: Regions, segment: Path) -> None:
    """Files that regions hold open are missing elsewhere."""
    regions._most = 3
    regions.register_system("a", "segment", 0, 8)
    regions.register_system("b", "segment", 0, 8)
    assert refusal(lambda: regions.register_system("c", "segment", 0, 8))[0] is Code.UNAVAILABLE
    regions.unregister_system("a")
    regions.register_system("c", "segment", 0, 8)


@pytest.mark.slow
def test_gpu_memory_is_copied(regions: Regions) -> None:
    """Read and written through the driver, by offset; complete when it is written, closed when nobody uses it."""
    driver = regions._driver()
    assert isinstance(driver, FakeDriver)
    assert bytes(regions.read("gpu", 4, 3)) == b"\x04\x05\x06"
    window = regions.window("gpu", 12, 4)
    regions.unregister_cuda("gpu")
    window.write(b"abc")
    assert driver.memory[11:] == b"\x0babc\x0f"
    assert driver.under_way == 0
    assert driver.opened == [0]
    del window
    gc.collect()
    assert driver.opened == []


def test_gpu_memory_that_cannot_be_had(regions: Regions, tmp_path: Path) -> None:
    """No GPU, a handle that is none, a device that is none, a driver that fails."""
    without = Regions(allowed=True, folder=str(tmp_path), driver=lambda: None)
    assert refusal(lambda: without.register_cuda("r", HANDLE, 0, 8)) == (
        Code.INVALID_ARG, "failed to register CUDA shared memory region: 'r', GPUs not supported",
    )  # fmt: skip
    for handle, device, size in ((HANDLE[1:], 0, 8), (HANDLE, -1, 8), (HANDLE, 1, 8), (HANDLE, 0, 0), (b"", 2**40, 8)):
        asked = refusal(lambda h=handle, d=device, s=size: regions.register_cuda("r", h, d, s))  # type: ignore[misc]
        assert asked == (Code.INVALID_ARG, "failed to register shared memory region: invalid args")
    driver = regions._driver()
    assert isinstance(driver, FakeDriver)
    driver.broken = True
    assert refusal(lambda: regions.read("gpu", 0, 4))[0] is Code.INTERNAL
    assert refusal(lambda: regions.window("gpu", 0, 4).write(b"1234"))[0] is Code.INTERNAL
