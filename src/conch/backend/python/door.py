"""The server's end of a worker's asks socket: the model calls other models, has them loaded, and keeps metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import mmap
import os
import socket
import sys
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import Any

import msgspec

from conch.backend.api import Models
from conch.backend.python import channel
from conch.backend.python.calling import Calling, Parents, refusal
from conch.backend.python.channel import ASK_HEAD, CALL_ENTRY, INLINE, PACKET, sealed, shortened
from conch.backend.python.keeping import Keeping, Question
from conch.observe.custom import Families
from conch.types.error import Code, InferError, internal
from conch.types.tensor import Buffer

_LOG = logging.getLogger("conch.model")
_CODES = tuple(Code)
_RESULTS = ASK_HEAD.pack(channel.RESULTS, 0, 0)
_RESULTS_IN_FILE = ASK_HEAD.pack(channel.RESULTS, channel.IN_FILE, 0)
#: Room for the text of an answer to a question.
_ROOM = INLINE - 256
#: When to send again what the kernel has not taken, in seconds.
_AGAIN = 0.01
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
        #: Calls that came before `open`, with the files of their contents.
        self._early: list[tuple[bytes, int]] = []
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

    def open(self, loop: asyncio.AbstractEventLoop, parents: Parents) -> None:
        """On the loop."""
        self._loop = loop
        self._home = threading.get_ident()
        if self._models is not None:
            self._calling = Calling(self._models, loop, parents, self._result, self._spin_ns)
        self._attached = True
        early, self._early = self._early, []
        for packet, descriptor in early:
            self._called(packet, descriptor)
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
            files = [each for _, each in (*self._unsent, *self._results, *self._early) if each >= 0]
            self._early.clear()
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
        begin = ASK_HEAD.size
        if kind == channel.CALLS:
            if self._attached:
                self._called(packet, descriptor)
            elif self._loop is None:
                self._early.append((packet, descriptor))
            else:
                self._refuse(packet, descriptor, "the model that calls is being unloaded")
        elif kind == channel.METRIC:
            (value,) = channel.METRIC_VALUE.unpack_from(packet, begin)
            self._keeping.change(flags, number, value)
        elif kind == channel.QUESTION:
            try:
                self._asked(packet, flags, number, descriptor)
            except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
                self._reply(number, _failed(internal(f"the question cannot be read: {failure!r}")))
        elif kind == channel.QUIT and self._calling is not None:
            self._calling.quit(number, forget=flags == channel.FORGET)
        elif kind == channel.TAKEN and self._calling is not None:
            (size,) = channel.TAKEN_BYTES.unpack_from(packet, begin)
            self._calling.taken(number, size)

    def _called(self, packet: bytes, descriptor: int) -> None:
        if self._calling is None:
            self._refuse(packet, descriptor, "no other models are served here")
            return
        apart = packet[1] & channel.IN_FILE != 0
        try:
            data = _contents(descriptor) if apart else packet
        except (OSError, ValueError) as error:
            self._refuse(packet, -1, f"its inputs cannot be reached: {error}")
        else:
            self._calls(packet, data, apart=apart)

    def _refuse(self, packet: bytes, descriptor: int, text: str) -> None:
        """Whoever called must not wait for ever."""
        if descriptor >= 0:
            os.close(descriptor)
        position = ASK_HEAD.size
        while position < len(packet):
            number, _, _, meta_size, size = CALL_ENTRY.unpack_from(packet, position)
            position += CALL_ENTRY.size + meta_size + (0 if packet[1] & channel.IN_FILE else size)
            with self._lock:
                if not self._closed:
                    self._results.append((refusal(number, f"Error when running inference: {text}"), -1))
        self._flush()

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

    def _asked(self, packet: bytes, flags: int, number: int, descriptor: int) -> None:
        data: Buffer = packet
        begin, size = ASK_HEAD.size, len(packet)
        if flags & channel.IN_FILE:
            data, begin, size = _contents(descriptor), 0, int.from_bytes(packet[begin : begin + 8], "little")
        self._question(number, _decode_question(memoryview(data)[begin:size]), memoryview(data)[size:])

    def _question(self, number: int, question: Question, contents: memoryview) -> None:
        try:
            if question.ask in {"load", "unload"}:
                self._change(question, contents).add_done_callback(lambda done: self._done(number, done))
                return
            value = self._ready(question) if question.ask == "ready" else self._keeping.answer(question)
        except InferError as error:
            self._reply(number, _failed(error))
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
        error = CancelledError() if done.cancelled() else done.exception()
        self._reply(number, {"value": None} if error is None else _failed(error))

    def _reply(self, number: int, answer: dict[str, Any]) -> None:
        with self._lock:
            if not self._closed:
                # Not by msgspec, which knows no infinity.
                self._unsent.append((ASK_HEAD.pack(channel.REPLY, 0, number) + json.dumps(answer).encode(), -1))
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
                    self._unsent.append((_RESULTS_IN_FILE + entry, descriptor))
                else:
                    parts.append(entry)
                    size += len(entry)
            if len(parts) > 1:
                self._unsent.append((b"".join(parts), -1))
        self._write()

    def _write(self) -> None:
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
                loop.call_later(_AGAIN, self._write)
                return
            if wanted:
                loop.add_writer(self.fileno(), self._write)
            else:
                loop.remove_writer(self.fileno())
            self._writing = wanted


def _failed(error: BaseException) -> dict[str, Any]:
    known = error if isinstance(error, InferError) else internal(repr(error))
    return {"error": (_CODES.index(known.code), shortened(known.message, _ROOM))}


def _contents(descriptor: int) -> Buffer:
    """What lies in the file: a view of it, if the worker cannot make it shorter any more. Raises OSError."""
    safe = sealed(descriptor)
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size and safe:
            return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        file.seek(0)
        return file.read()
