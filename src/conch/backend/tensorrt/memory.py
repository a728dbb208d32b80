"""Memory that an instance's tensors pass through, on the device or the host, and pieces for outputs that stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.backend.joining import runs, stage
from conch.backend.tensorrt.library import checked
from conch.memory.pinned import Staging, Take
from conch.types.device import Device, OnDevice, Read
from conch.types.tensor import Buffer

#: Pieces that nobody uses are kept for the next outputs, so many of each size.
_MOST_SPARE: Final = 4
#: What cudaMalloc gives is aligned to so many bytes at least (CUDA programming guide, device memory accesses).
_ALIGNED: Final = 256


class Passage:
    """`capacity` bytes on the device, at an address that stays unless more is reserved. Not for more than one batch at
    a time."""

    def __init__(self, cuda: Any, capacity: int, place: Device) -> None:
        self._cuda = cuda
        self._place = place
        self._piece = 0
        self.capacity = 0
        self.address = 0
        self.reserve(capacity)

    def reserve(self, size: int, alignment: int = _ALIGNED) -> bool:
        """Have room for `size` bytes; whether the address is another one now. Nothing is to be in it."""
        if 0 < self.capacity >= size and self.address % max(1, alignment) == 0:
            return False
        self.close()
        size = max(1, size)
        more = alignment if alignment > _ALIGNED else 0
        self._piece = int(checked(self._cuda.cudaMalloc(size + more)))
        self.capacity = size
        self.address = self._piece + (-self._piece % alignment if more else 0)
        return True

    def send(self, parts: Sequence[Buffer], stream: Any, take: Take) -> list[Staging]:
        """Begin to copy `parts`, one after another, to the device; what is returned is needed until that is done."""
        assert sum([len(each) for each in parts]) <= self.capacity
        kinds = self._cuda.cudaMemcpyKind
        staged, end = [], self.address
        for each in runs(parts, self._place):
            if isinstance(each, OnDevice):
                begin, size, kind = each.address, each.size, kinds.cudaMemcpyDeviceToDevice
            else:
                staging = stage(each, take)
                staged.append(staging)
                begin, size, kind = staging.ctypes.data, staging.nbytes, kinds.cudaMemcpyHostToDevice
            checked(self._cuda.cudaMemcpyAsync(end, begin, size, kind, stream))
            end += size
        return staged

    def fetch(self, size: int, stream: Any, take: Take) -> Staging:
        """Begin to copy the first `size` bytes to the host."""
        assert size <= self.capacity
        staging = take(size)
        if size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            checked(self._cuda.cudaMemcpyAsync(staging.ctypes.data, self.address, size, kind, stream))
        return staging

    def leave(self, size: int, stream: Any, shelf: Shelf, read: Read) -> OnDevice:
        """Begin to copy the first `size` bytes to a piece of `shelf`, which others have as long as they want."""
        assert size <= self.capacity
        piece = shelf.take()
        if size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            checked(self._cuda.cudaMemcpyAsync(piece.address, self.address, size, kind, stream))
        return OnDevice(self._place, piece.address, size, piece, read)

    def close(self) -> None:
        if self._piece:
            self._cuda.cudaFree(self._piece)
        self._piece = self.address = self.capacity = 0


class Hosted:
    """`capacity` bytes on the host at an address that stays, which TensorRT reads and writes in the calls themselves.

    It has the methods of `Passage`.
    """

    def __init__(self, capacity: int) -> None:
        self._memory = np.zeros(max(1, capacity), np.uint8)
        self.address = self._memory.ctypes.data

    def send(self, parts: Sequence[Buffer], stream: Any, take: Take) -> list[Staging]:
        end = 0
        for each in parts:
            begin, end = end, end + len(each)
            self._memory[begin:end] = np.frombuffer(bytes(each), np.uint8)
        return []

    def fetch(self, size: int, stream: Any, take: Take) -> Staging:
        return self._memory[:size].copy()

    def close(self) -> None:
        """It goes with the last who refers to it."""


class Shelf:
    """Pieces of `capacity` bytes on the device that is current when one is taken; each comes back by itself."""

    def __init__(self, cuda: Any, capacity: int) -> None:
        self._cuda = cuda
        self.capacity = capacity
        #: No lock: the interpreter may give a piece back at any moment.
        self._spare: deque[int] = deque()
        self._closed = False

    def take(self) -> Piece:
        # Not when they come back: that may be while a graph is recorded, where nothing must be freed.
        self._free_beyond(_MOST_SPARE)
        try:
            address = self._spare.pop()
        except IndexError:
            address = int(checked(self._cuda.cudaMalloc(self.capacity)))
        return Piece(self, address)

    def put_back(self, address: int) -> None:
        self._spare.append(address)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Pieces that somebody still has are freed when they come back."""
        self._closed = True
        self._free_beyond(0)

    def _free_beyond(self, most: int) -> None:
        while len(self._spare) > most:
            try:
                address = self._spare.pop()
            except IndexError:
                return
            self._cuda.cudaFree(address)


class Piece:
    """Memory on the device, given back when nothing refers to it any more."""

    __slots__ = ("_shelf", "address")

    def __init__(self, shelf: Shelf, address: int) -> None:
        self._shelf = shelf
        self.address = address

    def __del__(self) -> None:
        self._shelf.put_back(self.address)
