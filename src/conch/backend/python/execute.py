"""One execution in the worker: from the server's packet to requests, to the model, and to the packet that answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from conch.backend.python.answers import Answers, Reply, check, refusal
from conch.backend.python.calls import Calls
from conch.backend.python.channel import (
    DATA_IN_AREA,
    DONE,
    DONE_HEAD,
    EXECUTE_HEAD,
    INLINE,
    KEPT,
    META_IN_AREA,
    OUTPUTS_SHIFT,
    UNIFORM,
    VERBOSE,
    Area,
    aligned,
)
from conch.backend.python.errors import words
from conch.backend.python.request import Batch, Form, incoming
from conch.backend.python.stream import Stream
from conch.backend.python.tensor import BYTES

_HEAD = EXECUTE_HEAD.size
_READY_SECONDS = 5.0
_now = time.monotonic_ns


class Executor:
    """Runs the model. `execute` takes an EXECUTE packet and gives the DONE packet; it raises nothing the model did."""

    def __init__(self, model: Any, instance: str, calls: Calls, inputs: Area, outputs: Sequence[Area]) -> None:
        self._model = model
        self._run = model.execute
        self._instance = instance
        self._calls = calls
        self._inputs = inputs
        self._outputs = outputs
        self._forms: dict[int, Form] = {}
        self._answers = Answers()
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Runs the coroutines of a decoupled model, which go on while other batches come.
        self._background: asyncio.AbstractEventLoop | None = None
        self._unused = _references([np.zeros(1)])

    def execute(self, packet: bytes) -> bytes:
        _, flags, sequence, count, number, meta_size, size = EXECUTE_HEAD.unpack_from(packet)
        calls = self._calls
        calls.verbose = flags & VERBOSE != 0
        meta = None
        begin = _HEAD
        if meta_size:
            if flags & META_IN_AREA:
                meta = json.loads(bytes(self._inputs.view(meta_size)[:meta_size]))
            else:
                begin += meta_size
                meta = json.loads(packet[_HEAD:begin])
            for slot, form in meta["forms"]:
                self._forms[slot] = Form(form)
        batch = Batch(calls, sequence, meta["ids"] if meta else None)
        bases: list[Any] = []
        source: Any = packet
        if flags & DATA_IN_AREA:
            begin = aligned(meta_size) if flags & META_IN_AREA else 0
            source = self._inputs.view(begin + size)
        if flags & UNIFORM:
            batch.form = self._forms[number]
            columns(batch, count, source, begin, size, meta["lengths"] if meta else (), bases)
        else:
            assert meta is not None
            batch.forms = [self._forms[slot] for slot in meta["numbers"]]
            rows(batch, source, begin, size, meta["lengths"], bases)
        input_end = _now()
        reply, output_start = (self._answer if calls.outbox is None else self._stream)(batch, count)
        flags, tail = self._lay(reply, self._outputs[flags >> OUTPUTS_SHIFT])
        # From here on, whoever holds a view of the inputs is the model.
        reply.parts = ()
        del batch
        if bases and _references(bases) > self._unused:
            flags |= KEPT
            self._inputs.close()
            self._inputs = Area.make(len(source), len(source))
            calls.area(self._inputs.descriptor)
        head = DONE_HEAD.pack(
            DONE, flags, sequence, count, reply.number, len(reply.meta), reply.size, input_end, output_start
        )
        return head + tail

    def is_ready(self) -> bool:
        """What the model says of itself. An exception, or anything but True, is a no."""
        try:
            result = self._model.is_ready()
            if inspect.isawaitable(result):
                result = self._finish(asyncio.wait_for(result, _READY_SECONDS))
        except Exception as error:  # noqa: BLE001  whatever the model's code raises
            self._calls.log(2, "model.py", 0, f"is_ready of '{self._instance}' failed: {words(error)}")
            return False
        return result is True

    def _answer(self, batch: Batch, count: int) -> tuple[Reply, int]:
        """In a frame of its own: when it returns, nothing of the batch is left but what the model keeps."""
        try:
            result = self._run(incoming(batch, count))
            if type(result) is not list and inspect.isawaitable(result):
                result = self._finish(result)
            output_start = _now()
            text = check(result, count) if type(result) is not list or len(result) != count else ""
            if not text:
                try:
                    return self._answers.gather(result, batch), output_start
                except AttributeError:
                    text = check(result, count)
                    if not text:
                        raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the model's code raises
            output_start = _now()
            text = words(error)
        return refusal(self._failure(text)), output_start

    def _stream(self, batch: Batch, count: int) -> tuple[Reply, int]:
        """Of a decoupled model: the answers go their own way, this reply says that the next batch may come."""
        outbox = self._calls.outbox
        assert outbox is not None
        streams = batch.open(count)
        text = ""
        try:
            result = self._run(incoming(batch, count))
            if result is not None and inspect.isawaitable(result):
                self._start(result, streams)
            elif result is not None:
                text = (
                    f"Python model '{self._instance}' is using the decoupled mode and the execute function must "
                    "return None."
                )
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the model's code raises
            text = words(error)
        output_start = _now()
        # What was sent before comes first.
        outbox.flush()
        if not text:
            return Reply(0, 0, {}, (), 0), output_start
        for stream in streams:
            stream.closed = True
        return refusal(self._failure(text)), output_start

    def _failure(self, text: str) -> str:
        return f"Failed to process the request(s) for model '{self._instance}', message: {text}"

    def _start(self, awaitable: Any, streams: Sequence[Stream]) -> None:
        """A decoupled model's coroutine runs while further batches come; all share one loop, in a thread of its own."""
        if self._background is None:
            self._background = asyncio.new_event_loop()
            threading.Thread(target=self._background.run_forever, name="async execute", daemon=True).start()

        async def run() -> None:
            try:
                result = await awaitable
                text = "" if result is None else "the execute function of a decoupled model must return None."
            except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the model's code raises
                text = words(error)
            if text:
                text = self._failure(text)
                self._calls.log(2, "model.py", 0, text)
                for stream in streams:
                    stream.fail(text)

        asyncio.run_coroutine_threadsafe(run(), self._background)

    def _finish(self, awaitable: Any) -> Any:
        """Coroutines of one instance share a loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(awaitable)

    def _lay(self, reply: Reply, outputs: Area) -> tuple[int, bytes]:
        """Put the reply's contents where they belong; gives the flags that say so, and what goes into the packet."""
        flags, size, parts, meta = reply.flags, reply.size, reply.parts, reply.meta
        meta_size = len(meta)
        if meta_size + size <= INLINE:
            return flags, b"".join([meta, *[part if type(part) is bytes else bytes(part) for part in parts]])
        begin = 0
        if meta_size > INLINE:
            flags |= META_IN_AREA
            begin = aligned(meta_size)
        try:
            view = outputs.reserve(begin + size)
        except OSError as error:
            failed = refusal(f"The outputs of model instance '{self._instance}' need {size} bytes of memory: {error}")
            reply.meta, reply.size = failed.meta, 0
            return 0, reply.meta
        if begin:
            view[:meta_size] = meta
            meta = b""
        _write(parts, view, begin)
        return flags | DATA_IN_AREA, meta


def _write(parts: Sequence[Any], view: memoryview, position: int) -> None:
    for part in parts:
        if isinstance(part, np.ndarray):
            target: Any = np.ndarray(part.shape, part.dtype, view, position)
            target[...] = part
            position += part.nbytes
        else:
            end = position + len(part)
            view[position:end] = part
            position = end


def columns(
    batch: Batch, count: int, source: Any, begin: int, size: int, lengths: Sequence[int], bases: list[Any]
) -> None:
    """Cut data that lie input by input: one array per input, each request gets its rows of it.

    From a packet they are copied (it is read-only). In an area the arrays are views: `bases` then holds what all of
    them refer to.
    """
    form = batch.form
    assert form is not None
    shared = type(source) is not bytes
    if shared and size:
        source = np.frombuffer(source, np.uint8, begin + size)
        bases.append(source)
    found: list[Sequence[Any]] = []
    told = 0
    for _, kind, dtype, shape, each in form.inputs:
        if kind == BYTES:
            mine = lengths[told : told + count]
            told += count
            total = sum(mine)
            raw = memoryview(bytes(source[begin : begin + total]))
            cuts = []
            at = 0
            for length in mine:
                cuts.append(raw[at : at + length])
                at += length
            found.append(cuts)
        else:
            total = each * count
            array: np.ndarray[Any, Any]
            if count == 1:
                array = np.ndarray(shape, dtype, source, begin)
                found.append((array if shared else array.copy(),))
            else:
                array = np.ndarray((count, *shape), dtype, source, begin)
                if not shared:
                    array = array.copy()
                found.append(list(array) if shape else [array[row, ...] for row in range(count)])
        begin = aligned(begin + total) if shared else begin + total
    batch.columns = found


def rows(batch: Batch, source: Any, begin: int, size: int, lengths: Sequence[int], bases: list[Any]) -> None:
    """Cut data that lie request by request, whose forms differ."""
    shared = type(source) is not bytes
    if shared and size:
        source = np.frombuffer(source, np.uint8, begin + size)
        bases.append(source)
    found = []
    told = iter(lengths)
    for form in batch.forms:
        row: list[Any] = []
        for _, kind, dtype, shape, each in form.inputs:
            if kind == BYTES:
                total = next(told)
                row.append(memoryview(bytes(source[begin : begin + total])))
            else:
                total = each
                array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, source, begin)
                row.append(array if shared else array.copy())
            begin = aligned(begin + total) if shared else begin + total
        found.append(row)
    batch.rows = found


def _references(bases: list[Any]) -> int:
    """How often the most wanted of `bases` is referred to, by whatever holds a view of it."""
    most = 0
    for base in bases:
        most = max(most, sys.getrefcount(base))
    return most
