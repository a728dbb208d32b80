"""Pads the requests of a batch to one shape, and cuts the answers back; what a config's `conch_padding` declares.

To an instance the requests look as if clients had padded them. Their forms are kept, so that a batch has few forms (for
a bucket mostly one) whatever lengths its requests had. Bytes are moved in steps: a tensor is so many runs (the product
of the dimensions before the axis) of so many bytes, and a run is copied to the front of a longer one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from conch.observe.stats import WARMUP, ModelStats
from conch.types.dtype import BF16
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.padding import Mask, PaddedInput, Padding, Shape
from conch.types.request import InferRequest, InputHead, RequestForm, RequestHead
from conch.types.response import FailedResponse, InferResponse
from conch.types.tensor import Buffer, Tensor

#: Forms of padded requests that are remembered.
_MAX_FORMS: Final = 1024
#: And of them, by one form of a client's: it meets as many sizes as it has neighbours of other lengths.
_MAX_SIZES: Final = 64
#: What a padded request takes over from its original, whatever fields requests may get.
_CARRIED: Final = tuple(sorted({*InferRequest.__slots__} - {"cancelled", "data", "form", "sink"}))
#: The upper half of an FP32's 1.0.
_BF16_ONE: Final = 0x3F80


class PaddedRequest(InferRequest):
    """A request in the shape that its batch needs. It is answered, and cancelled, as the `original` is."""

    __slots__ = ("lengths", "original", "targets")

    def __init__(
        self,
        original: InferRequest,
        form: RequestForm,
        data: tuple[Buffer, ...],
        sink: Unpadder,
        lengths: tuple[int, ...],
        targets: tuple[int, ...],
    ) -> None:
        self.original = original
        for name in _CARRIED:
            setattr(self, name, getattr(original, name))
        self.form = form
        self.data = data
        self.sink = sink
        #: The sizes of the padded inputs before (-1: absent) and after.
        self.lengths = lengths
        self.targets = targets

    @property
    def cancelled(self) -> bool:  # type: ignore[override]
        return self.original.cancelled


class _Part(NamedTuple):
    """Where one input of a padded request comes from."""

    #: The place in the client's data; -1 for a mask that the server makes.
    place: int
    #: So many runs, of so many bytes; a step along the axis is `step` bytes.
    runs: int
    size: int
    step: int


class _Plan(NamedTuple):
    """What is to be done for the requests of one form."""

    lengths: tuple[int, ...]
    #: Elements of the padded inputs.
    real: int
    #: One for each position of the padded request; None for inputs that stay as they are.
    positions: tuple[int, ...]
    indices: tuple[int, ...]
    parts: tuple[_Part | None, ...]
    #: The forms after padding, by targets.
    forms: dict[tuple[int, ...], RequestForm]


class Padder:
    """Pads batches of one model version. Any thread."""

    def __init__(self, spec: ModelSpec, padding: Padding, stats: ModelStats) -> None:
        self._spec = spec
        self._padding = padding
        self._stats = stats
        stats.pads = True
        self._sink = Unpadder(spec, padding)
        #: Every input that is padded or made, by position, and whose length it has.
        self._rules: dict[int, tuple[PaddedInput | Mask, int]] = {
            **{each.position: (each, index) for index, each in enumerate(padding.inputs)},
            **{each.position: (each, each.like) for each in padding.masks},
        }
        self._forms: dict[object, RequestForm] = {}
        self._generation = 0

    def pad(self, batch: Sequence[InferRequest]) -> list[InferRequest]:
        """The batch as the model wants it: equal shapes, every mask present."""
        plans = [request.form.memo.get(self) or self._plan(request.form) for request in batch]
        targets = self._targets(plans)
        columns: list[Sequence[Buffer]] = []
        elements = 0
        for place, position in enumerate(plans[0].positions):
            rule = self._rules.get(position)
            if plans[0].parts[place] is None or rule is None:
                columns.append([r.data[plan.indices[place]] for r, plan in zip(batch, plans, strict=True)])
                continue
            each, like = rule
            column, size = self._column(batch, plans, place, each, targets[like])
            columns.append(column)
            if isinstance(each, PaddedInput):
                elements += size // self._spec.inputs[position].datatype.size
        if batch[0].form.model is not WARMUP:
            self._stats.padded(sum([plan.real for plan in plans]), elements)
        return [
            PaddedRequest(
                request,
                plan.forms.get(targets) or self._form(request.form, plan, targets),
                data,
                self._sink,
                plan.lengths,
                targets,
            )
            for request, plan, data in zip(batch, plans, zip(*columns, strict=True), strict=True)
        ]

    def _targets(self, plans: Sequence[_Plan]) -> tuple[int, ...]:
        longest = tuple([max(column) for column in zip(*[plan.lengths for plan in plans], strict=True)])
        return tuple([size or length for size, length in zip(self._padding.sizes(longest), longest, strict=True)])

    def _column(
        self, batch: Sequence[InferRequest], plans: Sequence[_Plan], place: int, rule: PaddedInput | Mask, target: int
    ) -> tuple[list[Buffer], int]:
        """One input of every request, padded; they stand in one piece of memory of so many bytes."""
        parts = [part for plan in plans if (part := plan.parts[place]) is not None]
        width = target * parts[0].step
        total = sum([part.runs for part in parts]) * width
        spec = self._spec.inputs[rule.position]
        whole = _filled(spec, rule.value, total) if isinstance(rule, PaddedInput) else memoryview(bytearray(total))
        ones = _filled(spec, rule.real, width) if isinstance(rule, Mask) else whole
        chunks: list[Buffer] = []
        begin = 0
        for request, part in zip(batch, parts, strict=True):
            end = begin + part.runs * width
            chunk = whole[begin:end]
            own = ones[: part.size] if part.place < 0 else request.data[part.place]
            if part.runs == 1:
                chunk[: part.size] = own
            elif part.runs and part.size:
                run = np.frombuffer(own, np.uint8).reshape(-1, part.size)
                np.frombuffer(chunk, np.uint8).reshape(part.runs, width)[:, : part.size] = run
            chunks.append(chunk)
            begin = end
        return chunks, total

    def _plan(self, form: RequestForm) -> _Plan:
        padding, spec = self._padding, self._spec
        lengths = padding.lengths(form.inputs, form.shapes)
        positions = tuple(sorted({*form.inputs, *[mask.position for mask in padding.masks]}))
        parts: list[_Part | None] = []
        indices = []
        for position in positions:
            index = form.inputs.index(position) if position in form.inputs else -1
            indices.append(index)
            rule = self._rules.get(position)
            if rule is None:
                parts.append(None)
                continue
            each, like = rule
            shape = self._shape(form, position, each.axis, lengths[like])
            step = math.prod(shape[each.axis + 1 :]) * spec.inputs[position].datatype.size
            parts.append(_Part(index, math.prod(shape[: each.axis]), lengths[like] * step, step))
        real = sum([form.counts[form.inputs.index(p.position)] for p in padding.inputs if p.position in form.inputs])
        plan = form.memo[self] = _Plan(lengths, real, positions, tuple(indices), tuple(parts), {})
        return plan

    def _shape(self, form: RequestForm, position: int, axis: int, size: int) -> Shape:
        """The full shape of an input with `size` elements along `axis`."""
        if position in form.inputs:
            shape = list(form.shapes[form.inputs.index(position)])
        else:
            shape = [form.rows] * (self._spec.max_batch_size > 0) + list(self._spec.inputs[position].dims)
        shape[axis] = size
        return tuple(shape)

    def _form(self, form: RequestForm, plan: _Plan, targets: tuple[int, ...]) -> RequestForm:
        """The form after padding; requests that then differ in nothing have the same."""
        shapes = []
        for position in plan.positions:
            rule = self._rules.get(position)
            if rule is None:
                shapes.append(form.shapes[form.inputs.index(position)])
            else:
                shapes.append(self._shape(form, position, rule[0].axis, targets[rule[1]]))
        parameters = tuple([(name, type(value), value) for name, value in sorted((form.parameters or {}).items())])
        steering = (form.timeout_us, form.priority, form.correlation_id, form.flags)
        key = (plan.positions, tuple(shapes), form.generation, form.model, form.outputs, steering, parameters)
        made = self._forms.get(key)
        if made is None:
            if form.generation > self._generation or len(self._forms) >= _MAX_FORMS:
                # Forms of older generations are made no more.
                self._generation = max(form.generation, self._generation)
                self._forms.clear()
            made = self._forms[key] = _reshaped(form, self._spec, plan, shapes)
        if len(plan.forms) >= _MAX_SIZES:
            plan.forms.clear()
        plan.forms[targets] = made
        return made


class Unpadder:
    """The sink of padded requests: gives each answer to the original's sink, cut back to the request's own lengths."""

    def __init__(self, spec: ModelSpec, padding: Padding) -> None:
        self._model = spec.name
        self._cuts = dict(padding.outputs or {})
        self._names = [each.name for each in padding.inputs]

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        assert isinstance(request, PaddedRequest)
        original = request.original
        if self._cuts and response.outputs:
            try:
                outputs = [self._cut(request, tensor) for tensor in response.outputs]
            except InferError as error:
                if final:
                    original.sink.fail(original, error)
                    return
                response = FailedResponse(error)
            else:
                response = InferResponse(outputs, response.parameters)
        original.sink.reply(original, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        assert isinstance(request, PaddedRequest)
        request.original.sink.fail(request.original, error)

    def _cut(self, request: PaddedRequest, tensor: Tensor) -> Tensor:
        cut = self._cuts.get(tensor.name)
        if cut is None or request.lengths[cut.like] < 0:
            return tensor
        axis, length, target = cut.axis, request.lengths[cut.like], request.targets[cut.like]
        shape = tensor.shape
        if len(shape) <= axis or shape[axis] != target:
            raise internal(
                f"output '{tensor.name}' of model '{self._model}' has shape {list(shape)}, expected {target} in "
                f"dimension {axis}, the padded size of input '{self._names[cut.like]}'",
                "remove the output from 'conch_padding' if it does not grow with that input",
            )
        if length == target:
            return tensor
        own = (*shape[:axis], length, *shape[axis + 1 :])
        runs, step = math.prod(shape[:axis]), math.prod(shape[axis + 1 :]) * tensor.datatype.size
        data: Buffer = memoryview(tensor.data)[: length * step]
        if runs != 1:
            size = runs * target * step
            rows = np.frombuffer(tensor.data, np.uint8)[:size].reshape(runs, target * step)
            data = rows[:, : length * step].tobytes()
        return Tensor(tensor.name, tensor.datatype, own, data)


def _filled(spec: TensorSpec, value: float, size: int) -> memoryview:
    """So many bytes of elements that are `value`; for BF16 that is 0 or 1."""
    if not value:
        return memoryview(bytearray(size))
    number = _BF16_ONE if spec.datatype is BF16 else value
    array: np.ndarray[Any, Any] = np.full(size // spec.datatype.size, number, spec.datatype.numpy)
    return array.view(np.uint8).data


def _reshaped(form: RequestForm, spec: ModelSpec, plan: _Plan, shapes: Sequence[Shape]) -> RequestForm:
    tensors = [spec.inputs[position] for position in plan.positions]
    counts = [math.prod(shape) for shape in shapes]
    backend_shapes, sizes = [], []
    for tensor, index, part, shape, count in zip(tensors, plan.indices, plan.parts, shapes, counts, strict=True):
        backend_shapes.append(shape if part is not None else form.backend_shapes[index])
        sizes.append(count * tensor.datatype.size if part is not None else form.sizes[index])
    old = form.head
    inputs = [InputHead(each.name, each.datatype.name, shape) for each, shape in zip(tensors, shapes, strict=True)]
    head = RequestHead(old.model_name, old.model_version, "", inputs, old.outputs, old.parameters, old.steers)
    return dataclasses.replace(
        form,
        head=head,
        inputs=plan.positions,
        order=tuple(range(len(tensors))),
        shapes=tuple(shapes),
        backend_shapes=tuple(backend_shapes),
        sizes=tuple(sizes),
        counts=tuple(counts),
        memo={},
    )
