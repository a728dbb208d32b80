"""Pinned memory, which GPUs copy from and to by themselves: one piece for the server, lent in parts."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from conch.memory.cuda import CudaError, find_driver
from conch.memory.spans import Spans

_LOG: Final = logging.getLogger("conch")

#: Bytes on the host, flat and of type uint8; free again when nothing refers to them any more.
Staging = np.ndarray[Any, np.dtype[np.uint8]]
#: Gives so many bytes to write to.
Take = Callable[[int], Staging]


class HostMemory(Protocol):
    """What a pool needs of CUDA. Raises CudaError."""

    def host_alloc(self, device: int, size: int) -> int: ...
    def host_free(self, device: int, address: int) -> None: ...


def pageable(size: int) -> Staging:
    """Ordinary memory, for who wants no other."""
    return np.empty(size, np.uint8)


class PinnedPool:
    """`byte_size` bytes, made by the first `open`, that is with the first model on a GPU; 0 for none.

    They go back to the system when the pool and all that was lent of it are gone.
    """

    def __init__(self, byte_size: int, driver: Callable[[], HostMemory | None] = find_driver) -> None:
        self._byte_size = byte_size
        self._driver = driver
        self._lock = threading.Lock()
        self._opened = False
        self._piece: _Piece | None = None

    def open(self, device: int) -> None:
        """An instance is made on GPU `device`. Any thread, any number of times; the log says why none can be had."""
        with self._lock:
            if self._opened:
                return
            self._opened = True
            driver = self._driver() if self._byte_size else None
            if driver is None:
                return
            try:
                self._piece = _Piece(driver, device, self._byte_size)
            except CudaError as error:
                _LOG.warning(
                    "there are no %d bytes of pinned memory, tensors are copied to and from GPUs through ordinary "
                    "memory: %s (see --pinned-memory-pool-byte-size)",
                    self._byte_size, error,
                )  # fmt: skip

    def take(self, size: int) -> Staging:
        """`size` bytes with any content: pinned where there is room, else ordinary memory. Any thread."""
        piece = self._piece
        if piece is None or not size:
            return pageable(size)
        with self._lock:
            lent = piece.lend(size)
        return pageable(size) if lent is None else lent


class _Piece:
    """The pinned memory itself."""

    def __init__(self, driver: HostMemory, device: int, size: int) -> None:
        address = driver.host_alloc(device, size)
        self._memory = memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
        self._spans = Spans(size)
        #: What nobody refers to any more; the interpreter may find that out at any moment, even within `lend`.
        self._returned: deque[int] = deque()
        # Not at the end of the process: threads may still copy, and the system takes it back then.
        weakref.finalize(self, driver.host_free, device, address).atexit = False

    def lend(self, size: int) -> Staging | None:
        while self._returned:
            self._spans.give_back(self._returned.popleft())
        begin = self._spans.take(size)
        if begin is None:
            return None
        lent = np.frombuffer(self._memory, np.uint8, size, begin)
        weakref.finalize(lent, self._return, begin).atexit = False
        return lent

    def _return(self, begin: int) -> None:
        self._returned.append(begin)
