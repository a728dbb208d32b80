"""The server's end of a worker's asks socket: the model calls other models, has them loaded, and keeps metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from conch.backend.api import Models
from conch.backend.python import channel
from conch.backend.python.calling import Calling
from conch.backend.python.channel import ASK_HEAD, CALL_ENTRY, INLINE, PACKET
from conch.backend.python.keeping import Keeping, Question
from conch.observe.custom import Families
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from conch.types.tensor import Buffer

_LOG = logging.getLogger("conch.model")
_CODES = tuple(Code)
_RESULTS = ASK_HEAD.pack(channel.RESULTS, 0, 0)
_encode = msgspec.json.Encoder().encode


_decode_question = msgspec.json.Decoder(Question).decode


class Door:
    """Serves one worker. One thread at a time reads (`heed`); answers come from any thread.

    Until `open`, while the model is being loaded, whoever starts the worker reads; from then on it is the event loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        models: Models | None,
        families: Families | None,
        instance: str,
        spin_ns: int = 0,
    ) -> None:
        """`sock` must not block. `spin_ns`: see `Calling`."""
        self._spin_ns = spin_ns
        self._socket = sock
        self._models = models
        self._instance = instance
        self._keeping = Keeping(families or Families())
        self._calling: Calling | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        #: The loop listens; its thread is `_home`.
        self._attached = False
        self._home = 0
        self._lock = threading.Lock()
        #: Packets that the worker's socket had no room for, with the descriptors that go along.
        self._unsent: deque[tuple[bytes, int]] = deque()
        #: Results that travel together at the end of the loop's tick, and a file each of large ones.
        self._results: list[tuple[bytes, int]] = []
        self._writing = False
        self._closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def open(self, loop: asyncio.AbstractEventLoop, parents: Callable[[int], Sequence[InferRequest]]) -> None:
        """On the loop. `parents` gives the open requests of a batch, by its sequence."""
        self._loop = loop
        self._home = threading.get_ident()
        if self._models is not None:
            self._calling = Calling(self._models, loop, parents, self._result, self._spin_ns)
        self._attached = True
        loop.add_reader(self.fileno(), self.heed, 64)

    def detach(self) -> None:
        """On the loop, which listens no longer."""
        if self._loop is not None and self._attached:
            self._attached = False
            self._loop.remove_reader(self.fileno())
            self._loop.remove_writer(self.fileno())
            self._writing = False

    def close(self) -> None:
        """The worker is gone: what it called is not wanted any more, its metrics go. Any thread; again does no harm."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            files = [descriptor for _, descriptor in (*self._unsent, *self._results) if descriptor >= 0]
            self._unsent.clear()
            self._results.clear()
        for descriptor in files:
            os.close(descriptor)
        self._keeping.close()
        calling = self._calling
        if calling is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(calling.withdraw_all)
        self._socket.close()

    def heed(self, most: int = sys.maxsize) -> None:
        """Deal with what waits in the socket, no more than `most` packets."""
        for _ in range(most):
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._socket, PACKET, 1)
            except (BlockingIOError, OSError):
                break
            if not packet:
                if self._loop is not None and self._attached:
                    self._loop.remove_reader(self.fileno())
                break
            try:
                self._packet(packet, descriptors[0] if descriptors else -1)
            except Exception:  # noqa: BLE001  the model has a say in what is decoded here
                _LOG.exception("a message of model instance '%s' cannot be read", self._instance)
        if not self._attached and self._unsent:
            self._write()

    def _packet(self, packet: bytes, descriptor: int) -> None:
        kind, flags, number = ASK_HEAD.unpack_from(packet)
        data: Buffer = packet
        begin = ASK_HEAD.size
        if descriptor >= 0:
            data = _contents(descriptor)
        if kind == channel.CALLS and self._calling is not None and self._attached:
            self._calls(packet, data, apart=descriptor >= 0)
        elif kind == channel.METRIC:
            (value,) = channel.METRIC_VALUE.unpack_from(packet, begin)
            self._keeping.change(flags, number, value)
        elif kind == channel.QUESTION:
            size = int.from_bytes(packet[begin : begin + 8], "little") if descriptor >= 0 else len(packet)
            raw = memoryview(data)[0 if descriptor >= 0 else begin : size]
            self._question(number, _decode_question(raw), memoryview(data)[size:])
        elif kind == channel.QUIT and self._calling is not None:
            self._calling.quit(number, forget=flags == channel.FORGET)
        elif kind == channel.TAKEN and self._calling is not None:
            (size,) = channel.TAKEN_BYTES.unpack_from(packet, begin)
            self._calling.taken(number, size)

    def _calls(self, packet: bytes, data: Buffer, *, apart: bool) -> None:
        assert self._calling is not None
        position, end = ASK_HEAD.size, len(packet)
        while position < end:
            number, form, sequence, meta_size, size = CALL_ENTRY.unpack_from(packet, position)
            position += CALL_ENTRY.size
            meta = packet[position : position + meta_size]
            position += meta_size
            self._calling.call(number, form, sequence, meta, data, 0 if apart else position, apart=apart)
            if not apart:
                position += size

    # ---- questions

    def _question(self, number: int, question: Question, contents: memoryview) -> None:
        try:
            if question.ask in {"load", "unload"}:
                self._change(question, contents).add_done_callback(lambda done: self._done(number, done))
                return
            value = self._ready(question) if question.ask == "ready" else self._keeping.answer(question)
        except InferError as error:
            self._reply(number, {"error": (_CODES.index(error.code), error.message)})
        else:
            self._reply(number, {"value": value})

    def _ready(self, question: Question) -> bool:
        if self._models is None:
            return False
        try:
            return self._models.ready(question.name, question.version)
        except InferError:
            return False

    def _change(self, question: Question, contents: memoryview) -> Future[None]:
        models = self._models
        if models is None:
            raise InferError(Code.UNAVAILABLE, "no other models are served here")
        if question.ask == "unload":
            return models.unload(question.name, question.dependents)
        parameters: dict[str, str | bytes] = {"config": question.config} if question.config else {}
        for path, size in question.files:
            parameters[path] = bytes(contents[:size])
            contents = contents[size:]
        return models.load(question.name, parameters)

    def _done(self, number: int, done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            self._reply(number, {"value": None})
        elif isinstance(error, InferError):
            self._reply(number, {"error": (_CODES.index(error.code), error.message)})
        else:
            self._reply(number, {"error": (_CODES.index(Code.INTERNAL), repr(error))})

    def _reply(self, number: int, answer: dict[str, Any]) -> None:
        with self._lock:
            if not self._closed:
                self._unsent.append((ASK_HEAD.pack(channel.REPLY, 0, number) + _encode(answer), -1))
        self._write()

    # ---- what goes to the worker

    def _result(self, entry: bytes, descriptor: int, alone: bool) -> None:
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
                self._flush()
            else:
                loop.call_soon(self._flush)
        else:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            results, self._results = self._results, []
            parts: list[bytes] = [_RESULTS]
            size = 0
            for entry, descriptor in results:
                if len(parts) > 1 and (descriptor >= 0 or size + len(entry) > INLINE):
                    self._unsent.append((b"".join(parts), -1))
                    parts, size = [_RESULTS], 0
                if descriptor >= 0:
                    self._unsent.append((_RESULTS + entry, descriptor))
                else:
                    parts.append(entry)
                    size += len(entry)
            if len(parts) > 1:
                self._unsent.append((b"".join(parts), -1))
        self._write()

    def _write(self) -> None:
        """Send what the worker takes now; the rest when it can."""
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
                except OSError:
                    """The worker is dying."""
                unsent.popleft()
                if descriptor >= 0:
                    os.close(descriptor)
            wanted = bool(unsent) and not self._closed
            if self._loop is None or not self._attached or wanted == self._writing:
                return
        with contextlib.suppress(RuntimeError):
            if threading.get_ident() == self._home:
                self._watch()
            else:
                self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        """On the loop: wait for room exactly as long as something is unsent."""
        loop = self._loop
        if loop is None or self._closed or not self._attached:
            return
        wanted = bool(self._unsent)
        if wanted and not self._writing:
            loop.add_writer(self.fileno(), self._write)
        elif not wanted and self._writing:
            loop.remove_writer(self.fileno())
        self._writing = wanted


def _contents(descriptor: int) -> Buffer:
    """What lies in the file: a view of it, if the worker cannot make it shorter any more."""
    import fcntl  # noqa: PLC0415  only where there is much to say

    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        file.seek(0)
        return file.read()
