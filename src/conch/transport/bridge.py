"""The way from any thread to the event loop: one wake-up per burst, one flush per connection per loop tick."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

_log = logging.getLogger("conch")


class Connection(Protocol):
    """Something that collects output during a tick and writes it when told to."""

    def flush(self) -> None:
        """Write everything collected, in one write. Loop thread; called once per tick in which it was dirty."""


class Bridge:
    """Shared by all transports of one event loop. Make it on the loop's thread.

    A sink asks `on_loop()`: if true it works at once, else it hands itself over with `post`. When it has given output
    to a connection, it calls `dirty(connection)`; all dirty connections are flushed once, at the end of the tick.
    """

    __slots__ = ("_dirty", "_home", "_lock", "_loop", "_posted", "_waking")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._home = threading.get_ident()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        #: True from the first post of a burst until the loop has begun to deliver it. Guarded by the lock.
        self._waking = False
        self._dirty: list[Connection] = []

    def on_loop(self) -> bool:
        return threading.get_ident() == self._home

    def post(self, call: Callable[..., object], *args: Any) -> None:
        """Have `call(*args)` run on the loop's thread, in the order of posting. Any thread; never blocks or raises."""
        self._posted.append((call, args))
        if self._waking:
            # Read without the lock: the delivery that is on its way clears the mark before it looks at the queue.
            return
        with self._lock:
            if self._waking:
                return
            self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            # The loop is closed: nobody is left to answer to.
            self._posted.clear()

    def later(self, seconds: float, call: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Have `call(*args)` run on the loop's thread after this time. Loop thread only."""
        return self._loop.call_later(seconds, call, *args)

    def soon(self, call: Callable[[], object]) -> None:
        """Have `call()` run in the loop's next round. Loop thread only."""
        self._loop.call_soon(call)

    def dirty(self, connection: Connection) -> None:
        """Have `connection.flush()` called once, after everything else of this tick. Loop thread only."""
        waiting = self._dirty
        if not waiting:
            self._loop.call_soon(self.flush)
        waiting.append(connection)

    def flush(self) -> None:
        """Flush every dirty connection now; a connection marked several times is flushed once (it is then empty)."""
        waiting, self._dirty = self._dirty, []
        for connection in waiting:
            try:
                connection.flush()
            except Exception:  # noqa: BLE001  one bad connection or call must not stop the others
                _log.exception("a connection could not be flushed")

    def _deliver(self) -> None:
        with self._lock:
            self._waking = False
        posted = self._posted
        # No more than lay here at the start: posts that come meanwhile have woken the loop themselves.
        for _ in range(len(posted)):
            call, args = posted.popleft()
            try:
                call(*args)
            except Exception:  # noqa: BLE001  one bad connection or call must not stop the others
                _log.exception("a call posted to the event loop failed")
        if self._dirty:
            self.flush()
