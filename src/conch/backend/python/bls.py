"""Calls of a model to other models (business logic scripting): from `InferenceRequest` to packets, and back."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from conch.backend.python.asks import Asks, Once, write_file
from conch.backend.python.called import Inbox, Later, ResponseIterator, decode, settle
from conch.backend.python.channel import (
    ASK_HEAD,
    CALL_ENTRY,
    CALL_FORMS,
    CALLS,
    IN_FILE,
    INLINE,
    aligned,
)
from conch.backend.python.errors import TritonModelException
from conch.backend.python.response import InferenceResponse, wire_bytes
from conch.backend.python.tensor import BYTES

if TYPE_CHECKING:
    from conch.backend.python.asks import Waiter
    from conch.backend.python.request import InferenceRequest

#: The batch that makes the calls, where the thread that executes it does not tell.
current_batch: ContextVar[int] = ContextVar("conch_batch", default=0)

_ALIGNED = b"\0" * 64
_QUICK_HEAD = ASK_HEAD.pack(CALLS, 0, 0)


class Caller:
    """Calls other models. One per process; any thread."""

    def __init__(self, asks: Asks) -> None:
        self.asks = asks
        #: The batch that the main thread executes; 0 while calls are not allowed or belong to no batch.
        self.batch = 0
        #: Calls are allowed: the model has been initialized and is not being finalized.
        self.open = False
        # Held while sending: the first call of a form, which describes it, must arrive before the second.
        self._lock = threading.Lock()
        self._forms: dict[Any, int] = {}
        self._waiting: list[tuple[bytes, int]] = []

    def call(self, request: InferenceRequest) -> InferenceResponse:
        """Blocks until the response is there; what goes wrong is in it."""
        self._check()
        waiter = Once()
        self._send(request, waiter, decoupled=False)
        self.asks.wait(waiter.is_done)
        return decode(waiter.meta, waiter.data, waiter.begin)

    def call_later(self, request: InferenceRequest) -> asyncio.Future[InferenceResponse]:
        """On an event loop. Calls that are made in one go travel together."""
        self._check()
        loop = asyncio.get_running_loop()
        later = Later(loop, self)
        self._put(request, later, loop, decoupled=False)
        return later.future

    def stream(self, request: InferenceRequest) -> ResponseIterator:
        self._check()
        inbox = Inbox()
        self._send(request, inbox, decoupled=True)
        return ResponseIterator._over(inbox, self)

    def stream_later(self, request: InferenceRequest) -> asyncio.Future[ResponseIterator]:
        """The future is done when the first response is there."""
        self._check()
        loop = asyncio.get_running_loop()
        inbox = Inbox()
        responses = ResponseIterator._over(inbox, self)
        future: asyncio.Future[ResponseIterator] = loop.create_future()
        inbox.wakers.append((loop, lambda: settle(future, responses)))
        self._put(request, inbox, loop, decoupled=True)
        return future

    def flush(self) -> None:
        """What was put goes now."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            packet: list[bytes] = []
            size = 0
            for entry, descriptor in waiting:
                if packet and (descriptor >= 0 or size + len(entry) > INLINE):
                    self.asks.send(b"".join([_QUICK_HEAD, *packet]))
                    packet, size = [], 0
                if descriptor >= 0:
                    self.asks.send(ASK_HEAD.pack(CALLS, IN_FILE, 0) + entry, descriptor)
                    os.close(descriptor)
                else:
                    packet.append(entry)
                    size += len(entry)
            if packet:
                self.asks.send(b"".join([_QUICK_HEAD, *packet]))

    def _check(self) -> None:
        if not self.open:
            raise TritonModelException("BLS is only supported during the 'execute' function.")

    def _send(self, request: InferenceRequest, waiter: Waiter, *, decoupled: bool) -> None:
        self._add(request, waiter, decoupled=decoupled)
        self.flush()

    def _put(
        self, request: InferenceRequest, waiter: Waiter, loop: asyncio.AbstractEventLoop, *, decoupled: bool
    ) -> None:
        self.asks.listen(loop)
        if self._add(request, waiter, decoupled=decoupled):
            loop.call_soon(self.flush)

    def _add(self, request: InferenceRequest, waiter: Waiter, *, decoupled: bool) -> bool:
        """To what is to be sent; whether it is the first there."""
        number = self.asks.number(waiter)
        try:
            with self._lock:
                self._waiting.append(self._entry(request, number, decoupled=decoupled))
                return len(self._waiting) == 1
        except BaseException:
            self.asks.forget(number)
            raise

    def _entry(self, request: InferenceRequest, number: int, *, decoupled: bool) -> tuple[bytes, int]:
        """The call as it travels, and the file of its contents if they are large."""
        own, tensors = request._own, request.inputs()
        shapes, parts, size = [], [], 0
        lengths = []
        for tensor in tensors:
            array = tensor._array
            kind = tensor._kind
            part: Any
            if kind == BYTES:
                part = wire_bytes(tensor)
                shapes.append((tensor._name, kind, tuple(tensor.shape())))
                lengths.append(len(part))
            else:
                # A view where it can be: the bytes are copied once, to where they travel.
                part = array.tobytes() if array.nbytes <= INLINE else np.ascontiguousarray(array).reshape(-1).data
                shapes.append((tensor._name, kind, array.shape))
            parts.append(part)
            size += part.nbytes if type(part) is memoryview else len(part)
        key = (*request._call_key(), decoupled, *shapes)
        form = self._forms.get(key, -1)
        meta: dict[str, Any] = {}
        if form < 0:
            form = self._number(key)
            meta["form"] = {**request._call_form(), "decoupled": decoupled, "inputs": shapes}
        if own["request_id"]:
            meta["id"] = own["request_id"]
        if lengths:
            meta["lengths"] = lengths
        trace = own["trace"]
        if trace is not None and trace._index >= 0:
            meta["trace"] = trace._sequence, trace._index
        try:
            # What is no text (lone surrogates) raises UnicodeEncodeError here.
            raw = json.dumps(meta, ensure_ascii=False).encode() if meta else b""
            sequence = current_batch.get() or self.batch
            head = CALL_ENTRY.pack(number, form, sequence, len(raw), size)
            if size + len(raw) <= INLINE:
                return b"".join([head, raw, *parts]), -1
            return head + raw if len(raw) <= INLINE else _too_much(raw), _file(parts)
        except BaseException:
            if "form" in meta:
                # It is not told now. Numbers have no gaps: this one goes to a form that nothing matches.
                self._forms[object()] = self._forms.pop(key)
            raise

    def _number(self, key: Any) -> int:
        forms = self._forms
        number = len(forms)
        if number >= CALL_FORMS:
            number = forms.pop(next(iter(forms)))
        forms[key] = number
        return number


def _too_much(raw: bytes) -> bytes:
    raise TritonModelException(
        f"the request to another model has {len(raw)} bytes of names, shapes and parameters, more than {INLINE}"
    )


def _file(parts: Sequence[Any]) -> int:
    laid = []
    for part in parts:
        size = part.nbytes if type(part) is memoryview else len(part)
        laid.append(part.cast("B") if type(part) is memoryview and part.nbytes else part)
        if aligned(size) != size:
            laid.append(_ALIGNED[: aligned(size) - size])
    try:
        return write_file(laid)
    except OSError as error:
        raise TritonModelException(f"the inputs of a request to another model need more memory: {error}") from error
