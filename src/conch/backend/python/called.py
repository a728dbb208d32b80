"""What a call to another model brings: a response, or a stream of them, for a thread or for an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from conch.backend.python.channel import (
    ASK_HEAD,
    FORGET,
    QUIT,
    RESPONSE_COST,
    TAKEN,
    TAKEN_BYTES,
    WINDOW,
    Readable,
    aligned,
)
from conch.backend.python.errors import ErrorCode, TritonError
from conch.backend.python.response import InferenceResponse
from conch.backend.python.tensor import BF16, BYTES, NUMPY, bytes_input, input_tensor

if TYPE_CHECKING:
    from conch.backend.python.asks import Asks

_DTYPES = {**NUMPY, BF16: np.dtype("u2")}
#: Layouts of responses remembered by their text.
_LAYOUTS = 1024


class _Caller(Protocol):
    """What an iterator needs of the one who made the call."""

    asks: Asks

    def flush(self) -> None: ...


_layouts: dict[bytes, Any] = {}


def decode(meta: bytes, data: Readable, begin: int) -> InferenceResponse:
    """The response of another model. In a file the tensors are views of it, from a packet they are copied."""
    layout = _layouts.get(meta)
    if layout is None:
        layout = json.loads(meta)
        if len(_layouts) >= _LAYOUTS:
            _layouts.clear()
        _layouts[meta] = layout
    response = InferenceResponse.__new__(InferenceResponse)
    error = layout.get("error")
    response._error = None if error is None else TritonError(error[1], ErrorCode(error[0]))
    response._parameters = layout.get("parameters")
    response._plain = error is None and response._parameters is None
    shared = type(data) is not bytes
    tensors = []
    for name, kind, shape, size in layout.get("outputs", ()):
        if kind == BYTES:
            tensors.append(bytes_input(name, memoryview(data)[begin : begin + size], tuple(shape)))
        else:
            array: np.ndarray[Any, Any] = np.ndarray(shape, _DTYPES[kind], data, begin) if size else _empty(shape, kind)
            tensors.append(input_tensor(name, kind, array if shared else array.copy()))
        begin = aligned(begin + size) if shared else begin + size
    response._tensors = tensors
    return response


def _empty(shape: Sequence[int], kind: int) -> np.ndarray[Any, Any]:
    return np.empty(shape, _DTYPES[kind])


class Inbox:
    """What has come of a stream of responses and was not taken: filled by whoever reads."""

    __slots__ = ("items", "last", "number", "wakers")

    def __init__(self) -> None:
        #: Meta, data, begin, size, and whether it is the last: who takes one needs to look nowhere else, for whoever
        #: reads may be halfway through `take`.
        self.items: deque[tuple[bytes, Readable, int, int, bool]] = deque()
        #: The last one has come.
        self.last = False
        self.number = 0
        #: Event loops, and what is to be called on them when something has come; once. Who waits adds to them and then
        #: looks at `items`; who brings adds to `items` and then looks here: one of the two sees the other.
        self.wakers: deque[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = deque()

    def take(self, meta: bytes, data: Readable, begin: int, size: int, last: bool, loop: Any) -> None:
        self.items.append((meta, data, begin, size, last))
        self.last = last
        while self.wakers:
            home, wake = self.wakers.popleft()
            if home is loop:
                wake()
            else:
                with contextlib.suppress(RuntimeError):
                    home.call_soon_threadsafe(wake)

    def ready(self) -> bool:
        return bool(self.items)


class Later:
    """A future that waits for one response on its own loop."""

    __slots__ = ("_caller", "_loop", "future", "number")

    def __init__(self, loop: asyncio.AbstractEventLoop, caller: _Caller) -> None:
        self.future: asyncio.Future[InferenceResponse] = loop.create_future()
        self.number = 0
        self._loop = loop
        self._caller = caller
        self.future.add_done_callback(self._left)

    def take(self, meta: bytes, data: Readable, begin: int, size: int, last: bool, loop: Any) -> None:
        if loop is self._loop:
            self._settle(meta, data, begin)
        else:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle, meta, data, begin)

    def _settle(self, meta: bytes, data: Readable, begin: int) -> None:
        if self.future.done():
            return
        try:
            response = decode(meta, data, begin)
        except Exception as error:  # noqa: BLE001  no memory: whoever awaits it must hear of it
            self.future.set_exception(error)
        else:
            self.future.set_result(response)

    def _left(self, future: asyncio.Future[InferenceResponse]) -> None:
        if future.cancelled():
            # The call itself may not have gone yet.
            self._caller.flush()
            self._caller.asks.forget(self.number)
            self._caller.asks.send(ASK_HEAD.pack(QUIT, 0, self.number))


def settle(future: asyncio.Future[Any], value: Any) -> None:
    """On the future's loop."""
    if not future.done():
        future.set_result(value)


class ResponseIterator:
    """The responses of a call to a decoupled model, by `for` or `async for`; they are kept, so that it can begin anew.

    One that is dropped before its end lets the call go on, and whatever else comes of it go.
    """

    __slots__ = ("__weakref__", "_caller", "_finished", "_inbox", "_index", "_responses", "_taken")
    _caller: _Caller
    _finished: bool
    _inbox: Inbox
    _index: int
    _responses: list[InferenceResponse]
    _taken: int

    def __init__(self) -> None:
        raise TypeError("a ResponseIterator comes from exec(decoupled=True) or async_exec(decoupled=True)")

    @classmethod
    def _over(cls, inbox: Inbox, caller: _Caller) -> ResponseIterator:
        self = cls.__new__(cls)
        self._inbox = inbox
        self._caller = caller
        self._responses = []
        self._index = 0
        self._finished = False
        #: Bytes taken that the server has not been told of.
        self._taken = 0
        return self

    def __iter__(self) -> ResponseIterator:
        if self._finished and self._index >= len(self._responses):
            self._index = 0
        return self

    __aiter__ = __iter__

    def __next__(self) -> InferenceResponse:
        if not self._finished and not self._inbox.items:
            self._caller.flush()
            self._caller.asks.wait(self._inbox.ready)
        response = self._next()
        if response is None:
            raise StopIteration
        return response

    async def __anext__(self) -> InferenceResponse:
        if not self._finished and not self._inbox.items:
            loop = asyncio.get_running_loop()
            come: asyncio.Future[None] = loop.create_future()
            self._inbox.wakers.append((loop, lambda: settle(come, None)))
            if not self._inbox.items:
                self._caller.asks.listen(loop)
                await come
        response = self._next()
        if response is None:
            raise StopAsyncIteration
        return response

    def cancel(self) -> None:
        """Tell the other model that its answers are not needed any more; it may stop, and says so by the last one."""
        if not self._finished:
            self._caller.flush()
            self._caller.asks.send(ASK_HEAD.pack(QUIT, 0, self._inbox.number))

    def _next(self) -> InferenceResponse | None:
        if self._finished:
            if self._index >= len(self._responses):
                return None
            self._index += 1
            return self._responses[self._index - 1]
        inbox = self._inbox
        meta, data, begin, size, self._finished = inbox.items.popleft()
        response = decode(meta, data, begin)
        self._responses.append(response)
        self._index = len(self._responses)
        if not self._finished:
            self._taken += size + RESPONSE_COST
            if self._taken >= WINDOW // 4:
                head = ASK_HEAD.pack(TAKEN, 0, inbox.number)
                self._caller.asks.send(head + TAKEN_BYTES.pack(self._taken))
                self._taken = 0
        return response

    def __del__(self) -> None:
        try:
            inbox, asks = self._inbox, self._caller.asks
        except AttributeError:
            return
        if not inbox.last:
            asks.forget(inbox.number)
            asks.send(ASK_HEAD.pack(QUIT, FORGET, inbox.number))
