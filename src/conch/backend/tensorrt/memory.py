"""Memory that a batch passes through: pinned on the host, and on the device; allocated once, for the largest batch."""

from __future__ import annotations

import ctypes
from typing import Any

from conch.backend.tensorrt.library import checked
from conch.types.tensor import Buffer


class Passage:
    """`capacity` bytes on both sides. Not for more than one batch at a time."""

    def __init__(self, cuda: Any, capacity: int) -> None:
        self._cuda = cuda
        self.capacity = max(1, capacity)
        self._host = int(checked(cuda.cudaHostAlloc(self.capacity, 0)))
        self.device = 0
        try:
            self.device = int(checked(cuda.cudaMalloc(self.capacity)))
        except BaseException:
            self.close()
            raise

    def send(self, data: Buffer, stream: Any) -> None:
        """Begin to copy `data` to the device."""
        size = len(data)
        assert size <= self.capacity
        source = (ctypes.c_char * size).from_address(self._host)
        memoryview(source).cast("B")[:] = memoryview(data).cast("B")
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._cuda.cudaMemcpyAsync(self.device, self._host, size, kind, stream))

    def fetch(self, size: int, stream: Any) -> None:
        """Begin to copy the first `size` bytes to the host."""
        assert size <= self.capacity
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(self._cuda.cudaMemcpyAsync(self._host, self.device, size, kind, stream))

    def taken(self, size: int) -> bytes:
        """What was fetched, once the stream is done with it; a copy, because the next batch comes the same way."""
        return ctypes.string_at(self._host, size)

    def close(self) -> None:
        if self.device:
            self._cuda.cudaFree(self.device)
        if self._host:
            self._cuda.cudaFreeHost(self._host)
        self.device = self._host = 0
