"""GPUs that are not there: memory of the host that counts as theirs."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from conch.memory.cuda import CudaError
from conch.types.device import Device, OnDevice

#: DLPack's CPU as "the device": frameworks read it where it is.
HERE: Device = (1, 0)


class FakeCuda:
    """What pools and backends need of libcuda, over the host's memory; `calls` are the names of what was asked."""

    def __init__(self, *, broken: bool = False) -> None:
        self.calls: list[str] = []
        self.allocated: dict[int, Any] = {}
        self.broken = broken

    def host_alloc(self, device: int, size: int) -> int:
        if self.broken:
            raise CudaError("cuMemHostAlloc failed with CUresult 2")
        memory = (ctypes.c_char * size)()
        self.allocated[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def host_free(self, device: int, address: int) -> None:
        del self.allocated[address]

    def read(self, device: int, address: int, size: int) -> bytes:
        self.calls.append("read")
        return ctypes.string_at(address, size)

    def write(self, device: int, address: int, data: Any) -> None:
        self.calls.append("write")
        ctypes.memmove(address, bytes(data), len(data))

    def copy(self, device: int, address: int, begin: int, size: int) -> None:
        self.calls.append("copy")
        ctypes.memmove(address, begin, size)

    def finish(self, device: int) -> None:
        self.calls.append("finish")


def lying(array: np.ndarray[Any, Any], device: Device = HERE, cuda: FakeCuda | None = None) -> OnDevice:
    """`array` as a tensor on a device."""
    driver = cuda or FakeCuda()
    return OnDevice(device, array.ctypes.data, array.nbytes, array, lambda begin, size: driver.read(0, begin, size))
