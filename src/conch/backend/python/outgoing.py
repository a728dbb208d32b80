"""What goes to a worker through its asks socket: packets wait until the socket takes them, results travel together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections import deque

from conch.backend.python import channel
from conch.backend.python.channel import ASK_HEAD, INLINE

_RESULTS = ASK_HEAD.pack(channel.RESULTS, 0, 0)
_RESULTS_IN_FILE = ASK_HEAD.pack(channel.RESULTS, channel.IN_FILE, 0)
#: When to send again what the kernel has not taken, in seconds.
_AGAIN = 0.01


class Outgoing:
    """Any thread, unless said otherwise. What comes after `close` goes nowhere, and its files are closed."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` must not block; it is not closed here."""
        self._socket = sock
        self._loop: asyncio.AbstractEventLoop | None = None
        #: The loop writes what the socket had no room for; its thread is `_home`.
        self._attached = False
        self._home = 0
        self._lock = threading.Lock()
        #: Packets that the worker's socket had no room for, with the descriptors that go along.
        self._unsent: deque[tuple[bytes, int]] = deque()
        #: Results that travel together at the end of the loop's tick, and a file each of large ones.
        self._results: list[tuple[bytes, int]] = []
        self._writing = False
        self._closed = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop, which sends from now on what has to wait."""
        self._loop = loop
        self._home = threading.get_ident()
        self._attached = True

    def detach(self) -> None:
        """On the loop, which does so no longer: somebody has to call `write` until nothing is left."""
        if self._loop is not None and self._attached:
            self._attached = False
            self._loop.remove_writer(self._socket.fileno())
            self._writing = False

    def close(self) -> bool:
        """Whether it was open. What has not been sent is thrown away."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            files = [each for _, each in (*self._unsent, *self._results) if each >= 0]
            self._unsent.clear()
            self._results.clear()
        for descriptor in files:
            os.close(descriptor)
        return True

    def send(self, packet: bytes) -> None:
        """A packet of its own."""
        with self._lock:
            if not self._closed:
                self._unsent.append((packet, -1))
        self.write()

    def add(self, entry: bytes) -> None:
        """One response, for the next `flush`."""
        with self._lock:
            if not self._closed:
                self._results.append((entry, -1))

    def result(self, entry: bytes, descriptor: int, alone: bool) -> None:
        """One response. All of a loop's tick travel together; one that is `alone` need not wait. Any thread."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._results.append((entry, descriptor))
            first = len(self._results) == 1
        if closed:
            if descriptor >= 0:
                os.close(descriptor)
            return
        loop = self._loop
        if not first or loop is None:
            return
        if threading.get_ident() == self._home:
            if alone:
                self.flush()
            else:
                loop.call_soon(self.flush)
        else:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.flush)

    def flush(self) -> None:
        with self._lock:
            results, self._results = self._results, []
            parts: list[bytes] = [_RESULTS]
            size = 0
            for entry, descriptor in results:
                if len(parts) > 1 and (descriptor >= 0 or size + len(entry) > INLINE):
                    self._unsent.append((b"".join(parts), -1))
                    parts, size = [_RESULTS], 0
                if descriptor >= 0:
                    self._unsent.append((_RESULTS_IN_FILE + entry, descriptor))
                else:
                    parts.append(entry)
                    size += len(entry)
            if len(parts) > 1:
                self._unsent.append((b"".join(parts), -1))
        self.write()

    def write(self) -> None:
        """Send what the worker takes now; the rest when it can."""
        busy = False
        with self._lock:
            unsent = self._unsent
            while unsent:
                packet, descriptor = unsent[0]
                try:
                    if descriptor < 0:
                        self._socket.send(packet)
                    else:
                        socket.send_fds(self._socket, [packet], [descriptor])
                except BlockingIOError:
                    break
                except OSError as error:
                    # Of anything else the worker is dying.
                    busy = error.errno in channel.BUSY
                    if busy:
                        break
                unsent.popleft()
                if descriptor >= 0:
                    os.close(descriptor)
            if self._loop is None or not self._attached or bool(unsent) == self._writing:
                return
        with contextlib.suppress(RuntimeError):
            if threading.get_ident() == self._home:
                self._watch(busy=busy)
            else:
                self._loop.call_soon_threadsafe(self._watch, busy)

    def _watch(self, busy: bool = False) -> None:
        """On the loop: wait for room exactly as long as something is unsent; if the kernel is `busy`, for a moment.

        Under the lock: a thread that finds no room while we still listen for some relies on us to go on listening.
        """
        with self._lock:
            loop, wanted = self._loop, bool(self._unsent)
            if loop is None or self._closed or not self._attached or wanted == self._writing:
                return
            if busy and wanted:
                loop.call_later(_AGAIN, self.write)
                return
            if wanted:
                loop.add_writer(self._socket.fileno(), self.write)
            else:
                loop.remove_writer(self._socket.fileno())
            self._writing = wanted
