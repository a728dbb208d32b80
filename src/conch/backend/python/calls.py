"""The worker's own voice: log lines, early or late answers and questions to the server, from any thread."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conch.backend.python.channel import ANSWER, AREA, CALL_HEAD, CANCELLED, INLINE, LOG, Readable, send, shortened
from conch.backend.python.errors import printable
from conch.backend.python.outbox import Outbox

if TYPE_CHECKING:
    from conch.backend.python.asks import Asks
    from conch.backend.python.bls import Caller

#: For this long an answer of the server to "is this request cancelled?" is good.
_FRESH_NS = 1_000_000
_LONGEST_LINE = INLINE // 4
#: Room in a packet for a log line as JSON, beside the name of its file.
_LINE_ROOM = INLINE - 4096
_LONGEST_NAME = 256


class Calls:
    """Speaks on the calls socket. A server that is gone is no error here: the worker is about to end too."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.RLock()
        #: Whether the server's log shows verbose messages.
        self.verbose = False
        #: The way of the responses, where the model is decoupled.
        self.outbox: Outbox | None = None

    def stream(self) -> None:
        """The model is decoupled. From now on what the server says on this socket is heard by the outbox alone."""
        self.outbox = Outbox(self._socket)

    def log(self, level: int, file: str, line: int, message: str) -> None:
        if len(message) > _LONGEST_LINE:
            message = f"{message[:_LONGEST_LINE]} ... ({len(message)} characters in all)"
        said = [printable(file[-_LONGEST_NAME:]), line, shortened(printable(message), _LINE_ROOM)]
        self._send(LOG, level, 0, 0, json.dumps(said).encode())

    def answer(self, sequence: int, index: int, entry: dict[str, Any], parts: Sequence[Readable]) -> None:
        """The answer to one request of batch `sequence`, outside of the answer to the whole batch."""
        meta = json.dumps(entry).encode()
        data = b"".join(parts)
        if len(meta) + len(data) <= INLINE:
            self._send(ANSWER, 0, sequence, index, meta, data)
            return
        descriptor = os.memfd_create("conch", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(meta)
                file.write(data)
            self._send_file(ANSWER, sequence, index, descriptor, len(meta), len(data))
        finally:
            os.close(descriptor)

    def area(self, descriptor: int) -> None:
        """From the next batch on, inputs are to be laid into this memory."""
        self._send_file(AREA, 0, 0, descriptor, 0, 0)

    def cancelled(self, sequence: int, index: int) -> bool:
        if self.outbox is not None:
            return self.outbox.cancelled(sequence, index)
        with self._lock:
            self._send(CANCELLED, 0, sequence, index, b"")
            try:
                return self._socket.recv(2)[1:] == b"\1"
            except OSError:
                return True

    def _send(self, kind: int, flags: int, sequence: int, index: int, meta: bytes, data: bytes = b"") -> None:
        head = CALL_HEAD.pack(kind, flags, sequence, index, len(meta), len(data))
        with self._lock, contextlib.suppress(OSError):
            send(self._socket, head + meta + data)

    def _send_file(self, kind: int, sequence: int, index: int, descriptor: int, meta: int, data: int) -> None:
        head = CALL_HEAD.pack(kind, 0, sequence, index, meta, data)
        with self._lock, contextlib.suppress(OSError):
            send(self._socket, head, descriptor)


class Cancellation:
    """Whether one request is cancelled, asked at most once a millisecond."""

    __slots__ = ("_asked_ns", "_known")

    def __init__(self) -> None:
        self._known = False
        self._asked_ns = 0

    def ask(self, calls: Calls, sequence: int, index: int, *, answered: bool = False) -> bool:
        """Once it is `answered` nobody waits for it either: what was known before stands."""
        if answered:
            return self._known
        now = time.monotonic_ns()
        if not self._known and now - self._asked_ns > _FRESH_NS:
            self._known = calls.cancelled(sequence, index)
            self._asked_ns = time.monotonic_ns()
        return self._known


class Runtime:
    """What a model's code can reach of its worker through `pb_utils`. One per process."""

    calls: Calls | None = None
    #: Questions to the server; None in a process that serves no model.
    asks: Asks | None = None
    caller: Caller | None = None
    model_directory = ""
    instance = ""

    def refusal(self, text: str) -> str:
        """How Triton words what its server has refused."""
        return f"Failed to process the request for model '{self.instance}', message: {text}"


runtime = Runtime()
