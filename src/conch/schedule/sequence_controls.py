"""What an instance is given for a request of a sequence: the client's inputs, then controls, then states."""

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from dataclasses import dataclass, replace
from typing import Any, Final

from conch.config.sequence_tensors import CORRID, END, READY, Control, SequenceTensors
from conch.observe.row_stats import EMPTY
from conch.schedule import sequence_life as life
from conch.schedule.sequence_life import Sequence
from conch.schedule.sequence_state import States, Value
from conch.types.dtype import BYTES
from conch.types.model import ModelSpec
from conch.types.request import InferRequest, RequestForm, Reschedule, ResponseSink
from conch.types.response import InferResponse
from conch.types.tensor import Buffer

_MEMO: Final = "sequence"
#: Shapes of states that grow are used once or rarely: so many are remembered with a form.
_SHAPES: Final = 32


class SequencedRequest(InferRequest):
    """A request as an instance gets it. `client` is the client's own; without one it fills a row nobody asked for."""

    __slots__ = ("before", "client", "sequence")

    def __init__(self, form: RequestForm, id: str, data: tuple[Buffer, ...], sink: ResponseSink, at: int) -> None:
        super().__init__(form, id, data, sink, at)
        self.client: InferRequest | None = None
        self.sequence: Sequence | None = None
        #: The states that it was given.
        self.before: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Dress:
    """A form with the hidden tensors, and the bytes of its controls."""

    form: RequestForm
    controls: tuple[Buffer, ...]


class Controls:
    """Makes `SequencedRequest`s. Forms are made once per client's form (and shapes of states), not per request."""

    def __init__(self, spec: ModelSpec, tensors: SequenceTensors, reschedule: Reschedule | None = None) -> None:
        """`spec` is what the client sees."""
        self._controls = tensors.controls
        self._batching = spec.max_batch_size > 0
        self.states = States.of(tensors.states, batching=self._batching)
        self._outputs = tuple([output.name for output in spec.outputs])
        first = len(spec.inputs)
        self._places = tuple(range(first, first + len(tensors.controls) + len(tensors.states)))
        #: Bytes of one element; one of BYTES that is empty has four.
        self._state_widths = tuple([state.datatype.size or 4 for state in tensors.states])
        self._corrid = next((each for each in tensors.controls if each.kind == CORRID), None)
        self._iterative = reschedule is not None
        self._reschedule = reschedule

    def request(self, sequence: Sequence, sink: ResponseSink) -> SequencedRequest:
        """What the instance gets for the running request of `sequence`."""
        client = sequence.running
        assert client is not None
        form = client.form
        flags = form.flags
        if self._iterative:
            flags = 0 if sequence.resumed else life.START
        if flags & life.START:
            # At once: if this request fails, the next one must not see what was before.
            sequence.state = None
        values = self.states.now(sequence, flags) if self.states.states else ()
        shapes = self.states.shapes(values)
        if self._iterative:
            # Each sequence has an id of its own, which no other request of the form shares.
            dress = self._dress(form, sequence.id, flags, values, ready=True)
        else:
            memo = form.memo.get(_MEMO)
            if memo is None:
                memo = form.memo[_MEMO] = {}
            known: Dress | None = memo.get(shapes)
            if known is None:
                if len(memo) >= _SHAPES:
                    memo.clear()
                known = memo[shapes] = self._dress(form, sequence.id, flags, values, ready=True)
            dress = known
        data = client.data + dress.controls
        if values:
            data += tuple([value for _, value in values])
        made = SequencedRequest(dress.form, client.id, data, sink, client.received_ns)
        made.client, made.sequence, made.before = client, sequence, values
        made.queued_ns = client.queued_ns
        made.expires_ns = client.expires_ns
        made.flow, made.trace, made.meter = client.flow, client.trace, client.meter
        made.cancelled = client.cancelled
        sequence.run = made
        return made

    def empty(self, like: SequencedRequest, sink: ResponseSink) -> SequencedRequest:
        """A row that nobody asked for, of the shapes of `like`: not ready, of no sequence, all zero."""
        assert like.client is not None
        form = like.client.form
        key = ("empty", self.states.shapes(like.before))
        memo = form.memo.setdefault(_MEMO, {})
        found = memo.get(key)
        if found is None:
            if len(memo) >= _SHAPES:
                memo.clear()
            nobody = "" if self._corrid is not None and self._corrid.datatype is BYTES else 0
            dress = self._dress(form, nobody, 0, like.before, ready=False)
            # An element of BYTES that is empty is four zero bytes.
            zeros = [bytes(size if size >= 0 else 4 * count)
                     for size, count in zip(form.sizes, form.counts, strict=True)]  # fmt: skip
            states = [bytes(size * math.prod(shape))
                      for (shape, _), size in zip(like.before, self._state_widths, strict=False)]  # fmt: skip
            found = memo[key] = Dress(dress.form, (*zeros, *dress.controls, *states))
        made = SequencedRequest(found.form, "", found.controls, sink, like.received_ns)
        made.queued_ns = like.queued_ns
        return made

    def answer(self, request: SequencedRequest, response: InferResponse) -> InferResponse:
        """What the client gets of `response`; the states in it are kept."""
        if not self.states.states or not response.outputs:
            return response
        assert request.sequence is not None
        assert request.client is not None
        self.states.keep(request.sequence, request.before, response.outputs)
        return self.states.without(response, request.client.form.outputs or self._outputs)

    def _dress(self, form: RequestForm, id: int | str, flags: int, values: Row[Value], *, ready: bool) -> Dress:
        chunks = tuple([self._bytes(control, id, flags, ready) for control in self._controls])
        shape = (1, 1) if self._batching else (1,)
        shapes = (shape,) * len(chunks) + tuple([shape for shape, _ in values])
        sizes = [-1 if control.datatype is BYTES else len(chunk)
                 for control, chunk in zip(self._controls, chunks, strict=True)]  # fmt: skip
        counts = [1] * len(chunks)
        for state, (state_shape, value) in zip(self.states.states, values, strict=True):
            sizes.append(-1 if state.datatype is BYTES else len(value))
            counts.append(math.prod(state_shape))
        outputs = form.outputs
        if self.states.states:
            wanted = outputs or self._outputs
            outputs = (*wanted, *sorted(self.states.names.difference(wanted)))
        steering: dict[str, Any] = {"sequence_id": id, "sequence_start": bool(flags & life.START),
                                    "sequence_end": bool(flags & life.END)}  # fmt: skip
        derived = replace(
            form,
            head=replace(form.head, parameters={**form.head.parameters, **steering}),
            inputs=form.inputs + self._places,
            order=form.order + tuple(range(len(form.order), len(form.order) + len(self._places))),
            shapes=form.shapes + shapes,
            backend_shapes=form.backend_shapes + shapes,
            sizes=form.sizes + tuple(sizes),
            counts=form.counts + tuple(counts),
            outputs=outputs,
            model=form.model if ready else EMPTY,
            correlation_id=id,
            flags=flags,
            has_bytes=form.has_bytes or any(size < 0 for size in sizes),
            reschedule=self._reschedule,
            memo={},
        )
        return Dress(derived, chunks)

    def _bytes(self, control: Control, id: int | str, flags: int, ready: bool) -> bytes:
        if control.kind == CORRID:
            if control.datatype is BYTES:
                text = str(id).encode()
                return len(text).to_bytes(4, "little") + text
            # Smaller types keep the low bits.
            size = control.datatype.size
            return (int(id) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if control.kind == READY:
            return control.true if ready else control.false
        return control.true if flags & (life.END if control.kind == END else life.START) else control.false
