"""What the server says on a worker's calls socket, which may have no room for it at the moment."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from conch.backend.python.channel import BUSY

#: When to speak again to a worker that did not listen, in seconds.
_AGAIN = 0.01


class Voice:
    """Speaks to one worker. Loop thread only."""

    __slots__ = ("_again", "_loop", "_socket", "_timer", "_waiting")

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, again: Callable[[], object]) -> None:
        """`sock` must not block. `again` is called a moment after something was not taken."""
        self._socket = sock
        self._loop = loop
        self._again = again
        #: What must be said; while there is some, a timer runs.
        self._waiting: deque[bytes] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def offer(self, packet: bytes) -> bool:
        """Whether the worker has taken `packet`; one that is dying takes everything."""
        try:
            self._socket.send(packet)
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno not in BUSY:
                return True
            if self._timer is None:
                self._timer = self._loop.call_later(_AGAIN, self._ring)
            return False
        return True

    def tell(self, packet: bytes) -> None:
        """The worker gets `packet` now, or as soon as it takes something."""
        if self._waiting or not self.offer(packet):
            self._waiting.append(packet)

    def close(self) -> None:
        """The worker is gone, or spoken to by somebody else."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        while self._waiting:
            if not self.offer(self._waiting[0]):
                return
            self._waiting.popleft()
        self._again()
