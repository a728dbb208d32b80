"""ModelInfer's messages to requests and back, fast for messages that differ only in their id and tensor bytes.

Clients send the same request again and again. So the first of its kind is parsed and checked, and what precedes and
follows its id is kept as bytes: a message that begins with these bytes means the same request with other data.
Answers are likewise put together from bytes made once per form and output shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Final, Protocol

from conch.memory.regions import Regions
from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.protocol.v2 import grpc_request as long_way
from conch.protocol.v2.delivery import Delivery, make_delivery, read_places
from conch.protocol.v2.grpc_request import RAW_INPUT_CONTENTS, Field, read_varint, unparsable, varint
from conch.protocol.v2.place import Place
from conch.protocol.v2.sequence_heads import SequenceHeads
from conch.types.error import InferError, internal, invalid, unsupported
from conch.types.request import InferRequest, Parameter, RequestForm, RequestHead, ResponseSink
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor

#: Kinds of message remembered per connection.
_TEMPLATES: Final = 8
#: From this many bytes on a tensor stays where it arrived.
_COPY_LIMIT: Final = 8_192
#: A head longer than this is not worth remembering: it holds typed data or a long parameter.
_MAX_TEMPLATE: Final = 16_384
_MAX_HEADS: Final = 64
_ID_TAG: Final = 0x1A
_RAW_INPUT_TAG: Final = 0x3A
#: The largest message that gRPC clients take.
MAX_RESPONSE: Final = 2_147_483_647
_MAX_INT64: Final = (1 << 63) - 1


#: For each input as the client orders them, where in a region it lies; None for those that came with the message.
Places = Sequence[Place | None]


class Plane(Protocol):
    """What the codec asks of the data plane."""

    @property
    def generation(self) -> int: ...
    def prepare(self, head: RequestHead) -> RequestForm: ...
    def model_ready(self, name: str, version: str) -> bool: ...
    def config(self, name: str, version: str, /) -> ModelConfig: ...
    def labels(self, name: str, version: str, output: str, /) -> Sequence[bytes]: ...


class Template:
    """The bytes of one kind of message: `prefix`, an id or none, `rest`, and then the raw inputs."""

    __slots__ = ("delivery", "form", "order", "places", "prefix", "raw", "rest", "single")

    def __init__(
        self, form: RequestForm, prefix: bytes, rest: bytes, places: Places = (), delivery: Delivery | None = None
    ) -> None:
        self.form = form
        #: Where inputs lie that are in regions, as the client orders them; None as a whole where no input is.
        self.places = None if places.count(None) == len(places) else places
        #: What happens to outputs before they are encoded; None for nothing.
        self.delivery = delivery
        self.prefix = prefix
        self.rest = rest
        #: For each raw input as the client orders them, its tag and length as bytes, and the length; BYTES: b"", -1.
        self.raw: list[tuple[bytes, int]] = [(b"", -1)] * len(form.order)
        for place, size in zip(form.order, form.sizes, strict=True):
            if size >= 0:
                self.raw[place] = (b"\x3a" + varint(size), size)
        #: None where the client's order is the model's.
        self.order = None if form.order == tuple(range(len(form.order))) else form.order
        if self.places is not None:
            # What is read from the message is put together with what is read from regions.
            self.raw = [header for header, place in zip(self.raw, places, strict=True) if place is None]
            self.order = None
        #: For the commonest kind, one input of fixed size: its size; `rest` then ends with its tag and length.
        self.single = -1
        if len(self.raw) == 1 and self.raw[0][0] and self.places is None:
            header, self.single = self.raw[0]
            self.rest += header

    def tail(self) -> int:
        """How many bytes follow `rest`; -1 where they vary, or inputs lie in regions."""
        if self.places is not None or not all(header for header, _ in self.raw):
            return -1
        return self.single if self.single >= 0 else sum([len(header) + size for header, size in self.raw])

    def of_sequence(self, name: int | str, rest: bytes) -> Template:
        """The same kind of message, of another sequence."""
        head = replace(self.form.head, parameters={**self.form.head.parameters, "sequence_id": name})
        other = copy(self)
        other.form = replace(self.form, head=head, correlation_id=name, memo={})
        other.rest = rest
        return other


class GrpcCodec:
    """The codec of one connection. Loop thread only."""

    __slots__ = ("_plane", "_regions", "_sequences", "_streams", "_templates")

    def __init__(self, plane: Plane, streams: bool = False, regions: Regions | None = None) -> None:
        """`streams`: for calls that may be answered any number of times, as decoupled models do.

        `regions`: what clients have registered; without them there is nothing to find.
        """
        self._plane = plane
        self._regions = regions or Regions(allowed=False)
        self._streams = streams
        #: Most recently used first.
        self._templates: list[Template] = []
        #: Those of requests that name a sequence; None until there is one.
        self._sequences: SequenceHeads[Template] | None = None

    def decode_infer(  # noqa: PLR0912  calls cost more than the work
        self, message: Buffer, sink: ResponseSink, received_ns: int
    ) -> InferRequest:
        """`message` is `bytes` or, when large, memory that the request keeps. Raises InferError."""
        templates = self._templates
        if templates:
            head = message if type(message) is bytes else bytes(message[:_MAX_TEMPLATE])
            generation = self._plane.generation
            for place, template in enumerate(templates):
                if template.form.generation != generation:
                    templates.clear()
                    break
                prefix = template.prefix
                if not head.startswith(prefix):
                    continue
                at = len(prefix)
                request_id = ""
                if len(head) > at + 1 and head[at] == _ID_TAG:
                    size = head[at + 1]
                    at += 2
                    if size > 127:
                        # Such long ids are rare enough for the long way.
                        break
                    try:
                        request_id = str(head[at : at + size], "utf-8")
                    except UnicodeDecodeError:
                        raise unparsable() from None
                    at += size
                rest = template.rest
                if not head.startswith(rest, at):
                    continue
                at += len(rest)
                size = template.single
                if size >= 0:
                    if len(message) - at != size:
                        break
                    data: tuple[Buffer, ...] = (
                        bytes(message[at:]) if size < _COPY_LIMIT else memoryview(message)[at:],
                    )
                else:
                    cut = _cut(message, at, template)
                    if cut is None:
                        # Without raw inputs to come, other messages may begin like this one.
                        continue
                    data = cut if template.places is None else self._fill(template.form, template.places, cut)
                if place:
                    templates.insert(0, templates.pop(place))
                if template.delivery is not None:
                    sink = template.delivery.before(sink, self._regions)
                return InferRequest(template.form, request_id, data, sink, received_ns)
        if self._sequences is not None:
            found = self._sequences.find(message, self._plane.generation)
            if found is not None:
                template, request_id, at = found
                cut = (bytes(message[at:]),) if template.single >= 0 else _cut(message, at, template)
                if cut is not None:
                    return InferRequest(template.form, request_id, cut, sink, received_ns)
        return self._decode_new(message, sink, received_ns)

    def encode_infer(
        self, request: InferRequest, response: InferResponse, mark: bytes = b""
    ) -> tuple[list[Buffer], int]:
        """A ModelInferResponse in pieces, and their length in all. Raises InferError when it cannot be sent.

        `mark` are fields to put in, as bytes.
        """
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
        if mark:
            before += mark
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
            places = long_way.input_places(parsed)
            data = long_way.input_data(parsed, raw, places)
            classes, outputs = long_way.output_wishes(parsed.outputs)
            self._check(places, outputs, head)
        except InferError:
            # Triton looks for the model first, and for inputs sent twice.
            self._plane.model_ready(head.model_name, head.model_version)
            if len({tensor.name for tensor in head.inputs}) < len(head.inputs):
                self._plane.prepare(head)
            raise
        form = self._plane.prepare(head)
        if form.decoupled and not self._streams:
            raise unsupported("ModelInfer RPC doesn't support models with decoupled transaction policy")
        delivery = make_delivery(self._plane, form, classes, outputs)
        if fields is not None and len(raw) == places.count(None):
            self._remember(message, fields, form, raw, places, delivery)
        data = [bytes(each) if len(each) < _COPY_LIMIT else each for each in data]
        read_places(self._regions, places, [each.datatype for each in head.inputs], data)
        if delivery is not None:
            sink = delivery.before(sink, self._regions)
        return InferRequest(form, head.id, tuple([data[place] for place in form.order]), sink, received_ns)

    def _check(self, inputs: Places, outputs: Mapping[str, Place], head: RequestHead) -> None:
        """Triton looks for the model, then for regions, and then at the rest of the request."""
        found = [place for place in (*inputs, *outputs.values()) if place is not None]
        if found:
            self._plane.model_ready(head.model_name, head.model_version)
        for place in found:
            self._regions.window(place.region, place.offset, place.byte_size)

    def _fill(self, form: RequestForm, places: Places, cut: Sequence[Buffer]) -> tuple[Buffer, ...]:
        """The inputs in the model's order: `cut` are those that came with the message, as the client orders them."""
        rest = iter(cut)
        data = [next(rest) if place is None else b"" for place in places]
        read_places(self._regions, places, [each.datatype for each in form.head.inputs], data)
        return tuple([data[place] for place in form.order])

    def _remember(
        self,
        message: Buffer,
        fields: Sequence[Field],
        form: RequestForm,
        raw: Sequence[Buffer],
        places: Places,
        delivery: Delivery | None,
    ) -> None:
        """Make a template of a message that is laid out as all clients do: in the order of the fields' numbers."""
        numbers = [field[0] for field in fields]
        first = len(numbers) - len(raw)
        stop = fields[first][1] if raw else len(message)
        sent = [size for size, place in zip(_by_client(form), places, strict=True) if place is None]
        # Name, version and id at most once, raw inputs last and as many as inputs.
        if (
            numbers != sorted(numbers)
            or any(number != RAW_INPUT_CONTENTS for number in numbers[first:])
            or any(numbers.count(number) > 1 for number in (1, 2, 3))
            or any(size not in (-1, len(data)) for size, data in zip(sent, raw, strict=True))
            or stop > _MAX_TEMPLATE
        ):
            return
        end = max([field[3] for field in fields if field[0] <= 2], default=0)
        rest = next((field[1] for field in fields if field[0] > 3), stop)
        template = Template(form, bytes(message[:end]), bytes(message[rest:stop]), places, delivery)
        tail = template.tail()
        if form.correlation_id and 0 <= tail < _COPY_LIMIT and delivery is None:
            if self._sequences is None:
                self._sequences = SequenceHeads()
            self._sequences.add(template, tail, form.generation, form.correlation_id)
            return
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
            if view[at : at + len(header)] != header:
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
        data.append(bytes(view[at:stop]) if size < _COPY_LIMIT else view[at:stop])
        at = stop
    if at != end:
        return None
    return tuple(data) if template.order is None else tuple([data[place] for place in template.order])


def _by_client(form: RequestForm) -> list[int]:
    """The byte sizes of the inputs in the client's order."""
    sizes = [0] * len(form.order)
    for place, size in zip(form.order, form.sizes, strict=True):
        sizes[place] = size
    return sizes


def _response_head(form: RequestForm, outputs: Sequence[Tensor]) -> tuple[bytes, bytes]:
    """What stands before and after the id, up to the raw outputs."""
    before = pb.ModelInferResponse(model_name=form.head.model_name, model_version=str(form.version))
    after = pb.ModelInferResponse()
    for output in outputs:
        after.outputs.add(name=output.name, datatype=output.datatype.name, shape=output.shape)
    return before.SerializeToString(), after.SerializeToString()


def _parameters(given: dict[str, Parameter]) -> bytes:
    """Raises InferError (INTERNAL) for a value that protobuf has no room for."""
    message = pb.ModelInferResponse()
    for key, value in given.items():
        try:
            _put(message.parameters[key], value)
        except ValueError as error:
            raise internal(f"the response's parameter '{key}' cannot be sent over gRPC: {error}") from error
    return message.SerializeToString()


def _put(into: pb.InferParameter, value: Parameter) -> None:
    if isinstance(value, bool):
        into.bool_param = value
    elif isinstance(value, int):
        if value > _MAX_INT64:
            into.uint64_param = value
        else:
            into.int64_param = value
    elif isinstance(value, float):
        into.double_param = value
    else:
        into.string_param = value


_ONE_BYTE: Final = [bytes([size]) for size in range(128)]
