"""`pb_utils.InferenceRequest`, and the batch that incoming ones belong to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from conch.backend.python.calls import Calls, Cancellation, runtime
from conch.backend.python.errors import TritonModelException
from conch.backend.python.own import check_numbers, check_own
from conch.backend.python.response import InferenceResponseSender, Turn
from conch.backend.python.stream import Single, Stream
from conch.backend.python.tensor import BYTES, NUMPY, Tensor, bytes_input, input_tensor, text

RELEASE_ALL, RELEASE_RESCHEDULE = 1, 2
_new_tensor = Tensor.__new__
_DTYPES = {**NUMPY, 14: NUMPY[3]}


class Form:
    """What requests that differ in id, sequence and bytes alone have in common. Told once, then known by number."""

    __slots__ = ("_json", "inputs", "parameters", "timeout", "wanted")

    def __init__(self, described: dict[str, Any]) -> None:
        #: Name, number of the data type, numpy type, shape and size in bytes (BYTES: -1) of each input.
        self.inputs = []
        for name, kind, shape in described["inputs"]:
            size = -1 if kind == BYTES else _DTYPES[kind].itemsize
            for length in shape:
                size = -1 if kind == BYTES else size * length
            self.inputs.append((name, kind, _DTYPES[kind], tuple(shape), size))
        self.wanted = frozenset(described["outputs"])
        self.parameters = described["parameters"]
        self.timeout = described["timeout"]
        self._json = ""

    def parameters_json(self) -> str:
        if not self._json:
            self._json = json.dumps(self.parameters, ensure_ascii=False, separators=(",", ":"))
        return self._json


class Batch:
    """The requests of one execution. `columns[i][r]` is input i of request r: an array, or the wire bytes of BYTES.

    `forms` has one form per request, `form` is it where all have the same. With forms of their own the requests'
    inputs are in `rows[r]` instead.
    """

    __slots__ = (
        "__weakref__", "calls", "columns", "form", "forms", "ids", "released", "rows", "sequence", "steering",
        "streams", "traces", "turns",
    )  # fmt: skip

    def __init__(self, calls: Calls, sequence: int) -> None:
        self.calls = calls
        self.sequence = sequence
        #: None where no request has one.
        self.ids: Sequence[str] | None = None
        #: For each request the sequence it belongs to and its flags; None where none belongs to any.
        self.steering: Sequence[tuple[int | str, int]] | None = None
        #: For each request the context of its trace, None for one that is not traced; None if none is.
        self.traces: Sequence[str | None] | None = None
        #: The requests that the model has released to be run again, by index; None for none.
        self.released: set[int] | None = None
        self.form: Form | None = None
        self.forms: Sequence[Form] = ()
        self.columns: Sequence[Sequence[Any]] = ()
        self.rows: Sequence[Sequence[Any]] = ()
        #: For each request that gave out a response sender, by index.
        self.turns: dict[int, Turn] | None = None
        #: Of a decoupled model: the open end of each request.
        self.streams: list[Stream] | None = None

    def inputs(self, index: int) -> list[Tensor]:
        form = self.form
        if form is None:
            form = self.forms[index]
            values = self.rows[index]
        else:
            inputs = form.inputs
            if len(inputs) == 1 and inputs[0][1] != BYTES:
                # The common case, made here as `input_tensor` would.
                tensor = _new_tensor(Tensor)
                tensor._name, tensor._kind, _, _, _ = inputs[0]
                tensor._array = self.columns[0][index]
                return [tensor]
            values = [column[index] for column in self.columns]
        return [
            input_tensor(name, kind, value) if kind != BYTES else bytes_input(name, value, shape)
            for (name, kind, _, shape, _), value in zip(form.inputs, values)  # noqa: B905  equal by construction
        ]

    def open(self, count: int, *, single: bool) -> list[Stream]:
        """Each of the `count` requests gets an open end, that takes one response if `single`."""
        kind = Single if single else Stream
        calls, sequence = self.calls, self.sequence
        outbox = calls.outbox
        assert outbox is not None
        self.streams = [
            kind(calls, outbox, sequence, index, (self.form or self.forms[index]).wanted) for index in range(count)
        ]
        return self.streams

    def turned(self, index: int) -> Turn | Stream | None:
        """Whose turn it is to answer; None for what `execute` returns."""
        if self.streams is not None:
            return self.streams[index]
        return None if self.turns is None else self.turns.get(index)

    def turn(self, index: int) -> Turn | Stream:
        if self.streams is not None:
            return self.streams[index]
        if self.turns is None:
            self.turns = {}
        turn = self.turns.get(index)
        if turn is None:
            turn = self.turns[index] = Turn(self.calls, self.sequence, index, (self.form or self.forms[index]).wanted)
        return turn


class InferenceRequest:
    """A request that the model is asked to answer, or one of its own making (for a call to another model)."""

    __slots__ = ("__weakref__", "_batch", "_cancellation", "_index", "_inputs", "_own")
    _cancellation: Cancellation
    _inputs: list[Tensor] | None
    _own: dict[str, Any]

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] | None = None,
        requested_output_names: Sequence[str] | None = None,
        model_name: str | None = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: Any = None,
        trace: Any = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        if inputs is None or requested_output_names is None or model_name is None:
            raise TypeError(
                "InferenceRequest needs the arguments 'inputs', 'requested_output_names' and 'model_name', for example "
                "InferenceRequest(model_name='m', requested_output_names=['OUT'], inputs=[tensor])"
            )
        request_id, correlation_id, model_name = text(request_id), text(correlation_id), text(model_name)
        requested_output_names = [text(name) for name in requested_output_names]
        check_own(request_id, correlation_id, inputs, requested_output_names, model_name, parameters)
        check_numbers(model_version, flags, timeout)
        if trace is not None and not isinstance(trace, InferenceTrace):
            raise TypeError(f"'trace' must be a pb_utils.InferenceTrace, found {trace!r}")
        self._batch: Batch | None = None
        self._index = 0
        self._inputs = list(inputs)
        self._own = {
            "request_id": request_id,
            "correlation_id": correlation_id,
            "requested_output_names": set(requested_output_names),
            "model_name": model_name,
            "model_version": model_version,
            "flags": flags,
            "timeout": timeout,
            # Where outputs shall lie: there is host memory alone.
            "preferred_memory": preferred_memory,
            "trace": trace,
            "parameters": json.dumps(parameters or {}),
        }

    def inputs(self) -> list[Tensor]:
        inputs = self._inputs
        if inputs is None:
            inputs = self._inputs = self._batch.inputs(self._index)  # type: ignore[union-attr]
        return inputs

    def request_id(self) -> str:
        batch = self._batch
        if batch is None:
            return self._own["request_id"]  # type: ignore[no-any-return]
        return batch.ids[self._index] if batch.ids else ""

    def correlation_id(self) -> int | str:
        batch = self._batch
        if batch is None:
            return self._own["correlation_id"]  # type: ignore[no-any-return]
        return batch.steering[self._index][0] if batch.steering else 0

    def flags(self) -> int:
        batch = self._batch
        own = getattr(self, "_own", None)
        if own is not None:
            return own["flags"]  # type: ignore[no-any-return]
        return batch.steering[self._index][1] if batch is not None and batch.steering else 0

    def set_flags(self, flags: int) -> None:
        if self._batch is None:
            self._own["flags"] = flags
        else:
            self._own = {"flags": flags}

    def timeout(self) -> int:
        form = self._form()
        return self._own["timeout"] if form is None else form.timeout  # type: ignore[no-any-return]

    def parameters(self) -> str:
        """The request's parameters as a JSON object."""
        form = self._form()
        return self._own["parameters"] if form is None else form.parameters_json()

    def requested_output_names(self) -> set[str]:
        form = self._form()
        return set(self._own["requested_output_names"] if form is None else form.wanted)

    def trace(self) -> InferenceTrace:
        batch = self._batch
        if batch is None:
            return self._own["trace"] or InferenceTrace()
        if batch.traces is None or (context := batch.traces[self._index]) is None:
            return InferenceTrace()
        return InferenceTrace._of(context, batch.sequence, self._index)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. What has been answered was not cancelled."""
        batch = self._batch
        if batch is None:
            return False
        if (turn := batch.turned(self._index)) is not None:
            return turn.is_cancelled()
        try:
            cancellation = self._cancellation
        except AttributeError:
            cancellation = self._cancellation = Cancellation()
        return cancellation.ask(batch.calls, batch.sequence, self._index)

    def get_response_sender(self) -> InferenceResponseSender:
        if self._batch is None:
            raise TritonModelException("Only requests passed to execute() have a response sender.")
        return InferenceResponseSender(self._batch.turn(self._index))

    def set_release_flags(self, flags: int) -> None:
        """What becomes of the request when `execute` returns: with RESCHEDULE it is run again in a later batch."""
        batch = self._batch
        if batch is None:
            raise TritonModelException("Only requests passed to execute() can be released.")
        if flags not in {RELEASE_ALL, RELEASE_RESCHEDULE}:
            raise TypeError(
                "set_release_flags() takes pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL or "
                f"TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, found {flags!r}"
            )
        if flags == RELEASE_RESCHEDULE:
            if batch.released is None:
                batch.released = set()
            batch.released.add(self._index)
        elif batch.released is not None:
            batch.released.discard(self._index)

    def exec(self, decoupled: bool = False) -> Any:
        """Run the request on its model: an InferenceResponse, or for `decoupled` an iterator of them. Blocks."""
        caller = self._caller()
        return caller.stream(self) if decoupled else caller.call(self)

    def async_exec(self, decoupled: bool = False) -> Any:
        """The same on the running event loop; gives a future."""
        caller = self._caller()
        return caller.stream_later(self) if decoupled else caller.call_later(self)

    def _caller(self) -> Any:
        if self._batch is not None:
            raise TritonModelException(
                "Only requests that the model has made, with pb_utils.InferenceRequest(...), can be executed."
            )
        caller = runtime.caller
        if caller is None:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        return caller

    def _call_key(self) -> tuple[Any, ...]:
        """Equal for requests that differ in their id and tensors only."""
        own = self._own
        return (
            own["model_name"], own["model_version"], tuple(sorted(own["requested_output_names"])),
            own["correlation_id"], own["flags"], own["timeout"], own["parameters"],
        )  # fmt: skip

    def _call_form(self) -> dict[str, Any]:
        """The same in words, for the server."""
        names = ("model", "version", "outputs", "correlation_id", "flags", "timeout", "parameters")
        return dict(zip(names, self._call_key()))  # noqa: B905  Python 3.9 has no `strict`

    def _form(self) -> Form | None:
        batch = self._batch
        if batch is None:
            return None
        return batch.form or batch.forms[self._index]


class InferenceTrace:
    """The trace that a request belongs to."""

    __slots__ = ("_context", "_index", "_sequence")

    def __init__(self) -> None:
        self._context = ""
        self._sequence = 0
        #: Which request of the batch it is; -1 for a trace that is none.
        self._index = -1

    @classmethod
    def _of(cls, context: str, sequence: int, index: int) -> InferenceTrace:
        self = cls()
        self._context, self._sequence, self._index = context, sequence, index
        return self

    def get_context(self) -> str | None:
        """The context of the trace as JSON text, None without one."""
        return self._context or None


def incoming(batch: Batch, count: int) -> list[InferenceRequest]:
    """The `count` requests of `batch`; their tensors are made when the model asks for them."""
    new = InferenceRequest.__new__
    requests = []
    for index in range(count):
        request = new(InferenceRequest)
        request._batch = batch
        request._index = index
        request._inputs = None
        requests.append(request)
    return requests
