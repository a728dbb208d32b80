"""The forms of an ensemble's steps: made once for each kind of tensors that come, and shared by all such requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conch.schedule.api import Version
from conch.schedule.ensemble_graph import Course, Graph, Step, course
from conch.types.dtype import BYTES
from conch.types.error import invalid
from conch.types.model import ModelSpec, TensorSpec, carry_shape
from conch.types.request import InputHead, Parameter, RequestForm, RequestHead
from conch.types.tensor import Tensor

_log = logging.getLogger("conch.schedule")

Shape = tuple[int, ...]
#: A correlation id and flags that a step's response gave to the tensors that it brought.
Sequel = tuple[int | str, int]

#: Stands for a tensor that nobody has given: an optional input, or an output that a model left out.
MISSING = Tensor("", BYTES, (-1,), b"")
#: Parameters of a step's response that are about the sequence.
SEQUEL = frozenset(("sequence_id", "sequence_start", "sequence_end"))
#: So many kinds of tensors are remembered for each step of each form; who sends more pays for making them again.
_MOST = 256


class FollowingTensor(Tensor):
    """A tensor whose response, or one before it, has said which sequence it belongs to."""

    __slots__ = ("sequel",)

    def __init__(self, tensor: Tensor, sequel: Sequel) -> None:
        super().__init__(tensor.name, tensor.datatype, tensor.shape, tensor.data)
        self.sequel = sequel


#: Checks a head against one version and makes its form. Raises InferError.
Prepare = Callable[[Version, RequestHead], RequestForm]


@dataclass(frozen=True, slots=True)
class Prepared:
    """How to make a request of one step: its form, and for each of the form's inputs, which of the values it is."""

    form: RequestForm
    picks: tuple[int, ...]


class Cast:
    """The graph, and who plays in it: `members[i]` runs step i, and may leave its outputs `stays[i]` on its GPU."""

    def __init__(
        self,
        graph: Graph,
        members: Sequence[Version],
        spec: ModelSpec,
        prepare: Prepare,
        stays: Sequence[frozenset[str]] = (),
    ) -> None:
        self.graph = graph
        self.members = tuple(members)
        self.stays = tuple(stays) or (frozenset[str](),) * len(self.members)
        self.spec = spec
        self.prepare = prepare
        batched = [False] * len(graph.tensors)
        for tensor in graph.inputs:
            batched[tensor] = spec.max_batch_size > 0
        for step, member in zip(graph.steps, members, strict=True):
            for tensor in step.outputs.values():
                batched[tensor] = member.spec.max_batch_size > 0
        #: For each tensor, whether it comes from something that batches, and so has a batch dimension.
        self.batched = tuple(batched)
        self.outputs: Mapping[str, TensorSpec] = {output.name: output for output in spec.outputs}


class Route:
    """What all requests of one form have in common."""

    def __init__(self, cast: Cast, form: RequestForm) -> None:
        self.form = form
        self.course: Course = course(cast.graph, form.outputs)
        self._cast = cast
        self._known: list[dict[object, Prepared]] = [{} for _ in cast.graph.steps]
        spec = cast.spec
        #: For each input present: its name, type and shape, and the tensor that it is.
        self.given = tuple(
            [
                (spec.inputs[position].name, spec.inputs[position].datatype, shape, cast.graph.inputs[position])
                for position, shape in zip(form.inputs, form.backend_shapes, strict=True)
            ]
        )
        #: Inputs that the request leaves out.
        self.missing = tuple(
            [(tensor, MISSING) for position, tensor in enumerate(cast.graph.inputs) if position not in form.inputs]
        )
        #: What every answer says of the sequence that the request belongs to.
        self.sequel: Sequel = (form.correlation_id, form.flags)
        self.parameters = sequel_parameters(self.sequel)

    def prepared(self, step: Step, values: Sequence[Tensor], sequel: Sequel, id: str) -> Prepared:
        """For a step that reads these values. Raises InferError where they do not suit its model."""
        key: object = tuple([(value.datatype, value.shape) for value in values])
        if sequel != self.sequel:
            key = (key, sequel)
        known = self._known[step.number]
        found = known.get(key)
        if found is None:
            if len(known) >= _MOST:
                known.clear()
            found = known[key] = self._prepare(step, values, sequel, id)
        return found

    def _prepare(self, step: Step, values: Sequence[Tensor], sequel: Sequel, id: str) -> Prepared:
        cast = self._cast
        member = cast.members[step.number]
        specs = {tensor.name: tensor for tensor in member.spec.inputs}
        inputs, places = [], []
        for name, tensor in step.inputs:
            place = step.reads.index(tensor)
            value = values[place]
            if value is MISSING:
                continue
            shape = converted(
                value.shape,
                specs[name].dims,
                batched=cast.batched[tensor],
                batching=member.spec.max_batch_size > 0,
            )
            inputs.append(InputHead(name, value.datatype.name, shape))
            places.append(place)
        head = self.form.head
        form = cast.prepare(
            member,
            RequestHead(
                step.model,
                str(step.version) if step.version > 0 else "",
                id,
                inputs,
                tuple(step.outputs),
                self._parameters(sequel),
                head.steers or sequel != self.sequel,
            ),
        )
        form.stays = cast.stays[step.number]
        return Prepared(form, tuple([places[place] for place in form.order]))

    def _parameters(self, sequel: Sequel) -> dict[str, Parameter]:
        """The client's: priority, time-out and sequence go to every step, unless a response says otherwise."""
        head = self.form.head
        if sequel == self.sequel:
            return head.parameters
        return {**head.parameters, **sequel_parameters(sequel)}


def sequel_parameters(sequel: Sequel) -> dict[str, Parameter]:
    correlation, flags = sequel
    return {"sequence_id": correlation, "sequence_start": bool(flags & 1), "sequence_end": bool(flags & 2)}


def next_sequel(before: Sequel, parameters: Mapping[str, Parameter]) -> Sequel:
    """What a response with these parameters says of its tensors. Raises InferError where they are of a wrong kind."""
    correlation, flags = before[0], 0
    named = parameters.get("sequence_id", correlation)
    if isinstance(named, bool) or not isinstance(named, int | str):
        raise invalid(
            "expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or TRITONSERVER_PARAMETER_STRING"
        )
    for flag, name in ((1, "sequence_start"), (2, "sequence_end")):
        value = parameters.get(name, False)
        if not isinstance(value, bool):
            raise invalid(f"expect parameter '{name}' to be TRITONSERVER_PARAMETER_BOOL")
        flags |= flag if value else 0
    return named, flags


def sequel_of(values: Sequence[Tensor], default: Sequel, reader: str) -> Sequel:
    """What the responses that brought these tensors said of their sequence; the first one counts."""
    said = [value.sequel for value in values if isinstance(value, FollowingTensor)]
    if len(set(said)) > 1:
        _log.error(
            "%s: its inputs come with different sequences; correlation ID %s, flags %d is used", reader, *said[0]
        )
    return said[0] if said else default


def shown(cast: Cast, name: str, number: int, value: Tensor) -> Tensor:
    """The tensor as a client of the ensemble sees it."""
    spec, batching = cast.outputs[name], cast.spec.max_batch_size > 0
    shape = value.shape
    if cast.batched[number] != batching:
        dims = spec.dims if spec.reshape is None else spec.reshape
        shape = converted(shape, dims, batched=cast.batched[number], batching=batching)
    if spec.reshape is not None:
        lead, rest = (shape[:1], shape[1:]) if batching else ((), shape)
        if len(rest) == len(spec.reshape):
            shape = lead + carry_shape(rest, spec.reshape, spec.dims)
    if name == value.name and shape is value.shape:
        return value
    return Tensor(name, value.datatype, shape, value.data)


def converted(shape: Shape, dims: Shape, *, batched: bool, batching: bool) -> Shape:
    """The shape that a tensor has for its reader, where one of both batches and the other does not.

    `dims` are the reader's, without batch dimension; `batched` says of the tensor, `batching` of the reader, whether
    it has one (spec: model-config 8).
    """
    if batched == batching:
        return shape
    fits = len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))
    if batching:
        return (1, *shape) if fits else shape
    return shape[1:] if not fits and shape[:1] == (1,) else shape
