"""The calls of one worker's model to other models: from its messages to requests, and from responses to messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from conch.backend.api import Models
from conch.backend.python.asks import write_file
from conch.backend.python.call_form import NOTHING, Known, decode_meta
from conch.backend.python.channel import INLINE, LAST, RESPONSE_COST, RESULT_ENTRY, WINDOW, aligned, shortened
from conch.backend.python.vigil import vigil_of
from conch.types.error import Code, InferError, internal
from conch.types.flow import Flow
from conch.types.request import InferRequest, RequestForm
from conch.types.response import FINAL, FailedResponse, InferResponse
from conch.types.tensor import Buffer

_CODES = tuple(Code)
#: How often it is looked whether the clients of those that call are still there, in seconds.
_LOOK = 0.05
#: From this size on, an input is a view of the packet rather than a copy.
_SMALL = 1024
#: Heads of responses remembered.
_HEADS = 1024
_PADDING = bytes(64)
#: Room for the text of an error.
_ERROR_ROOM = INLINE - 256


class Parents(Protocol):
    """The open requests of the instance whose model calls."""

    def parents(self, sequence: int) -> Sequence[InferRequest]:
        """Those of a batch."""

    def parent(self, sequence: int, index: int) -> InferRequest | None:
        """The one at this place of a batch."""


class Call:
    """One call under way: the sink of its request. `unread` bytes of responses have not been taken by the caller."""

    __slots__ = (
        "_calling", "forgotten", "number", "request", "sequence", "stream", "trace_context", "trace_state", "unread",
    )  # fmt: skip
    request: InferRequest

    def __init__(self, calling: Calling, number: int, sequence: int, *, stream: bool) -> None:
        self._calling = calling
        self.number = number
        self.sequence = sequence
        self.stream = stream
        self.forgotten = False
        self.unread = 0
        #: W3C trace context of the request that the model makes the call for.
        self.trace_context = ""
        self.trace_state = ""

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        self._calling.answer(self, request, response, final=final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._calling.answer(self, request, FailedResponse(error), final=True)


class Calling:
    """Loop thread; `answer` any."""

    def __init__(
        self,
        models: Models,
        loop: asyncio.AbstractEventLoop,
        parents: Parents,
        send: Callable[[bytes, int, bool], None],
        spin_ns: int = 0,
    ) -> None:
        """`send` takes an entry of RESULTS, the descriptor of its contents or -1, and whether no other is to be waited
        for, to travel with it. The loop stays awake for `spin_ns` after a call."""
        self._models = models
        self._loop = loop
        self._parents = parents
        self._send = send
        self._known: dict[int, Known] = {}
        self._open: dict[int, Call] = {}
        self._looking = False
        self._vigil = vigil_of(loop)
        self._spin_ns = spin_ns
        self._heads: dict[Any, bytes] = {}

    def __len__(self) -> int:
        return len(self._open)

    def call(
        self, number: int, form: int, sequence: int, meta: bytes, data: Buffer, begin: int, *, apart: bool
    ) -> None:
        """`data` hold the inputs from `begin` on; `apart`: they lie in a file, each at an aligned place."""
        known: Known | None = None
        try:
            try:
                said = decode_meta(meta) if meta else NOTHING
                if said.form is not None:
                    self._known[form] = Known(said.form)
            except Exception:
                # One that cannot be read is not the one before it.
                self._known.pop(form, None)
                raise
            known = self._known[form]
            call = Call(self, number, sequence, stream=known.decoupled)
            prepared = known.form
            if prepared is None or prepared.generation != self._models.generation:
                prepared = known.form = self._prepare(known)
            parts = _cut(known.sizes, said.lengths, data, begin, apart=apart)
            contents = tuple([parts[place] for place in prepared.order])
            request = call.request = InferRequest(prepared, said.id, contents, call, time.monotonic_ns())
            if known.timeout_ns:
                request.expires_ns = request.received_ns + known.timeout_ns
            if prepared.decoupled:
                request.flow = Flow()
            if said.trace is not None:
                self._join_trace(call, *said.trace)
            self._open[number] = call
            if self._spin_ns:
                self._vigil.step(self._spin_ns)
            self._models.infer(request)
        except InferError as error:
            self._refuse(number, known, error.message)
            return
        except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
            # Whatever it is, the model waits for an answer.
            self._refuse(number, known, f"the request cannot be read: {failure!r}")
            return
        if sequence and not self._looking:
            self._looking = True
            self._loop.call_later(_LOOK, self._look)

    def quit(self, number: int, *, forget: bool) -> None:
        call = self._open.get(number)
        if call is None:
            return
        if forget:
            call.forgotten = True
            self._release(call)
        else:
            self._withdraw(call)

    def taken(self, number: int, size: int) -> None:
        call = self._open.get(number)
        if call is not None:
            call.unread -= size
            if call.unread < WINDOW:
                self._release(call)

    def withdraw_all(self) -> None:
        """Nobody waits for anything any more."""
        for call in list(self._open.values()):
            call.forgotten = True
            self._withdraw(call)

    def answer(self, call: Call, request: InferRequest, response: InferResponse, *, final: bool) -> None:
        """Any thread."""
        if final:
            self._open.pop(call.number, None)
        if call.forgotten:
            return
        flags = LAST if final else 0
        parts: list[Buffer]
        if isinstance(response, FailedResponse):
            meta, parts, size = _error(response.error.code, response.error.message), [], 0
        else:
            meta, parts, size = self._describe(response)
        if call.stream and not final:
            call.unread += size + RESPONSE_COST
            if call.unread >= WINDOW and request.flow is not None:
                request.flow.full = True
                if call.unread < WINDOW:
                    # Taken meanwhile, on the loop, where there was nothing to release yet.
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._release, call)
        if len(meta) > INLINE:
            # Not an error: those are made to fit.
            text = f"The names, shapes and parameters of a response are {len(meta)} bytes, more than {INLINE}"
            meta, parts, size = _error(Code.INTERNAL, text), [], 0
        if size + len(meta) <= INLINE:
            self._send(_entry(call.number, meta, size, flags, b"".join(parts)), -1, not self._open)
            return
        try:
            descriptor = write_file(_padded(parts))
        except OSError as error:
            text = f"Failed to pass a response of {size} bytes to the model that called: {error}"
            self._send(_entry(call.number, _error(Code.INTERNAL, text), 0, flags, b""), -1, not self._open)
        else:
            self._send(_entry(call.number, meta, size, flags, b""), descriptor, not self._open)

    def _prepare(self, known: Known) -> RequestForm:
        head = known.head
        try:
            ready = self._models.ready(head.model_name, head.model_version)
        except InferError:
            ready = False
        if not ready:
            raise internal(f"Failed for execute the inference request. Model '{head.model_name}' is not ready.")
        form = self._models.prepare(head)
        if form.decoupled and not known.decoupled:
            raise internal(
                f"Model {head.model_name} is using the decoupled. The current BLS request call doesn't support models "
                "using the decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or "
                "'async_exec' calls for decoupled models.'"
            )
        return form

    def _describe(self, response: InferResponse) -> tuple[bytes, list[Buffer], int]:
        if response is FINAL:
            return b"{}", [], 0
        parts = [tensor.data for tensor in response.outputs]
        key = tuple([(each.name, each.datatype.number, each.shape, len(each.data)) for each in response.outputs])
        size = sum([shown[3] for shown in key])
        if response.parameters:
            return json.dumps({"outputs": key, "parameters": response.parameters}).encode(), parts, size
        meta = self._heads.get(key)
        if meta is None:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            meta = self._heads[key] = json.dumps({"outputs": key}).encode()
        return meta, parts, size

    def _join_trace(self, call: Call, sequence: int, index: int) -> None:
        parent = self._parents.parent(sequence, index)
        if parent is not None and parent.trace is not None:
            call.trace_context, call.trace_state = parent.trace.context, parent.trace.state

    def _refuse(self, number: int, known: Known | None, text: str) -> None:
        self._open.pop(number, None)
        name = f"Model {known.head.model_name} - " if known is not None else ""
        self._send(refusal(number, f"{name}Error when running inference: {text}"), -1, not self._open)

    def _withdraw(self, call: Call) -> None:
        call.request.form.withdraw(call.request)
        # Who waits for its reader has nobody to wait for.
        self._release(call)

    def _release(self, call: Call) -> None:
        flow = call.request.flow
        if flow is not None and flow.full:
            flow.release()

    def _look(self) -> None:
        """Withdraw the calls of batches that nobody waits for any more."""
        self._looking = False
        gone: dict[int, bool] = {}
        for call in list(self._open.values()):
            sequence = call.sequence
            if sequence and sequence not in gone:
                parents = self._parents.parents(sequence)
                gone[sequence] = bool(parents) and all(parent.cancelled for parent in parents)
            if sequence and gone[sequence] and not call.request.cancelled:
                self._withdraw(call)
        if self._open:
            self._looking = True
            self._loop.call_later(_LOOK, self._look)


def _cut(sizes: Sequence[int], lengths: Sequence[int], data: Buffer, begin: int, *, apart: bool) -> list[Buffer]:
    parts: list[Buffer] = []
    told = iter(lengths)
    for size in sizes:
        end = begin + (size if size >= 0 else next(told))
        parts.append(data[begin:end] if apart or end - begin <= _SMALL else memoryview(data)[begin:end])
        begin = aligned(end) if apart else end
    return parts


def _entry(number: int, meta: bytes, size: int, flags: int, contents: bytes) -> bytes:
    return b"".join([RESULT_ENTRY.pack(number, flags, len(meta), size), meta, contents])


def refusal(number: int, text: str) -> bytes:
    """The entry of a call that could not be made."""
    return _entry(number, _error(Code.INTERNAL, text), 0, LAST, b"")


def _error(code: Code, text: str) -> bytes:
    return json.dumps({"error": [_CODES.index(code), shortened(text, _ERROR_ROOM)]}).encode()


def _padded(parts: Sequence[Buffer]) -> list[Buffer]:
    laid: list[Buffer] = []
    for part in parts:
        laid.append(part)
        missing = aligned(len(part)) - len(part)
        if missing:
            laid.append(_PADDING[:missing])
    return laid
