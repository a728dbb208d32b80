"""ModelInfer's messages to requests and back, fast for messages that differ only in their id and tensor bytes.

Clients send the same request again and again. So the first of its kind is parsed and checked, and what precedes and
follows its id is kept as bytes: a message that begins with these bytes means the same request with other data.
Answers are likewise put together from bytes made once per form and output shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2 import grpc_request as long_way
from conch.protocol.v2.grpc_request import RAW_INPUT_CONTENTS, Field, read_varint, unparsable, varint
from conch.types.error import InferError, invalid
from conch.types.request import InferRequest, Parameter, RequestForm, RequestHead, ResponseSink
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor

#: Kinds of message remembered per connection.
_TEMPLATES: Final = 8
#: Above this many bytes a tensor stays where it arrived.
_COPY_LIMIT: Final = 65_536
#: A head longer than this is not worth remembering: it holds typed data or a long parameter.
_MAX_TEMPLATE: Final = 16_384
_MAX_HEADS: Final = 64
_ID_TAG: Final = 0x1A
_RAW_INPUT_TAG: Final = 0x3A
#: The largest message that gRPC clients take.
MAX_RESPONSE: Final = 2_147_483_647


class Plane(Protocol):
    """What the codec asks of the data plane."""

    @property
    def generation(self) -> int: ...
    def prepare(self, head: RequestHead) -> RequestForm: ...
    def model_ready(self, name: str, version: str) -> bool: ...


class Template:
    """The bytes of one kind of message: `prefix`, an id or none, `rest`, and then the raw inputs."""

    __slots__ = ("form", "order", "prefix", "raw", "rest", "single")

    def __init__(self, form: RequestForm, prefix: bytes, rest: bytes) -> None:
        self.form = form
        self.prefix = prefix
        self.rest = rest
        #: For each raw input as the client orders them, its tag and length as bytes, and the length; BYTES: b"", -1.
        self.raw: list[tuple[bytes, int]] = [(b"", -1)] * len(form.order)
        for place, size in zip(form.order, form.sizes, strict=True):
            if size >= 0:
                self.raw[place] = (b"\x3a" + varint(size), size)
        #: None where the client's order is the model's.
        self.order = None if form.order == tuple(range(len(form.order))) else form.order
        #: For the commonest kind, one input of fixed size: its size; `rest` then ends with its tag and length.
        self.single = -1
        if len(self.raw) == 1 and self.raw[0][0]:
            header, self.single = self.raw[0]
            self.rest += header


class GrpcCodec:
    """The codec of one connection. Loop thread only."""

    __slots__ = ("_plane", "_templates")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        #: Most recently used first.
        self._templates: list[Template] = []

    def decode_infer(  # noqa: PLR0912  calls cost more than the work
        self, message: Buffer, sink: ResponseSink, received_ns: int
    ) -> InferRequest:
        """`message` is `bytes` or, when large, a `bytearray` that the request keeps. Raises InferError."""
        templates = self._templates
        if templates:
            generation = self._plane.generation
            for place, template in enumerate(templates):
                if template.form.generation != generation:
                    templates.clear()
                    break
                prefix = template.prefix
                if not message.startswith(prefix):  # type: ignore[union-attr]
                    continue
                at = len(prefix)
                request_id = ""
                if len(message) > at + 1 and message[at] == _ID_TAG:
                    size = message[at + 1]
                    at += 2
                    if size > 127:
                        # Such long ids are rare enough for the long way.
                        break
                    try:
                        request_id = str(message[at : at + size], "utf-8")
                    except UnicodeDecodeError:
                        raise unparsable() from None
                    at += size
                rest = template.rest
                if not message.startswith(rest, at):  # type: ignore[union-attr]
                    continue
                at += len(rest)
                size = template.single
                if size >= 0:
                    if len(message) - at != size:
                        break
                    data: tuple[Buffer, ...] = (message[at:] if size < _COPY_LIMIT else memoryview(message)[at:],)
                else:
                    cut = _cut(message, at, template)
                    if cut is None:
                        break
                    data = cut
                if place:
                    templates.insert(0, templates.pop(place))
                return InferRequest(template.form, request_id, data, sink, received_ns)
        return self._decode_new(message, sink, received_ns)

    def encode_infer(self, request: InferRequest, response: InferResponse) -> tuple[list[Buffer], int]:
        """A ModelInferResponse in pieces, and their length in all. Raises InferError when it is too long."""
        outputs = response.outputs
        heads = request.form.memo.get("grpc")
        if heads is None:
            heads = request.form.memo["grpc"] = {}
        if len(outputs) == 1:
            output = outputs[0]
            key: object = (output.name, output.shape, output.datatype)
        else:
            key = tuple([(output.name, output.shape, output.datatype) for output in outputs])
        head = heads.get(key)
        if head is None:
            if len(heads) >= _MAX_HEADS:
                heads.clear()
            head = heads[key] = _response_head(request.form, outputs)
        before, after = head
        parameters = response.parameters
        if request.id:
            raw_id = request.id.encode()
            size = len(raw_id)
            before = b"%b\x1a%b%b" % (before, _ONE_BYTE[size] if size < 128 else varint(size), raw_id)
        if parameters:
            before += _parameters(parameters)
        if len(outputs) == 1:
            data = outputs[0].data
            size = len(data)
            start = b"%b%b2%b" % (before, after, _ONE_BYTE[size] if size < 128 else varint(size))
            length = len(start) + size
            parts: list[Buffer] = [start, data]
        else:
            parts = [before + after]
            length = len(before) + len(after)
            for output in outputs:
                size = len(output.data)
                start = b"2" + varint(size)
                parts.append(start)
                parts.append(output.data)
                length += len(start) + size
        if length > MAX_RESPONSE:
            raise invalid(f"Response has byte size {length} which exceeds gRPC's byte size limit {MAX_RESPONSE}.")
        return parts, length

    def _decode_new(self, message: Buffer, sink: ResponseSink, received_ns: int) -> InferRequest:
        fields = long_way.walk(message)
        parsed, raw = long_way.parse(message, fields)
        head = long_way.head_of(parsed)
        try:
            long_way.check_outputs(parsed.outputs)
            data = long_way.input_data(parsed, raw)
        except InferError:
            # Triton looks for the model first, and for inputs sent twice.
            self._plane.model_ready(head.model_name, head.model_version)
            if len({tensor.name for tensor in head.inputs}) < len(head.inputs):
                self._plane.prepare(head)
            raise
        form = self._plane.prepare(head)
        if fields is not None and raw:
            self._remember(message, fields, form, raw)
        data = [bytes(each) if len(each) < _COPY_LIMIT else each for each in data]
        return InferRequest(form, head.id, tuple([data[place] for place in form.order]), sink, received_ns)

    def _remember(self, message: Buffer, fields: Sequence[Field], form: RequestForm, raw: Sequence[Buffer]) -> None:
        """Make a template of a message that is laid out as all clients do: in the order of the fields' numbers."""
        numbers = [field[0] for field in fields]
        first = len(numbers) - len(raw)
        # Name, version and id at most once, raw inputs last and as many as inputs.
        if (
            numbers != sorted(numbers)
            or numbers[-1] != RAW_INPUT_CONTENTS
            or any(numbers.count(number) > 1 for number in (1, 2, 3))
            or len(raw) != len(form.order)
            or any(size not in (-1, len(raw[place])) for place, size in zip(form.order, form.sizes, strict=True))
            or fields[first][1] > _MAX_TEMPLATE
        ):
            return
        end = max([field[3] for field in fields if field[0] <= 2], default=0)
        rest = next((field[1] for field in fields if field[0] > 3), fields[first][1])
        template = Template(form, bytes(message[:end]), bytes(message[rest : fields[first][1]]))
        templates = self._templates
        templates[:] = [each for each in templates if each.prefix != template.prefix or each.rest != template.rest]
        templates.insert(0, template)
        del templates[_TEMPLATES:]


def _cut(message: Buffer, at: int, template: Template) -> tuple[Buffer, ...] | None:
    """The raw inputs from `at` on, in the model's order; None when they are not laid out as the template says."""
    data: list[Buffer] = []
    end = len(message)
    view = memoryview(message)
    for header, size in template.raw:
        if header:
            if not message.startswith(header, at):  # type: ignore[union-attr]
                return None
            at += len(header)
        else:
            if at >= end or message[at] != _RAW_INPUT_TAG:
                return None
            try:
                size, at = read_varint(message, at + 1, end)
            except ValueError:
                return None
        stop = at + size
        if stop > end:
            return None
        data.append(message[at:stop] if size < _COPY_LIMIT else view[at:stop])
        at = stop
    if at != end:
        return None
    return tuple(data) if template.order is None else tuple([data[place] for place in template.order])


def _response_head(form: RequestForm, outputs: Sequence[Tensor]) -> tuple[bytes, bytes]:
    """What stands before and after the id, up to the raw outputs."""
    before = pb.ModelInferResponse(model_name=form.head.model_name, model_version=str(form.version))
    after = pb.ModelInferResponse()
    for output in outputs:
        after.outputs.add(name=output.name, datatype=output.datatype.name, shape=output.shape)
    return before.SerializeToString(), after.SerializeToString()


def _parameters(given: dict[str, Parameter]) -> bytes:
    message = pb.ModelInferResponse()
    for key, value in given.items():
        into = message.parameters[key]
        if isinstance(value, bool):
            into.bool_param = value
        elif isinstance(value, int):
            into.int64_param = value
        elif isinstance(value, float):
            into.double_param = value
        else:
            into.string_param = value
    return message.SerializeToString()


_ONE_BYTE: Final = [bytes([size]) for size in range(128)]
