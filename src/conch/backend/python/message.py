"""From a batch of requests to the packet that a worker gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from conch.backend.python.channel import (
    DATA_IN_AREA,
    EXECUTE,
    EXECUTE_HEAD,
    INLINE,
    META_IN_AREA,
    UNIFORM,
    Area,
    aligned,
)
from conch.types.model import ModelSpec
from conch.types.request import InferRequest, RequestForm
from conch.types.tensor import Buffer

#: So many forms are known to a worker by number; the oldest is forgotten for a new one.
FORMS = 256
#: From this size on, a tensor is copied straight to where it belongs.
_BIG = 65_536
_encode = msgspec.json.Encoder().encode


class Messages:
    """Encodes batches for one worker; remembers the forms that it has been told."""

    def __init__(self, spec: ModelSpec, area: Area) -> None:
        self.area = area
        self._spec = spec
        self._every_output = tuple(output.name for output in spec.outputs)
        self._forms: dict[RequestForm, int] = {}
        #: Bytes of one request of a form, -1 where they vary.
        self._sizes: dict[int, int] = {}

    def batch(self, requests: Sequence[InferRequest], sequence: int, flags: int) -> bytes:
        """The packet, with these `flags` and others; what it does not hold lies in the area afterwards.

        Raises OSError when memory runs out.
        """
        form = requests[0].form
        count = len(requests)
        number = self._forms.get(form, -1)
        ids = traced = False
        for request in requests:
            if request.form is not form:
                return self._mixed(requests, sequence, flags)
            if request.id:
                ids = True
            if request.trace is not None:
                traced = True
        if number >= 0 and not ids and not traced:
            size = self._sizes[number] * count
            if 0 <= size <= INLINE:
                head = EXECUTE_HEAD.pack(EXECUTE, UNIFORM | flags, sequence, count, number, 0, size)
                if len(form.sizes) == 1:
                    return b"".join([head, *[request.data[0] for request in requests]])
                return b"".join([head, *_by_input(requests)])
        new: list[Any] = []
        if number < 0:
            number = self._tell(form, new)
        lengths = []
        if form.has_bytes:
            for index, size in enumerate(form.sizes):
                if size < 0:
                    lengths += [len(request.data[index]) for request in requests]
        meta = b""
        if new or ids or lengths or traced:
            names = [request.id for request in requests] if ids else None
            traces = _contexts(requests) if traced else None
            meta = _encode({"forms": new, "ids": names, "lengths": lengths, "numbers": (), "traces": traces})
        columns = [[request.data[index] for request in requests] for index in range(len(form.sizes))]
        return self._lay(UNIFORM | flags, sequence, count, number, meta, columns)

    def _mixed(self, requests: Sequence[InferRequest], sequence: int, flags: int) -> bytes:
        new: list[Any] = []
        numbers: list[int] = []
        lengths: list[int] = []
        chunks: list[list[Buffer]] = []
        for request in requests:
            numbers.append(self._tell(request.form, new, keep=requests))
            for chunk, size in zip(request.data, request.form.sizes, strict=True):
                if size < 0:
                    lengths.append(len(chunk))
                chunks.append([chunk])
        ids = [request.id for request in requests]
        names = ids if any(ids) else None
        traces = _contexts(requests)
        meta = _encode({"forms": new, "ids": names, "lengths": lengths, "numbers": numbers, "traces": traces})
        return self._lay(flags, sequence, len(requests), 0, meta, chunks)

    def _lay(
        self,
        flags: int,
        sequence: int,
        count: int,
        number: int,
        meta: bytes,
        columns: Sequence[Sequence[Buffer]],
    ) -> bytes:
        """Put meta and data into the packet or the area. Each column begins at an aligned place in an area."""
        meta_size = len(meta)
        size = sum([len(chunk) for column in columns for chunk in column])
        if meta_size + size <= INLINE:
            head = EXECUTE_HEAD.pack(EXECUTE, flags, sequence, count, number, meta_size, size)
            return b"".join([head, meta, *[chunk for column in columns for chunk in column]])
        begin = 0
        if meta_size > INLINE:
            flags |= META_IN_AREA
            begin = aligned(meta_size)
        size = 0
        for column in columns:
            size = aligned(size + sum([len(chunk) for chunk in column]))
        view = self.area.reserve(begin + size)
        if begin:
            view[:meta_size] = meta
            meta = b""
        _write(columns, view, begin)
        return EXECUTE_HEAD.pack(EXECUTE, flags | DATA_IN_AREA, sequence, count, number, meta_size, size) + meta

    def _tell(self, form: RequestForm, new: list[Any], keep: Sequence[InferRequest] = ()) -> int:
        """The number of `form`, which is added to `new` when it is not known; forms of `keep` are not forgotten."""
        forms = self._forms
        known = forms.get(form)
        if known is not None:
            return known
        number = len(forms)
        if number >= FORMS:
            kept = {request.form for request in keep}
            oldest = next((each for each in forms if each not in kept), None)
            # A batch of more forms than are remembered: beyond the limit, numbers go up to the size of a batch.
            number = forms.pop(oldest) if oldest is not None else number
        forms[form] = number
        self._sizes[number] = -1 if form.has_bytes or not form.sizes else sum(form.sizes)
        new.append((number, self._describe(form)))
        return number

    def _describe(self, form: RequestForm) -> dict[str, Any]:
        inputs = [self._spec.inputs[position] for position in form.inputs]
        return {
            "inputs": [
                (spec.name, spec.datatype.number, shape)
                for spec, shape in zip(inputs, form.backend_shapes, strict=True)
            ],
            "outputs": self._every_output if form.outputs is None else form.outputs,
            # Not finite numbers are no JSON to msgspec; the worker reads with Python's own module, which takes them.
            "parameters": msgspec.Raw(json.dumps(form.parameters or {}).encode()),
            "timeout": form.timeout_us,
            "correlation_id": form.correlation_id,
            "flags": form.flags,
        }


def _contexts(requests: Sequence[InferRequest]) -> list[str | None] | None:
    """For each request the context of its trace as JSON, None where it is not traced; None if none is."""
    if all(request.trace is None for request in requests):
        return None
    return [None if request.trace is None else _context(request.trace.context) for request in requests]


def _context(traceparent: str) -> str:
    return _encode({"traceparent": traceparent}).decode() if traceparent else ""


def _by_input(requests: Sequence[InferRequest]) -> list[Buffer]:
    return [chunk for column in zip(*[request.data for request in requests], strict=True) for chunk in column]


def _write(columns: Sequence[Sequence[Buffer]], view: memoryview, position: int) -> None:
    for column in columns:
        if len(column) > 1 and len(column[0]) < _BIG:
            column = (b"".join(column),)
        for chunk in column:
            end = position + len(chunk)
            view[position:end] = chunk
            position = end
        position = aligned(position)
