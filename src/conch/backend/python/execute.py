"""One execution in the worker: from the server's packet to requests, to the model, and to the packet that answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from conch.backend.python.answers import Answers, Reply, check, check_released, refusal
from conch.backend.python.bls import Caller, current_batch
from conch.backend.python.calls import Calls
from conch.backend.python.channel import (
    AWAKE,
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
from conch.backend.python.coroutines import Coroutines
from conch.backend.python.errors import words
from conch.backend.python.request import Batch, Form, incoming
from conch.backend.python.stream import Stream
from conch.backend.python.unpack import columns, references, rows

_HEAD = EXECUTE_HEAD.size
_READY_SECONDS = 5.0
_now = time.monotonic_ns


class Executor:
    """Runs the model. `execute` takes an EXECUTE packet and gives the DONE packet; it raises nothing the model did."""

    def __init__(
        self,
        model: Any,
        instance: str,
        calls: Calls,
        inputs: Area,
        outputs: Sequence[Area],
        caller: Caller,
        *,
        decoupled: bool = False,
        limit: int = 0,
    ) -> None:
        """`limit`: so many batches of coroutines run side by side (0: no limit); for decoupled models, and others whose
        batches overlap, which answer through `calls.outbox` too."""
        self._model = model
        #: The next batch may come at once.
        self.awake = False
        self._run = model.execute
        self._instance = instance
        self._calls = calls
        self._inputs = inputs
        self._outputs = outputs
        self._forms: dict[int, Form] = {}
        self._answers = Answers()
        self._decoupled = decoupled
        self._caller = caller
        self._coroutines = Coroutines(limit)
        self._unused = references([np.zeros(1)])

    def execute(self, packet: bytes) -> bytes:
        _, flags, sequence, count, number, meta_size, size = EXECUTE_HEAD.unpack_from(packet)
        calls = self._calls
        calls.verbose = flags & VERBOSE != 0
        self.awake = flags & AWAKE != 0
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
        batch = Batch(calls, sequence)
        if meta:
            batch.ids, batch.steering, batch.traces = meta["ids"], meta["steering"], meta["traces"]
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
        flags, tail = self._lay(reply, self._outputs[flags >> OUTPUTS_SHIFT & 3])
        # From here on, whoever holds a view of the inputs is the model.
        reply.parts = ()
        del batch
        if bases and references(bases) > self._unused:
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
                result = self._coroutines.finish(asyncio.wait_for(result, _READY_SECONDS))
        except BaseException as error:  # noqa: BLE001  whatever the model's code raises
            self._calls.log(2, "model.py", 0, f"is_ready of '{self._instance}' failed: {words(error)}")
            return False
        return result is True

    def _answer(self, batch: Batch, count: int) -> tuple[Reply, int]:
        """In a frame of its own: when it returns, nothing of the batch is left but what the model keeps."""
        self._caller.batch = batch.sequence
        try:
            result = self._run(incoming(batch, count))
            if type(result) is not list and inspect.isawaitable(result):
                result = self._coroutines.finish(result)
            output_start = _now()
            text = check(result, count) if type(result) is not list or len(result) != count else ""
            if batch.released and not text:
                text = check_released(result, batch.released)
            if not text:
                try:
                    return self._answers.gather(result, batch), output_start
                except AttributeError:
                    text = check(result, count)
                    if not text:
                        raise
        except BaseException as error:  # noqa: BLE001  whatever the model's code raises, CancelledError too
            output_start = _now()
            text = words(error)
        return refusal(self._failure(text)), output_start

    def _stream(self, batch: Batch, count: int) -> tuple[Reply, int]:
        """Of a decoupled model, or one whose batches overlap: the answers go their own way, this reply says that the
        next batch may come."""
        outbox = self._calls.outbox
        assert outbox is not None
        streams = batch.open(count, single=not self._decoupled)
        text = ""
        awaitable: Any = None
        token = current_batch.set(batch.sequence)
        try:
            result = self._run(incoming(batch, count))
            if result is not None and inspect.isawaitable(result):
                awaitable = result
            elif result is not None or not self._decoupled:
                text = self._unexpected(result)
        except BaseException as error:  # noqa: BLE001  whatever the model's code raises, CancelledError too
            text = words(error)
        finally:
            current_batch.reset(token)
        output_start = _now()
        # What was sent before comes first.
        outbox.flush()
        if awaitable is not None:
            self._coroutines.start(awaitable, streams, self)
        if not text:
            again = [index for index in sorted(batch.released or ()) if streams[index].release()]
            return Reply(0, 0, {"again": again} if again else {}, (), 0), output_start
        for stream in streams:
            stream.closed = True
        return refusal(self._failure(text)), output_start

    def _unexpected(self, result: Any) -> str:
        if self._decoupled:
            return (
                f"Python model '{self._instance}' is using the decoupled mode and the execute function must return "
                "None."
            )
        return f"execute of a model whose batches overlap must be a coroutine function, it returned {type(result)}"

    def deliver(self, result: Any, streams: Sequence[Stream]) -> str:
        """What a coroutine has returned, to those who wait for it; what is wrong with it."""
        if self._decoupled:
            return "" if result is None else "the execute function of a decoupled model must return None."
        text = check(result, len(streams))
        if text:
            return text
        for response, stream in zip(result, streams):  # noqa: B905  Python 3.9 has no `strict`
            if response is not None and not stream.closed:
                stream.send(response, True)
        return ""

    def fail(self, text: str, streams: Sequence[Stream]) -> None:
        """A coroutine has failed, or what it returned is wrong."""
        text = self._failure(text)
        self._calls.log(2, "model.py", 0, text)
        if not self._decoupled:
            text = f"Failed to process the request(s) for model instance '{self._instance}', message: {text}"
        for stream in streams:
            stream.fail(text)

    def _failure(self, text: str) -> str:
        return f"Failed to process the request(s) for model '{self._instance}', message: {text}"

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
            # The server does not hear of a layout that is new with this reply.
            self._answers = Answers()
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
