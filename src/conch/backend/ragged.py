"""Batches of requests of different shapes: what a config has made from them for the model, and how answers are split.

Triton's `batch_input` and `batch_output`, for backends that compute a batch as a whole. Shapes are those that the
backend sees, the batch dimension included; element counts are a request's, whatever its number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from conch.pb.model_config_pb2 import BatchInput, ModelConfig
from conch.types.dtype import BY_NUMBER, BYTES, DataType
from conch.types.error import internal, invalid
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm
from conch.types.tensor import Buffer, Tensor, string_offsets

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]

_COUNT: Final = BatchInput.BATCH_ELEMENT_COUNT
_ACCUMULATED: Final = BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT
_WITH_ZERO: Final = BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO
_MAX_AS_SHAPE: Final = BatchInput.BATCH_MAX_ELEMENT_COUNT_AS_SHAPE
_ITEM_SHAPE: Final = BatchInput.BATCH_ITEM_SHAPE


@dataclass(frozen=True, slots=True)
class MadeInput:
    """Inputs of the model, all alike, that are made from the batch's shapes of the input at `source`."""

    kind: int
    targets: tuple[str, ...]
    datatype: DataType
    source: int

    def make(self, forms: Sequence[RequestForm]) -> Array:
        shapes = [_shape(form, self.source) for form in forms]
        kind, numpy = self.kind, self.datatype.numpy
        if kind not in (_COUNT, _ACCUMULATED, _WITH_ZERO, _MAX_AS_SHAPE):
            # Rows of one request have one shape; the batch dimension is not part of it.
            items = np.repeat([shape[1:] for shape in shapes], [shape[0] for shape in shapes], axis=0).astype(numpy)
            return items if kind == _ITEM_SHAPE else items.reshape(-1)
        counts = [math.prod(shape) for shape in shapes]
        if kind == _MAX_AS_SHAPE:
            return np.zeros(max(counts), numpy)
        if kind == _COUNT:
            return np.array(counts, numpy)
        sums = np.cumsum([0, *counts]).astype(numpy)
        return sums if kind == _WITH_ZERO else sums[1:]


@dataclass(frozen=True, slots=True)
class Ragged:
    """What a model's `batch_input` and `batch_output` say. `scattered`: output -> position of the input that rules."""

    made: tuple[MadeInput, ...]
    scattered: Mapping[str, int]

    def make(self, requests: Sequence[InferRequest]) -> dict[str, Array]:
        """The model's inputs that are made for this batch."""
        forms = [request.form for request in requests]
        return {name: array for each in self.made for array in (each.make(forms),) for name in each.targets}

    def scatter(
        self, model: ModelSpec, spec: TensorSpec, requests: Sequence[InferRequest], data: Buffer
    ) -> list[Tensor]:
        """Each request's part of an output whose elements follow one another: open dimensions are as its input's."""
        position = self.scattered[spec.name]
        dims = (-1, *spec.dims) if model.max_batch_size > 0 else spec.dims
        shapes = []
        for request in requests:
            source = _shape(request.form, position)
            shapes.append(tuple([source[axis] if dim == -1 else dim for axis, dim in enumerate(dims)]))
        counts = [math.prod(shape) for shape in shapes]
        if spec.datatype is BYTES:
            offsets = string_offsets(data, 1)
            found = len(offsets) - 1
        else:
            found = len(data) // spec.datatype.size
        if found != sum(counts):
            raise internal(
                f"output '{spec.name}' of model '{model.name}' has {found} elements, expected {sum(counts)}: those of "
                f"the shapes {[list(shape) for shape in shapes]}, as its batch_output says",
                f"make the model give one element for each of input '{model.inputs[position].name}'",
            )
        view = memoryview(data)
        tensors = []
        begin = 0
        for shape, count in zip(shapes, counts, strict=True):
            end = begin + count
            if spec.datatype is BYTES:
                part = view[offsets[begin] : offsets[end]]
            else:
                part = view[begin * spec.datatype.size : end * spec.datatype.size]
            tensors.append(Tensor(spec.name, spec.datatype, shape, part))
            begin = end
        return tensors


def read_ragged(config: ModelConfig, spec: ModelSpec) -> Ragged | None:
    """What `config` (whose rules hold) says; None where it has neither batch_input nor batch_output.

    Raises InferError (INVALID_ARG) for what no batch could satisfy.
    """
    if not config.batch_input and not config.batch_output:
        return None
    made = []
    for each in config.batch_input:
        kind = BatchInput.Kind.Name(each.kind)
        if not each.target_name:
            raise invalid(f"batch input kind '{kind}' has no 'target_name' for {config.name}", "name the model's input")
        source = _source(spec, each.source_input[0], f"batch input kind '{kind}'")
        if each.kind >= _ITEM_SHAPE and config.max_batch_size == 0:
            raise invalid(
                f"batch input kind '{kind}' needs a batch dimension for {config.name}", "set max_batch_size above 0"
            )
        made.append(MadeInput(each.kind, tuple(each.target_name), BY_NUMBER[each.data_type], source))
    scattered = {}
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    for one in config.batch_output:
        source = _source(spec, one.source_input[0], "batch output")
        for name in one.target_name:
            _check_rank(spec, outputs[name], spec.inputs[source])
            scattered[name] = source
    return Ragged(tuple(made), scattered)


def _shape(form: RequestForm, position: int) -> Shape:
    if position not in form.inputs:
        raise invalid(
            "the request lacks an input that the model's batch_input or batch_output needs", "send all inputs"
        )
    return form.backend_shapes[form.inputs.index(position)]


def _source(spec: ModelSpec, name: str, who: str) -> int:
    position = next(n for n, tensor in enumerate(spec.inputs) if tensor.name == name)
    if spec.inputs[position].optional:
        raise invalid(
            f"{who} has the optional source input '{name}' for {spec.name}", "remove 'optional': each request needs it"
        )
    return position


def _check_rank(spec: ModelSpec, output: TensorSpec, source: TensorSpec) -> None:
    seen = source.dims if source.reshape is None else source.reshape
    if any(dim == -1 and axis >= len(seen) for axis, dim in enumerate(output.dims)):
        raise invalid(
            f"batch output '{output.name}' has dims {list(output.dims)}, expected sizes other than -1 beyond the "
            f"{len(seen)} dimensions of its source input '{source.name}' for {spec.name}",
            "a size of -1 is taken from the same dimension of the source input",
        )
