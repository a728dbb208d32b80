"""From a worker's answer to a batch to the requests' responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from conch.backend.python.channel import DATA_IN_AREA, DONE_HEAD, META_IN_AREA, UNIFORM, Area, aligned
from conch.backend.python.lending import Lending
from conch.types.dtype import BY_NUMBER, BYTES, DataType
from conch.types.error import Code, InferError, internal
from conch.types.model import ModelSpec, carry_shape
from conch.types.request import InferRequest, Parameter
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor

_CODES = (
    Code.UNKNOWN, Code.INTERNAL, Code.NOT_FOUND, Code.INVALID_ARG, Code.UNAVAILABLE, Code.UNSUPPORTED,
    Code.ALREADY_EXISTS, Code.CANCELLED,
)  # fmt: skip
_HEAD = DONE_HEAD.size
#: Up to this size, a copy of an output is cheaper than a view of it.
_SMALL = 1024


class Entry(msgspec.Struct):
    """One response in full. `error` is a code's number and a text."""

    outputs: list[tuple[str, int, tuple[int, ...], int]] = []
    parameters: dict[str, Parameter] | None = None
    error: tuple[int, str] | None = None
    #: Instead of a response: the request is to be run again in a later batch.
    again: bool = False


class Again:
    """What becomes of a request that its model has released to be run again."""


AGAIN = Again()


class Line(msgspec.Struct, array_like=True):
    """One response of a decoupled model; without outputs and extras it only ends the request."""

    key: int
    final: bool
    outputs: list[tuple[str, int, tuple[int, ...], int]] | None
    #: An `Entry` without outputs, as JSON; empty for none.
    extras: str


class Sent:
    """A `Line` and its contents. `outcome` None: no response, the request ends. `size` is that of the contents."""

    __slots__ = ("final", "key", "outcome", "size")

    def __init__(self, key: int, final: bool, outcome: InferResponse | InferError | None, size: int) -> None:
        self.key = key
        self.final = final
        self.outcome = outcome
        self.size = size


class Meta(msgspec.Struct):
    """What a DONE message says besides its head: a layout that is new, lengths of BYTES, or entries, or an error."""

    layout: list[tuple[str, int, tuple[int, ...]]] | None = None
    lengths: list[int] = []
    entries: list[Entry | None] = []
    error: str | None = None
    #: Of a decoupled model: the requests that are to be run again, by index.
    again: list[int] = []


#: An output that each response of a uniform batch has: name, type, the client's shape, bytes (-1: they vary).
Column = tuple[str, DataType, tuple[int, ...], int]
#: What became of each request; None: answered elsewhere.
Outcome = InferResponse | InferError | Again | None

_decode_meta = msgspec.json.Decoder(Meta).decode
_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_lines = msgspec.json.Decoder(list[Line]).decode


class Failure(Exception):  # noqa: N818  it is the model's, not the worker's
    """The model failed as a whole; the text is the worker's."""


class Replies:
    """Decodes one worker's answers; remembers the layouts that it has told."""

    def __init__(self, spec: ModelSpec, areas: Sequence[Area]) -> None:
        self.outputs = Lending(areas)
        self._batching = spec.max_batch_size > 0
        self._reshaped = {
            output.name: (output.reshape, output.dims) for output in spec.outputs if output.reshape is not None
        }
        self._layouts: dict[int, tuple[Column, ...]] = {}

    def settle(self, packet: bytes, head: Sequence[int], requests: Sequence[InferRequest]) -> list[Outcome] | None:
        """Answer the requests of a uniform DONE, or give what became of each. Raises Failure."""
        _, flags, _, _, number, meta_size, size, _, _ = head
        meta = None
        begin = _HEAD
        if meta_size:
            if flags & META_IN_AREA:
                meta = _decode_meta(bytes(self.outputs.view(meta_size)[:meta_size]))
            else:
                begin += meta_size
                meta = _decode_meta(packet[_HEAD:begin])
            if meta.error is not None:
                raise Failure(meta.error)
        data: Buffer = packet
        if flags & DATA_IN_AREA:
            begin = aligned(meta_size) if flags & META_IN_AREA else 0
            data = self.outputs.take(begin, begin + size)
            begin = 0
        if not flags & UNIFORM:
            assert meta is not None
            return self._entries(meta.entries, data, begin)
        if meta is not None and meta.layout is not None:
            self._layouts[number] = tuple(self._column(*column) for column in meta.layout)
        layout = self._layouts[number]
        if len(layout) == 1 and layout[0][3] >= 0:
            _single(layout[0], requests, data, begin)
        else:
            _several(layout, requests, data, begin, meta.lengths if meta is not None else ())
        return None

    def check(self, packet: bytes, head: Sequence[int]) -> Sequence[int]:
        """The DONE of a decoupled model, which holds no answers: which requests are to be run again. Raises Failure."""
        flags, meta_size = head[1], head[5]
        if meta_size:
            raw = self.outputs.view(meta_size) if flags & META_IN_AREA else memoryview(packet)[_HEAD:]
            meta = _decode_meta(bytes(raw[:meta_size]))
            if meta.error is not None:
                raise Failure(meta.error)
            return meta.again
        return ()

    def lines(self, meta: bytes, data: Buffer) -> list[Sent]:
        """The responses in a packet of a decoupled model."""
        view = memoryview(data)
        position = 0
        found = []
        for line in _decode_lines(meta):
            begin = position
            tensors = []
            for name, kind, shape, size in line.outputs or ():
                end = position + size
                content = bytes(view[position:end]) if size <= _SMALL else view[position:end]
                tensors.append(Tensor(name, BY_NUMBER[kind], self._shape(name, shape), content))
                position = end
            outcome: InferResponse | InferError | None = None
            if line.extras:
                outcome = self._with_extras(tensors, line.extras)
            elif line.outputs is not None:
                outcome = InferResponse(tensors)
            found.append(Sent(line.key, line.final, outcome, position - begin))
        return found

    def _with_extras(self, tensors: list[Tensor], extras: str) -> InferResponse | InferError:
        try:
            entry = _decode_entry(extras)
            if entry.error is not None:
                code, message = entry.error
                return InferError(_CODES[code], message)
        except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
            return internal(f"The response's parameters cannot be read: {failure!r}")
        return InferResponse(tensors, entry.parameters or None)

    def entry(self, meta: bytes, data: bytes) -> Outcome:
        """What became of a request that was answered on its own."""
        return self._entries([_decode_entry(meta)], data, 0)[0]

    def _entries(self, entries: Sequence[Entry | None], data: Buffer, position: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        view = memoryview(data)
        for entry in entries:
            if entry is None:
                outcomes.append(None)
            elif entry.again:
                outcomes.append(AGAIN)
            elif entry.error is not None:
                code, message = entry.error
                outcomes.append(InferError(_CODES[code], message))
            else:
                tensors = []
                for name, kind, shape, size in entry.outputs:
                    end = position + size
                    tensors.append(Tensor(name, BY_NUMBER[kind], self._shape(name, shape), view[position:end]))
                    position = end
                outcomes.append(InferResponse(tensors, entry.parameters or None))
        return outcomes

    def _column(self, name: str, kind: int, shape: tuple[int, ...]) -> Column:
        datatype = BY_NUMBER[kind]
        size = datatype.size
        for length in shape:
            size *= length
        return name, datatype, self._shape(name, shape), -1 if datatype is BYTES else size

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The client's shape. A shape that does not match the config's `reshape` is shown as the model gave it."""
        reshaped = self._reshaped.get(name)
        if reshaped is None:
            return shape
        lead, rest = (shape[:1], shape[1:]) if self._batching else ((), shape)
        try:
            return lead + carry_shape(rest, *_ordered(reshaped))
        except (ValueError, StopIteration):
            return shape


def _ordered(reshaped: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    reshape, dims = reshaped
    return reshape, dims


def _single(column: Column, requests: Sequence[InferRequest], data: Buffer, begin: int) -> None:
    name, datatype, shape, size = column
    if size > _SMALL:
        data = memoryview(data)
    for request in requests:
        end = begin + size
        request.sink.reply(request, InferResponse((Tensor(name, datatype, shape, data[begin:end]),)), True)
        begin = end


def _several(
    layout: Sequence[Column], requests: Sequence[InferRequest], data: Buffer, begin: int, lengths: Sequence[int]
) -> None:
    view = memoryview(data)
    rows: list[list[Tensor]] = [[] for _ in requests]
    told = iter(lengths)
    for name, datatype, shape, size in layout:
        for row in rows:
            end = begin + (size if size >= 0 else next(told))
            row.append(Tensor(name, datatype, shape, view[begin:end]))
            begin = end
    for request, row in zip(requests, rows, strict=True):
        request.sink.reply(request, InferResponse(row), True)
