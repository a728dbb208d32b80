"""What a request must satisfy before any of its bytes are looked at, in Triton's order and words. Pure."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from conch.types.dtype import BY_NAME, BYTES
from conch.types.error import InferError, invalid, unsupported
from conch.types.model import ModelSpec, TensorSpec, carry_shape, shape_text
from conch.types.request import InputHead, Parameter, RequestHead, id_prefix
from conch.types.tensor import Buffer

Shape = tuple[int, ...]

_length = struct.Struct("<I").unpack_from

#: Characters that a sequence may be named with.
_MAX_CORRELATION = 128
_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a request in the order of the config; each tuple has one entry per input present."""

    positions: tuple[int, ...]
    order: tuple[int, ...]
    shapes: tuple[Shape, ...]
    backend_shapes: tuple[Shape, ...]
    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    rows: int
    batch_key: object
    has_bytes: bool


@dataclass(frozen=True, slots=True)
class Steering:
    """Request parameters that steer the server, and the rest, which are the model's."""

    priority: int
    timeout_us: int
    correlation_id: int | str
    flags: int
    parameters: dict[str, Parameter] | None


def check_outputs(spec: ModelSpec, head: RequestHead) -> None:
    known = {output.name for output in spec.outputs}
    seen: set[str] = set()
    for name in head.outputs:
        if name in seen:
            raise invalid(id_prefix(head.id) + f"output '{name}' already exists in request", "ask for each output once")
        seen.add(name)
    for name in head.outputs:
        if name not in known:
            raise invalid(
                f"unexpected inference output '{name}' for model '{spec.name}'",
                f"the model has: {', '.join(sorted(known))}",
            )


def check_inputs(spec: ModelSpec, head: RequestHead) -> Inputs:
    """Raises InferError (INVALID_ARG) with Triton's text for the first rule that is broken."""
    places = _places(head)
    _check_count(spec, head)
    rows = _batch_size(spec, head)
    index = {tensor.name: number for number, tensor in enumerate(spec.inputs)}
    for given in head.inputs:
        if given.name not in index:
            raise invalid(
                f"unexpected inference input '{given.name}' for model '{spec.name}'",
                f"the model has: {', '.join([tensor.name for tensor in spec.inputs])}",
            )
        _check_input(spec, spec.inputs[index[given.name]], given, head.id)
    if spec.max_batch_size > 0 and rows > spec.max_batch_size:
        raise invalid(
            id_prefix(head.id) + f"inference request batch-size must be <= {spec.max_batch_size} for '{spec.name}'",
            "send fewer rows in one request, or raise max_batch_size",
        )
    if rows == 0:
        raise _no_rows(spec, head)
    return _inputs(spec, head, places, rows)


def steering(head: RequestHead) -> Steering:
    """Sort the request's parameters. A value of a wrong type is an error that names it."""
    rest = dict(head.parameters)
    if not head.steers:
        return Steering(0, 0, 0, 0, rest or None)
    correlation = rest.pop("sequence_id", 0)
    if isinstance(correlation, bool) or not isinstance(correlation, int | str):
        raise invalid(f"parameter 'sequence_id' is {correlation!r}, expected an unsigned integer or a string")
    if isinstance(correlation, str) and len(correlation) > _MAX_CORRELATION:
        raise unsupported(f"string correlation ID cannot be longer than {_MAX_CORRELATION} characters")
    flags = 0
    for name, flag in (("sequence_start", 1), ("sequence_end", 2)):
        value = rest.pop(name, False)
        if not isinstance(value, bool):
            raise invalid(f"parameter '{name}' is {value!r}, expected true or false")
        flags |= flag if value else 0
    priority, timeout = _unsigned(rest, "priority"), _unsigned(rest, "timeout")
    # For the transport alone; no other name that begins like this gets so far.
    rest.pop("triton_enable_empty_final_response", None)
    return Steering(priority, timeout, correlation, flags, rest or None)


def check_strings(spec: ModelSpec, position: int, count: int, data: Buffer, id: str) -> None:
    """A BYTES input's content: `count` elements, each a uint32 length and that many bytes."""
    offset = 0
    try:
        for _ in range(count):
            offset += 4 + _length(data, offset)[0]
    except struct.error:
        offset = -1
    if offset != len(data):
        raise invalid(id_prefix(id) + _wrong_strings(spec.inputs[position].name, spec.name, count, data))


def _wrong_strings(name: str, model: str, count: int, data: Buffer) -> str:
    """Why `data` is not `count` elements."""
    found = offset = 0
    end = len(data)
    while offset < end and found < count:
        if end - offset < 4:
            return (
                f"incomplete string length indicator for inference input '{name}' for model '{model}', expecting 4 "
                f"bytes but only {end - offset} bytes available. Please make sure the string length indicator is in "
                "one buffer."
            )
        size = _length(data, offset)[0]
        offset += 4
        if size > end - offset:
            return (
                f"incomplete string data for inference input '{name}' for model '{model}', expecting string of length "
                f"{size} but only {end - offset} bytes available"
            )
        offset += size
        found += 1
    if offset < end:
        return (
            f"unexpected number of string elements {found + 1} for inference input '{name}' for model '{model}', "
            f"expecting {count}"
        )
    return f"expected {count} string elements for inference input '{name}' for model '{model}', got {found}"


def size_mismatch(spec: ModelSpec, position: int, expected: int, got: int, id: str) -> InferError:
    return invalid(
        id_prefix(id) + f"input byte size mismatch for input '{spec.inputs[position].name}' for model "
        f"'{spec.name}'. Expected {expected}, got {got}",
        "the bytes sent must be the product of the shape times the size of one element",
    )


def _places(head: RequestHead) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, given in enumerate(head.inputs):
        if given.name in places:
            raise invalid(
                id_prefix(head.id) + f"input '{given.name}' already exists in request", "send each input once"
            )
        places[given.name] = place
    return places


def _check_count(spec: ModelSpec, head: RequestHead) -> None:
    got = len(head.inputs)
    most = len(spec.inputs)
    least = sum([not tensor.optional for tensor in spec.inputs])
    if least <= got <= most:
        return
    given = {tensor.name for tensor in head.inputs}
    missing = [tensor.name for tensor in spec.inputs if not tensor.optional and tensor.name not in given]
    expected = (
        f"expected {most} inputs but got {got} inputs"
        if least == most
        else f"expected number of inputs between {least} and {most} but got {got} inputs"
    )
    names = ",".join([f"'{tensor.name}'" for tensor in head.inputs])
    lacking = ",".join([f"'{name}'" for name in missing])
    raise invalid(
        id_prefix(head.id) + f"{expected} for model '{spec.name}'. Got input(s) [{names}], but missing required "
        f"input(s) [{lacking}]. Please provide all required input(s)."
    )


def _batch_size(spec: ModelSpec, head: RequestHead) -> int:
    if spec.max_batch_size == 0:
        return 1
    rows: int | None = None
    for given in head.inputs:
        if not given.shape:
            raise invalid(
                id_prefix(head.id)
                + f"input '{given.name}' has no shape but model requires batch dimension for '{spec.name}'"
            )
        if rows is None:
            rows = given.shape[0]
        elif rows != given.shape[0]:
            raise invalid(
                id_prefix(head.id) + f"input '{given.name}' batch size does not match other inputs for '{spec.name}'"
            )
    return 1 if rows is None else rows


def _no_rows(spec: ModelSpec, head: RequestHead) -> InferError:
    """Triton counts at least one row and then misses its elements."""
    position = next(n for n, tensor in enumerate(spec.inputs) if tensor.name == head.inputs[0].name)
    tensor = spec.inputs[position]
    count = math.prod(head.inputs[0].shape[1:])
    if tensor.datatype is BYTES:
        error = invalid(
            id_prefix(head.id) + f"expected {count} string elements for inference input '{tensor.name}' for model "
            f"'{spec.name}', got 0"
        )
    else:
        error = size_mismatch(spec, position, count * tensor.datatype.size, 0, head.id)
    return InferError(error.code, error.message, "a request has at least one row")


def _check_input(spec: ModelSpec, tensor: TensorSpec, given: InputHead, id: str) -> None:
    if given.datatype != tensor.datatype.name:
        got = given.datatype if given.datatype in BY_NAME else "<invalid>"
        raise invalid(
            id_prefix(id) + f"inference input '{given.name}' data-type is '{got}', but model '{spec.name}' expects "
            f"'{tensor.datatype.name}'"
        )
    batching = spec.max_batch_size > 0
    shape = given.shape[1:] if batching else given.shape
    if any(size < 0 for size in given.shape):
        raise invalid(
            id_prefix(id) + f"All input dimensions should be specified for input '{given.name}' for model "
            f"'{spec.name}', got {shape_text(given.shape)}"
        )
    fits = len(shape) == len(tensor.dims) and all(
        dim in (-1, size) for size, dim in zip(shape, tensor.dims, strict=True)
    )
    if not fits:
        expected = (-1, *tensor.dims) if batching else tensor.dims
        raise invalid(
            id_prefix(id) + f"unexpected shape for input '{given.name}' for model '{spec.name}'. Expected "
            f"{shape_text(expected)}, got {shape_text(given.shape)}. {_BATCH_NOTE if batching else ''}"
        )


def _inputs(spec: ModelSpec, head: RequestHead, places: dict[str, int], rows: int) -> Inputs:
    positions = tuple([number for number, tensor in enumerate(spec.inputs) if tensor.name in places])
    order = tuple([places[spec.inputs[number].name] for number in positions])
    shapes = tuple([tuple(head.inputs[place].shape) for place in order])
    batching = spec.max_batch_size > 0
    backend_shapes, sizes, counts, free = [], [], [], []
    for number, shape in zip(positions, shapes, strict=True):
        tensor = spec.inputs[number]
        lead, rest = (shape[:1], shape[1:]) if batching else ((), shape)
        backend_shapes.append(
            shape if tensor.reshape is None else lead + carry_shape(rest, tensor.dims, tensor.reshape)
        )
        count = 1
        for size in shape:
            count *= size
        counts.append(count)
        sizes.append(-1 if tensor.datatype is BYTES else count * tensor.datatype.size)
        if -1 in tensor.dims and not tensor.ragged:
            free.append(rest)
    optional = any(tensor.optional for tensor in spec.inputs)
    key: object = (positions if optional else None, tuple(free)) if optional or free else None
    if spec.padding is not None:
        key = spec.padding.bucket([tensor.dims for tensor in spec.inputs], int(batching), positions, shapes)
    has_bytes = any(size < 0 for size in sizes)
    return Inputs(positions, order, shapes, tuple(backend_shapes), tuple(sizes), tuple(counts), rows, key, has_bytes)


def _unsigned(parameters: dict[str, Parameter], name: str) -> int:
    value = parameters.pop(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise invalid(f"parameter '{name}' is {value!r}, expected an unsigned integer")
    return value
