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
from concurrent.futures import CancelledError, Future
from typing import Any

import msgspec

from conch.backend.api import Models
from conch.backend.python import channel
from conch.backend.python.calling import Calling, Parents, refusal
from conch.backend.python.channel import ASK_HEAD, CALL_ENTRY, INLINE, PACKET, sealed, shortened
from conch.backend.python.keeping import Keeping, Question
from conch.backend.python.outgoing import Outgoing
from conch.observe.custom import Families
from conch.types.error import Code, InferError, internal
from conch.types.tensor import Buffer

_LOG = logging.getLogger("conch.model")
_CODES = tuple(Code)
#: Room for the text of an answer to a question.
_ROOM = INLINE - 256
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
        self._outgoing = Outgoing(sock)
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Calls that came before `open`, with the files of their contents.
        self._early: list[tuple[bytes, int]] = []
        #: The loop listens.
        self._attached = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def open(self, loop: asyncio.AbstractEventLoop, parents: Parents) -> None:
        """On the loop."""
        self._loop = loop
        if self._models is not None:
            self._calling = Calling(self._models, loop, parents, self._outgoing.result, self._spin_ns)
        self._outgoing.attach(loop)
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
            self._outgoing.detach()

    def close(self) -> None:
        """The worker is gone: what it called is not wanted any more, its metrics go. Any thread; again does no harm."""
        if not self._outgoing.close():
            return
        early, self._early = self._early, []
        for _, descriptor in early:
            if descriptor >= 0:
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
        if not self._attached:
            self._outgoing.write()

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
            self._outgoing.add(refusal(number, f"Error when running inference: {text}"))
        self._outgoing.flush()

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
        # Not by msgspec, which knows no infinity.
        self._outgoing.send(ASK_HEAD.pack(channel.REPLY, 0, number) + json.dumps(answer).encode())


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
