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

#: So many kinds of form are known to a worker by number; the oldest is forgotten for a new one.
FORMS = 256
#: So many forms are remembered with their kinds.
SEEN = 1024
#: From this size on, a tensor is copied straight to where it belongs.
_BIG = 65_536
_encode = msgspec.json.Encoder().encode
_Kind = tuple[Any, ...]


class Messages:
    """Encodes batches for one worker; remembers the forms that it has been told.

    Forms that differ in nothing but the sequence that they belong to are one to the worker: it is told of sequences
    request by request. So a batch of many sequences is as uniform as another.
    """

    def __init__(self, spec: ModelSpec, area: Area) -> None:
        self.area = area
        self._spec = spec
        self._every_output = tuple(output.name for output in spec.outputs)
        #: What the worker knows by number.
        self._kinds: dict[_Kind, int] = {}
        #: Bytes of one request of a kind, -1 where they vary.
        self._sizes: dict[int, int] = {}
        #: The kinds of forms that were seen lately.
        self._forms: dict[RequestForm, int] = {}
        #: Forms of older generations are made no more.
        self._generation = 0

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
        steered = form.correlation_id != 0 or form.flags != 0
        if number >= 0 and not ids and not traced and not steered:
            size = self._sizes[number] * count
            if 0 <= size <= INLINE:
                head = EXECUTE_HEAD.pack(EXECUTE, UNIFORM | flags, sequence, count, number, 0, size)
                if len(form.sizes) == 1:
                    return b"".join([head, *[request.data[0] for request in requests]])
                return b"".join([head, *_by_input(requests)])
        new: list[Any] = []
        if number < 0:
            number = self._tell(form, new)
        meta = b""
        if new or ids or form.has_bytes or traced or steered:
            meta = _meta(requests, new)
        return self._lay(UNIFORM | flags, sequence, count, number, meta, _columns(requests))

    def _mixed(self, requests: Sequence[InferRequest], sequence: int, flags: int) -> bytes:
        """Of several forms, which may be one to the worker."""
        new: list[Any] = []
        numbers = [self._tell(request.form, new, keep=requests) for request in requests]
        count, number = len(requests), numbers[0]
        if numbers.count(number) == count:
            return self._lay(UNIFORM | flags, sequence, count, number, _meta(requests, new), _columns(requests))
        chunks = [[chunk] for request in requests for chunk in request.data]
        return self._lay(flags, sequence, count, 0, _meta(requests, new, numbers), chunks)

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
        """The number of `form`'s kind, added to `new` when it is not known; those of `keep` are not forgotten."""
        number = self._forms.get(form)
        if number is not None:
            return number
        kind = _kind(form)
        number = self._kinds.get(kind)
        if number is None:
            number = self._number(keep)
            self._kinds[kind] = number
            self._sizes[number] = -1 if form.has_bytes or not form.sizes else sum(form.sizes)
            new.append((number, self._describe(form)))
        if form.generation > self._generation or len(self._forms) >= SEEN:
            self._generation = max(form.generation, self._generation)
            self._forms.clear()
        self._forms[form] = number
        return number

    def _number(self, keep: Sequence[InferRequest]) -> int:
        """A number for a new kind, which may be that of the oldest."""
        if len(self._kinds) < FORMS:
            return len(self._kinds)
        kept = {_kind(request.form) for request in keep}
        oldest = next((each for each in self._kinds if each not in kept), None)
        if oldest is None:
            # A batch of more kinds than are remembered: beyond the limit, numbers go up to the size of a batch.
            return len(self._kinds)
        self._forms.clear()
        return self._kinds.pop(oldest)

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
        }


def _kind(form: RequestForm) -> _Kind:
    """What the worker is told of a form: equal for forms that are one to it."""
    parameters = json.dumps(form.parameters) if form.parameters else ""
    return form.inputs, form.backend_shapes, form.sizes, form.outputs, parameters, form.timeout_us


def _meta(requests: Sequence[InferRequest], new: list[Any], numbers: Sequence[int] = ()) -> bytes:
    """What is to be said beside the data; `numbers` are the kinds of the requests where they differ."""
    ids = [request.id for request in requests]
    steering = [(request.form.correlation_id, request.form.flags) for request in requests]
    by_request = [(request, index) for request in requests for index in range(len(request.data))]
    if not numbers:
        by_request = [(request, index) for index in range(len(requests[0].data)) for request in requests]
    return _encode(
        {
            "forms": new,
            "ids": ids if any(ids) else None,
            "lengths": [len(request.data[index]) for request, index in by_request if request.form.sizes[index] < 0],
            "numbers": numbers,
            "steering": steering if any(name != 0 or flags for name, flags in steering) else None,
            "traces": _contexts(requests),
        }
    )


def _columns(requests: Sequence[InferRequest]) -> list[list[Buffer]]:
    """Input by input."""
    return [[request.data[index] for request in requests] for index in range(len(requests[0].data))]


def _contexts(requests: Sequence[InferRequest]) -> list[str | None] | None:
    """For each request the context of its trace as JSON, None where it is not traced; None if none is."""
    if all(request.trace is None for request in requests):
        return None
    return [None if request.trace is None else _context(request.trace) for request in requests]


def _context(trace: Any) -> str:
    if not trace.context:
        return ""
    state = {"tracestate": trace.state} if trace.state else {}
    return _encode({"traceparent": trace.context, **state}).decode()


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
