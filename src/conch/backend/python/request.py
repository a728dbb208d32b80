"""`pb_utils.InferenceRequest`, and the batch that incoming ones belong to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from conch.backend.python.calls import Calls, Cancellation
from conch.backend.python.errors import TritonModelException, unsupported
from conch.backend.python.response import InferenceResponseSender, Turn
from conch.backend.python.stream import Stream
from conch.backend.python.tensor import BYTES, NUMPY, Tensor, bytes_input, input_tensor

RELEASE_RESCHEDULE = 2
_new_tensor = Tensor.__new__
_DTYPES = {**NUMPY, 14: NUMPY[3]}


class Form:
    """What requests that differ only in their id and their bytes have in common. Told once, then known by number."""

    __slots__ = ("_json", "correlation_id", "flags", "inputs", "parameters", "timeout", "wanted")

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
        self.correlation_id = described["correlation_id"]
        self.flags = described["flags"]
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

    __slots__ = ("__weakref__", "calls", "columns", "form", "forms", "ids", "rows", "sequence", "streams", "turns")

    def __init__(self, calls: Calls, sequence: int, ids: Sequence[str] | None) -> None:
        self.calls = calls
        self.sequence = sequence
        self.ids = ids
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

    def open(self, count: int) -> list[Stream]:
        """The model is decoupled: each of its `count` requests gets an open end."""
        calls, sequence = self.calls, self.sequence
        outbox = calls.outbox
        assert outbox is not None
        self.streams = [
            Stream(calls, outbox, sequence, index, (self.form or self.forms[index]).wanted) for index in range(count)
        ]
        return self.streams

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
        if not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise TypeError(f"'inputs' must be a list of pb_utils.Tensor, found {list(inputs)!r}")
        if parameters is not None and not isinstance(parameters, dict):
            raise TypeError(f"'parameters' must be a dict, found {parameters!r}")
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
            "trace": trace,
            "parameters": json.dumps(parameters or {}, ensure_ascii=False, separators=(",", ":")),
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
        form = self._form()
        return self._own["correlation_id"] if form is None else form.correlation_id  # type: ignore[no-any-return]

    def flags(self) -> int:
        own = getattr(self, "_own", None)
        form = self._form()
        return form.flags if own is None and form is not None else own["flags"]  # type: ignore[index,no-any-return]

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
        if self._batch is None and self._own["trace"] is not None:
            return self._own["trace"]  # type: ignore[no-any-return]
        return InferenceTrace()

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        batch = self._batch
        if batch is None:
            return False
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
        if flags & RELEASE_RESCHEDULE:
            raise unsupported("Rescheduling a request with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE")

    def exec(self, decoupled: bool = False) -> Any:
        raise unsupported("Calling another model with InferenceRequest.exec()")

    async def async_exec(self, decoupled: bool = False) -> Any:
        raise unsupported("Calling another model with InferenceRequest.async_exec()")

    def _form(self) -> Form | None:
        batch = self._batch
        if batch is None:
            return None
        return batch.form or batch.forms[self._index]


class InferenceTrace:
    """The trace that a request belongs to."""

    def get_context(self) -> str | None:
        return None


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
