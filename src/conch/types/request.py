"""An inference request: its head (what the client said), its form (that, checked once) and itself (id and bytes).

Clients send the same head again and again with other bytes. So the checks that depend on the head alone are made once
per distinct head; their result, a `RequestForm`, is shared by all requests that have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from conch.types.error import InferError
from conch.types.flow import Flow
from conch.types.tensor import Buffer

if TYPE_CHECKING:
    from conch.types.response import InferResponse

#: The most characters of what clients invent that is remembered of a head: they must not fill the memory.
MAX_INVENTED: Final = 4096

#: A request or response parameter's value.
Parameter = bool | int | float | str


@dataclass(slots=True)
class InputHead:
    """One input as the client described it; `shape` is complete, with the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class RequestHead:
    """All that a request says besides its tensors' bytes. Nothing in it has been checked against a model.

    `model_version` is empty for "the highest ready version". `outputs` empty means all outputs. `parameters` holds
    the request's parameters except those a transport keeps for itself (`binary_data_output`).
    """

    model_name: str
    model_version: str = ""
    id: str = ""
    inputs: Sequence[InputHead] = ()
    outputs: Sequence[str] = ()
    parameters: dict[str, Parameter] = field(default_factory=dict)
    #: Whether priority, timeout and sequence_* among the parameters steer the server; else they too are the model's.
    steers: bool = True

    @property
    def brief(self) -> bool:
        """Whether it may be remembered, once its names have been checked against the model's: what clients invent in it
        is at most `MAX_INVENTED` characters long."""
        values = [each for each in self.parameters.values() if isinstance(each, str)]
        return sum(map(len, (*self.parameters, *values, *self.outputs))) <= MAX_INVENTED


class Submit(Protocol):
    """The door of a model's scheduler. After it returns the request is the scheduler's; if it raises, it is yours."""

    def __call__(self, request: InferRequest, /) -> None: ...


class Withdraw(Protocol):
    """The other door of a model's scheduler, see `RequestForm.withdraw`."""

    def __call__(self, request: InferRequest, /) -> None: ...


class Reschedule(Protocol):
    """The third door of a model's scheduler, see `RequestForm.reschedule`."""

    def __call__(self, request: InferRequest, /) -> None: ...


def _keep(request: InferRequest, /) -> None:
    """For forms whose scheduler has no queue to leave."""


@dataclass(slots=True, eq=False)
class RequestForm:
    """A head that has passed every check that needs no tensor bytes.

    Inputs stand in the order of the model's config (`inputs[i]` is the index of that input in the model's
    `ModelSpec.inputs`); optional inputs that the request leaves out are absent.
    """

    head: RequestHead
    #: Opaque to everyone but the registry that made it.
    model: Any
    submit: Submit
    #: The version that answers.
    version: int
    #: `DataPlane.generation` when the form was made: an older form must be prepared again.
    generation: int
    #: Positions in ModelSpec.inputs, ascending, of the inputs present.
    inputs: tuple[int, ...]
    #: For each input present, its place in the client's list, so that codecs can put bytes in order.
    order: tuple[int, ...]
    #: For each input present, its full shape (client's view).
    shapes: tuple[tuple[int, ...], ...]
    #: For each input present, the full shape that the backend sees (differs where the config says `reshape`).
    backend_shapes: tuple[tuple[int, ...], ...]
    #: For each input present, its exact byte size; -1 for BYTES.
    sizes: tuple[int, ...]
    #: For each input present, its number of elements.
    counts: tuple[int, ...]
    #: Rows that the request adds to a batch; 1 for models that do not batch.
    rows: int
    #: Requests may share a batch only if this is equal (None: the model's shapes are fixed, all may).
    batch_key: object
    #: Names of the outputs asked for, in the client's order; None for all.
    outputs: tuple[str, ...] | None
    #: Parameters for the model: the client's, less those that steer the server (priority, timeout, sequence_*).
    parameters: dict[str, Parameter] | None = None
    priority: int = 0
    timeout_us: int = 0
    #: The sequence that the request belongs to (0 or "": none) and its flags (1: start, 2: end).
    correlation_id: int | str = 0
    flags: int = 0
    #: True when some input is BYTES, whose content must be checked per request.
    has_bytes: bool = False
    #: Names of the outputs that may stay on the GPU that computes them, as `types.device.OnDevice`; see
    #: `schedule.ensemble_devices`.
    stays: frozenset[str] = frozenset()
    #: True when the model may answer any number of times (its transaction policy is decoupled).
    decoupled: bool = False
    #: Tells the scheduler that nobody waits for the request any more: it sets `cancelled`; a request that waits leaves
    #: the queue in this loop tick (its sink gets CANCELLED), one that runs lets its model see `is_cancelled()`, and
    #: nothing happens to one that is settled. Only on the loop's thread, any number of times.
    withdraw: Withdraw = _keep
    #: Gives a request that a model has released back to its scheduler, to run again in a later batch; None where the
    #: model's scheduler does not do so (it does for iterative sequences). On the loop's thread.
    reschedule: Reschedule | None = None
    #: What codecs and workers remember about this form (encoded response heads and the like); lost with the form.
    memo: dict[Any, Any] = field(default_factory=dict)


class ResponseSink(Protocol):
    """Where answers go. Any thread may call, it never blocks and never raises.

    Each request gets zero or more `reply` calls and exactly one final one (`final=True`, or `fail`). The final reply of
    a decoupled model may be `types.response.FINAL`, which brings no response of its own; one that is not final may be
    a `FailedResponse`. Calls after the final one are
    a bug of the caller; a sink whose client has left swallows everything.
    """

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None: ...

    def fail(self, request: InferRequest, error: InferError) -> None: ...


class InferRequest:
    """One request on its way: its form, its own id and bytes, and the sink that waits for it.

    `data[i]` are the wire bytes of `form.inputs[i]`. Times are `time.monotonic_ns()`. `cancelled` is set by the
    transport when nobody waits any more (any thread may set it, it is never reset).
    """

    __slots__ = (
        "cancelled", "data", "deadline_ns", "expires_ns", "flow", "form", "id", "meter", "queued_ns", "received_ns",
        "sink", "trace",
    )  # fmt: skip

    def __init__(
        self, form: RequestForm, id: str, data: tuple[Buffer, ...], sink: ResponseSink, received_ns: int
    ) -> None:
        self.form = form
        self.id = id
        self.data = data
        self.sink = sink
        self.received_ns = received_ns
        self.queued_ns = 0
        #: When the request's time in the queue ends; 0 for never. Set by the scheduler from its queue policy.
        self.deadline_ns = 0
        #: When nobody waits for an answer any more (the client's deadline); 0 for never. Set before it is submitted.
        self.expires_ns = 0
        #: How fast the stream that the answers go to is read; None where there is one answer. Set before submitting.
        self.flow: Flow | None = None
        self.cancelled = False
        #: What is noted of the request (`observe.trace.Trace`); None for those that are not traced.
        self.trace: Any = None
        #: Whoever is told how long the model took for the request (`observe.stats.Meter`); None for most.
        self.meter: Any = None

    def __repr__(self) -> str:
        return f"InferRequest({self.form.head.model_name!r}, id={self.id!r}, rows={self.form.rows})"


def id_prefix(id: str) -> str:
    """How Triton's core names a request in an error text."""
    return f"[request id: {id or '<id_unknown>'}] "
