"""The worker's way out for the responses of decoupled models.

A response goes at once when the server has read all that went before; while it has not, responses wait for each other
and travel together. A request whose responses are not taken holds its sender up, and no other.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from conch.backend.python.channel import (
    CALL_HEAD,
    CANCELLED,
    INLINE,
    PACKET,
    READ_ENTRY,
    READ_HEAD,
    RESPONSE_COST,
    RESPONSES,
    TOLD,
    WINDOW,
    send,
)

#: So many responses wait for each other at most.
BURST = 64


class _Item:
    """One response: its line of the meta, and its contents, or a file that holds both."""

    __slots__ = ("descriptor", "line", "parts", "size")

    def __init__(self, line: bytes, parts: Sequence[Any], size: int) -> None:
        self.line = line
        self.parts = parts
        self.size = size
        self.descriptor = -1
        if len(line) + size > INLINE:
            self.descriptor = _file(line, parts)
            self.parts = ()


class Outbox:
    """Used by any thread. A server that is gone takes everything."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Reentrant: a sender may be collected, and speak for the last time, wherever memory is allocated.
        self._change = threading.Condition(threading.RLock())
        self._items: deque[_Item] = deque()
        #: Bytes in `_items` that will travel in packets.
        self._size = 0
        #: Some thread is sending, and will look at `_items` again before it stops.
        self._sending = False
        #: Packets that the server has not read.
        self._unread = 0
        #: Bytes of each request's responses that the server has not taken.
        self._under_way: dict[int, int] = {}
        self._asking = threading.Lock()
        self._told: bool | None = None
        self._gone = False
        #: What the worker remembers of the layouts of responses, see `stream`.
        self.known: dict[Any, str] = {}
        threading.Thread(target=self._listen, name="responses", daemon=True).start()

    def put(self, key: int, line: bytes, parts: Sequence[Any], size: int, last: bool) -> None:
        """One response of the request `key`. Blocks while its client takes none, unless it is the last one.

        Raises OSError when there is no memory for it.
        """
        item = _Item(line, parts, size)
        under_way = self._under_way
        with self._change:
            if last:
                under_way.pop(key, None)
            else:
                while under_way.get(key, 0) >= WINDOW and not self._gone:
                    self._change.wait()
                under_way[key] = under_way.get(key, 0) + size + RESPONSE_COST
            self._items.append(item)
            self._size += len(line) + size
            if self._sending or (self._unread and self._size < INLINE and len(self._items) < BURST):
                return
            self._sending = True
        self._send()

    def flush(self) -> None:
        """Everything that was put before goes now."""
        with self._change:
            while self._sending and not self._gone:
                self._change.wait()
            if not self._items:
                return
            self._sending = True
        self._send()

    def cancelled(self, sequence: int, index: int) -> bool:
        """What the server says of a request."""
        with self._asking:
            self._told = None
            try:
                send(self._socket, CALL_HEAD.pack(CANCELLED, 0, sequence, index, 0, 0))
            except OSError:
                return True
            with self._change:
                while self._told is None and not self._gone:
                    self._change.wait()
                return self._told is not False

    def _send(self) -> None:
        """Until nothing is left. Only one thread at a time is here, the one that has set `_sending`."""
        while True:
            with self._change:
                items = self._next()
                if not items:
                    self._sending = False
                    self._change.notify_all()
                    return
                self._unread += 1
            try:
                self._packet(items)
            except OSError:
                self._lose()

    def _next(self) -> list[_Item]:
        """What goes into the next packet: as many responses as fit, or a single large one."""
        items: list[_Item] = []
        size = 0
        while self._items:
            item = self._items[0]
            mine = len(item.line) + item.size
            if items and (item.descriptor >= 0 or size + mine > INLINE):
                break
            items.append(self._items.popleft())
            size += mine
            if item.descriptor >= 0:
                break
        self._size -= size
        return items

    def _packet(self, items: Sequence[_Item]) -> None:
        if items[0].descriptor >= 0:
            (item,) = items
            head = CALL_HEAD.pack(RESPONSES, 0, 0, 1, len(item.line) + 2, item.size)
            try:
                send(self._socket, head, item.descriptor)
            finally:
                os.close(item.descriptor)
            return
        meta = b"[" + b",".join([item.line for item in items]) + b"]"
        size = sum([item.size for item in items])
        head = CALL_HEAD.pack(RESPONSES, 0, 0, len(items), len(meta), size)
        send(self._socket, b"".join([head, meta, *[part for item in items for part in item.parts]]))

    def _listen(self) -> None:
        """In a thread of its own: what the server answers."""
        buffer = bytearray(PACKET)
        while True:
            try:
                size = self._socket.recv_into(buffer)
            except OSError:
                size = 0
            if not size:
                self._lose()
                return
            with self._change:
                if buffer[0] == TOLD:
                    self._told = buffer[1] == 1
                else:
                    self._heed(buffer, size)
                self._change.notify_all()
                if not self._items or self._sending or self._unread:
                    continue
                self._sending = True
            self._send()

    def _heed(self, buffer: bytearray, size: int) -> None:
        _, packets = READ_HEAD.unpack_from(buffer)
        self._unread -= packets
        under_way = self._under_way
        for key, taken in READ_ENTRY.iter_unpack(memoryview(buffer)[READ_HEAD.size : size]):
            if key in under_way:
                under_way[key] -= taken

    def _lose(self) -> None:
        with self._change:
            self._gone = True
            for item in self._items:
                if item.descriptor >= 0:
                    os.close(item.descriptor)
            self._items.clear()
            self._size = 0
            self._change.notify_all()


def _file(line: bytes, parts: Sequence[Any]) -> int:
    descriptor = os.memfd_create("conch", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(b"[" + line + b"]")
            file.writelines(parts)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
