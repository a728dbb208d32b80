"""The worker's questions to the server: from any thread, and from any event loop without one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import mmap
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from conch.backend.python.channel import (
    ASK_HEAD,
    IN_FILE,
    INLINE,
    PACKET,
    QUESTION,
    RESULT_ENTRY,
    RESULTS,
    Readable,
    send,
)
from conch.backend.python.errors import TritonModelException

_HEAD = ASK_HEAD.size
_GONE = json.dumps({"error": [4, "The server is gone."]}).encode()


class Waiter(Protocol):
    """Whoever waits for what the server says about a number. Called by the thread that reads, which holds the lock."""

    #: What it waits for.
    number: int

    def take(
        self,
        meta: bytes,
        data: Readable,
        begin: int,
        size: int,
        last: bool,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        """`size` bytes of `data` from `begin` on are the contents; `loop` is the event loop that this happens on."""


class Once:
    """A thread that waits for one answer."""

    __slots__ = ("begin", "data", "done", "meta", "number")

    def __init__(self) -> None:
        self.number = 0
        self.done = False
        self.meta = b""
        self.data: Readable = b""
        self.begin = 0

    def take(self, meta: bytes, data: Readable, begin: int, size: int, last: bool, loop: Any) -> None:
        self.meta, self.data, self.begin, self.done = meta, data, begin, last

    def is_done(self) -> bool:
        return self.done


class Asks:
    """The asks socket. Whoever waits reads for all: no thread is woken to wake another.

    A thread that waits while another reads is told by that one; on an event loop, the loop reads.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.spin_ns = 0
        self._change = threading.Condition(threading.Lock())
        #: Some thread is in `recv`, and looks after the answers of all.
        self._reading = False
        self._gone = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Waiter] = {}
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    def number(self, waiter: Waiter) -> int:
        """A number for a question of `waiter`, which waits from now on."""
        number = waiter.number = next(self._numbers) & 0xFFFFFFFF
        self._waiting[number] = waiter
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for this any more."""
        self._waiting.pop(number, None)

    def send(self, packet: Readable, descriptor: int = -1) -> None:
        """A server that is gone is noticed by who waits for its answer. Safe wherever the garbage collector runs."""
        with contextlib.suppress(OSError):
            send(self._socket, packet, descriptor)

    def ask(self, question: dict[str, Any], contents: Sequence[Readable] = ()) -> Any:
        """One question and its answer. Raises TritonModelException with the server's words."""
        waiter = Once()
        # What is no text (lone surrogates) raises UnicodeEncodeError here.
        raw = json.dumps(question, ensure_ascii=False).encode()
        descriptor = write_file([raw, *contents]) if contents or len(raw) > INLINE else -1
        number = self.number(waiter)
        if descriptor >= 0:
            try:
                self.send(ASK_HEAD.pack(QUESTION, IN_FILE, number) + len(raw).to_bytes(8, "little"), descriptor)
            finally:
                os.close(descriptor)
        else:
            self.send(ASK_HEAD.pack(QUESTION, 0, number) + raw)
        self.wait(waiter.is_done)
        answer = json.loads(waiter.meta)
        if "error" in answer:
            raise TritonModelException(answer["error"][1])
        return answer.get("value")

    def wait(self, done: Callable[[], bool]) -> None:
        """Until `done()`; meanwhile this thread may read for others too."""
        change = self._change
        with change:
            while not done():
                if self._reading:
                    change.wait()
                    continue
                if self._gone:
                    self._give_up(None)
                    continue
                self._reading = True
                change.release()
                try:
                    packet, descriptor = self._await()
                finally:
                    change.acquire()
                    self._reading = False
                    # Whoever waits looks when this thread lets go: for its answer, or, where this thread is done or
                    # the handler of a signal has raised here, to read in its place.
                    change.notify_all()
                self._heed(packet, descriptor, None)

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let `loop`, which runs in this thread, read while it has nothing else to do."""
        if loop not in self._loops:
            self._loops.add(loop)
            loop.add_reader(self._socket.fileno(), self._readable, loop)

    def _readable(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._change:
            # A thread that reads has this packet too.
            if self._reading:
                return
            try:
                packet, descriptor = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._heed(packet, descriptor, loop)
            if self._gone:
                loop.remove_reader(self._socket.fileno())
            self._change.notify_all()

    def _await(self) -> tuple[bytes, int]:
        """What comes next; for a moment (`spin_ns`) without going to sleep."""
        until = time.monotonic_ns() + self.spin_ns
        while time.monotonic_ns() < until:
            try:
                return self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                # Whoever can run on this processor goes first.
                os.sched_yield()
        return self._receive(0)

    def _receive(self, flags: int) -> tuple[bytes, int]:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._socket, PACKET, 1, flags)
        except BlockingIOError:
            raise
        except OSError:
            return b"", -1
        return packet, descriptors[0] if descriptors else -1

    def _heed(self, packet: bytes, descriptor: int, loop: asyncio.AbstractEventLoop | None) -> None:
        if not packet:
            self._give_up(loop)
            return
        kind, head_flags, number = ASK_HEAD.unpack_from(packet)
        if kind != RESULTS:
            waiter = self._waiting.pop(number, None)
            if waiter is not None:
                waiter.take(packet[_HEAD:], b"", 0, 0, True, loop)
            return
        contents: Readable = packet
        trouble = b""
        if head_flags & IN_FILE:
            try:
                contents = _mapped(descriptor)
            except (OSError, ValueError) as error:
                trouble = _unread(error)
        position, begin = _HEAD, 0
        while position < len(packet):
            number, flags, meta_size, size = RESULT_ENTRY.unpack_from(packet, position)
            position += RESULT_ENTRY.size
            meta = packet[position : position + meta_size]
            position += meta_size
            if not head_flags & IN_FILE:
                begin = position
                position += size
            last = flags != 0
            waiter = self._waiting.pop(number, None) if last else self._waiting.get(number)
            if waiter is not None:
                waiter.take(trouble or meta, contents, begin, size, last, loop)

    def _give_up(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """The server is gone: whoever waits is told."""
        self._gone = True
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.take(_GONE, b"", 0, 0, True, loop)


def write_file(parts: Sequence[Readable]) -> int:
    """The descriptor of an anonymous file that holds these parts and cannot shrink: safe to be mapped by the server."""
    descriptor = os.memfd_create("conch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", buffering=0, closefd=False) as file:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _unread(error: Exception) -> bytes:
    """Instead of a response whose contents cannot be reached."""
    return json.dumps({"error": [1, f"a large response of another model cannot be read: {error}"]}).encode()


def _mapped(descriptor: int) -> Readable:
    if descriptor < 0:
        # The kernel had no number left for it.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    try:
        return memoryview(mmap.mmap(descriptor, 0))
    finally:
        os.close(descriptor)
