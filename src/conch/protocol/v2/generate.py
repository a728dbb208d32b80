"""The bodies of /generate and /generate_stream: a flat JSON object in, flat JSON objects out.

A member named like an input of the model is that input's tensor, the object `parameters` is looked into in the same
way, and everything else is a parameter for the model. (Triton: docs/protocol/extension_generate.md.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2 import head as heads
from conch.protocol.v2.lenient import parse
from conch.protocol.v2.numbers import Reader, Writer
from conch.types.dtype import BY_NAME, BYTES, DataType
from conch.types.error import InferError, internal, invalid
from conch.types.request import InferRequest, InputHead, Parameter, RequestForm, RequestHead, ResponseSink, id_prefix
from conch.types.response import InferResponse
from conch.types.tensor import Buffer

#: What /generate says of a model that gives another number of responses.
NOT_ONE: Final = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various "
    "number of responses"
)

#: The member whose members are mapped as if they stood beside it.
_NESTED: Final = "parameters"
#: Models whose inputs are remembered.
_MAX_MODELS: Final = 1024

_encode = msgspec.json.Encoder().encode


class Plane(Protocol):
    """What the codec asks of the data plane, which this room cannot see."""

    @property
    def generation(self) -> int: ...
    def prepare(self, head: RequestHead, /) -> RequestForm: ...
    def metadata(self, name: str, version: str, /) -> pb.ModelMetadataResponse: ...


#: By name: an input's type and its dims, the batch dimension among them.
Inputs = dict[str, tuple[DataType, tuple[int, ...]]]


class GenerateCodec:
    """One per server. Only the event loop calls it."""

    def __init__(self, plane: Plane, max_input_size: int) -> None:
        self._plane = plane
        self._max = max_input_size
        self._inputs: dict[tuple[str, str], Inputs] = {}
        self._generation = -1

    def decode(self, name: str, version: str, body: Buffer, sink: ResponseSink, received_ns: int) -> InferRequest:
        """The request in `body`. Raises InferError."""
        # Triton looks for the model before it reads the body.
        inputs = self._find(name, version)
        if len(body) > self._max:
            raise heads.json_too_large(len(body), self._max)
        mapped = Mapping(inputs, self._max)
        mapped.read(parse(body))
        head = RequestHead(name, version, mapped.id, mapped.heads, (), mapped.parameters, steers=False)
        form = self._plane.prepare(head)
        return InferRequest(form, mapped.id, heads.order_data(mapped.data, form.order), sink, received_ns)

    def _find(self, name: str, version: str) -> Inputs:
        if self._generation != self._plane.generation or len(self._inputs) >= _MAX_MODELS:
            self._inputs.clear()
            self._generation = self._plane.generation
        found = self._inputs.get((name, version))
        if found is None:
            described = self._plane.metadata(name, version)
            found = {each.name: (BY_NAME[each.datatype], tuple(each.shape)) for each in described.inputs}
            self._inputs[name, version] = found
        return found


class Mapping:
    """What a body means to a model with `inputs`: tensors and parameters, in the order in which they are found."""

    def __init__(self, inputs: Inputs, limit: int) -> None:
        self._inputs = inputs
        #: The most bytes that all tensors together may have.
        self._limit = limit
        self._size = 0
        self.id = ""
        self.heads: list[InputHead] = []
        self.data: list[Buffer] = []
        self.parameters: dict[str, Parameter] = {}

    def read(self, root: Any) -> None:
        """Raises InferError with Triton's texts."""
        members = _members(root)
        if "id" in members:
            try:
                self.id = heads.text(members["id"])
            except InferError as error:
                raise internal(f"Unable to parse 'id': {error.message}") from None
        for key, value in members.items():
            if key == _NESTED:
                self._read_nested(value)
            else:
                self._read_member(key, value)

    def _read_nested(self, value: Any) -> None:
        if _NESTED in self._inputs:
            raise invalid(f"Keyword '{_NESTED}' for nested schema also given as input tensor name")
        if not isinstance(value, dict):
            raise internal(
                f"Expected JSON object for keyword: '{_NESTED}': attempt to access JSON non-object as object"
            )
        try:
            for key, inner in value.items():
                self._read_member(key, inner)
        except InferError as error:
            raise InferError(error.code, f"Converting keyword: '{_NESTED}': {error.message}", error.hint) from None

    def _read_member(self, key: str, value: Any) -> None:
        found = self._inputs.get(key)
        if found is None:
            self.parameters[key] = heads.parameter(key, value)
            return
        datatype, dims = found
        if key in [head.name for head in self.heads]:
            raise invalid(id_prefix(self.id) + f"input '{key}' already exists in request")
        elements = value if isinstance(value, list) else [value]
        shape = deduce_shape(key, dims, len(elements))
        data = Reader(key, datatype, -1 if datatype is BYTES else len(elements)).read(elements)
        self._size += len(data)
        if self._size > self._limit:
            raise invalid(
                f"request size of {self._size} bytes with input '{key}' of size {len(data)} bytes exceeds the maximum "
                f"allowed input size of {self._limit}. {heads.RAISE_LIMIT}"
            )
        self.heads.append(InputHead(key, datatype.name, shape))
        self.data.append(data)


def _members(root: Any) -> dict[str, Any]:
    if not isinstance(root, dict):
        raise internal("attempt to get members for non-object")
    return root


def deduce_shape(name: str, dims: Sequence[int], count: int) -> tuple[int, ...]:
    """The shape of `count` elements where the model says `dims`.

    The innermost open size takes what the fixed ones leave, the other open ones become 1. Raises InferError where
    nothing fits.
    """
    fixed = math.prod([size for size in dims if size != -1])
    if count % fixed if fixed else count:
        raise _no_shape(name)
    rest = count // fixed if fixed else 1
    shape = list(dims)
    for place in reversed(range(len(shape))):
        if shape[place] == -1:
            shape[place], rest = rest, 1
    if rest != 1:
        raise _no_shape(name)
    return tuple(shape)


def _no_shape(name: str) -> InferError:
    return invalid(f"The schema can not convert input '{name}' to tensor with proper shape")


def encode(request: InferRequest, response: InferResponse) -> bytes:
    """The response as one flat JSON object, its keys in alphabetical order. Raises InferError.

    A tensor of one element is that element, any other a flat array. Where names collide, tensors win over parameters
    and both over what the server says. Parameters that are NaN or infinite become null.
    """
    form = request.form
    members: dict[str, bytes] = {
        "model_name": _encode(form.head.model_name),
        "model_version": b'"%d"' % form.version,
    }
    if request.id:
        members["id"] = _encode(request.id)
    for name, value in (response.parameters or {}).items():
        members[name] = _encode(value)
    for tensor in response.outputs:
        text = Writer(tensor.datatype, len(tensor.data)).write(tensor.data)
        members[tensor.name] = text[1:-1] if math.prod(tensor.shape) == 1 else text
    return b"{" + b",".join([b"%b:%b" % (_encode(key), members[key]) for key in sorted(members)]) + b"}"


def event(text: bytes) -> bytes:
    """One server-sent event; JSON has no line breaks of its own."""
    return b"data: %b\n\n" % text
