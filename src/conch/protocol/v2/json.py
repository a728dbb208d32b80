"""Infer requests over HTTP: JSON, with tensors inside it or as bytes behind it.

Clients send the same JSON again and again, or the same but for its `id` and its numbers. What a head means is worked
out once; then a binary request costs a look-up and slices, a JSON request a typed parse and a look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from conch.memory.regions import Regions
from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.protocol.v2 import head as heads
from conch.protocol.v2 import raw
from conch.protocol.v2.asked import NOTHING, Asked, AskedInput
from conch.protocol.v2.bulk import LARGE, BulkReader
from conch.protocol.v2.delivery import make_delivery, read_places
from conch.protocol.v2.head import Described, Input, Target, Wishes
from conch.protocol.v2.layout import Layout, Pattern
from conch.protocol.v2.lenient import parse
from conch.protocol.v2.numbers import Reader
from conch.protocol.v2.pieces import SLOW, is_heavy
from conch.protocol.v2.place import Place
from conch.types.dtype import BY_NAME, BYTES
from conch.types.error import InferError, internal, invalid, unsupported
from conch.types.request import MAX_INVENTED, InferRequest, RequestForm, RequestHead, ResponseSink
from conch.types.tensor import Buffer

#: Heads remembered.
MAX_LAYOUTS: Final = 1024


class Plane(Protocol):
    """What the codec asks of the data plane, which this room cannot see."""

    @property
    def generation(self) -> int: ...
    def prepare(self, head: RequestHead, /) -> RequestForm: ...
    def metadata(self, name: str, version: str, /) -> pb.ModelMetadataResponse: ...
    def config(self, name: str, version: str, /) -> ModelConfig: ...
    def labels(self, name: str, version: str, output: str, /) -> Sequence[bytes]: ...


class JsonCodec:
    """One per server. Only the event loop calls it."""

    def __init__(self, plane: Plane, max_input_size: int, regions: Regions | None = None) -> None:
        """`regions`: what clients have registered; without them there is nothing to find."""
        self._plane = plane
        self._regions = regions or Regions(allowed=False)
        self._max = max_input_size
        self._bulk = BulkReader()
        self._decode = msgspec.json.Decoder(Asked).decode
        #: By a binary request's JSON without its id, and by the parts of a JSON request's head.
        self._layouts: dict[Any, Layout] = {}
        #: By what the core was told of a head, and how its answer is wanted.
        self._patterns: dict[Any, Pattern] = {}

    def heavy_text(self, target: Target, body: Buffer) -> Buffer | None:
        """The JSON of `body`, at least `SLOW` bytes, where `pieces.Reading` is to read it before it is decoded."""
        size = target.json_size if target.json_size >= 0 else len(body)
        text = body[:size]
        return text if SLOW <= len(text) <= self._max and is_heavy(text) else None

    def decode_infer(
        self, target: Target, body: Buffer, sink: ResponseSink, received_ns: int, asked: Asked | None = None
    ) -> tuple[InferRequest, Pattern]:
        """The request in `body`, and the pattern that encodes its answer. `asked`: its JSON, where that has been read.

        The request's data may be views of `body`. Raises InferError.
        """
        json_size = target.json_size
        if 0 < json_size < len(body):
            ident, data, layout = self._decode_binary(target, bytes(body[:json_size]), body[json_size:], asked)
        elif json_size == 0:
            ident, data, layout = self._decode_raw(target, body)
        elif json_size < 0 or json_size == len(body):
            ident, data, layout = self._decode_json(target, body, b"", asked)
        else:
            raise invalid(f"inference header size should be in range (0, {len(body)}), got: {json_size}")
        pattern = layout.pattern
        if pattern.delivery is not None:
            sink = pattern.delivery.before(sink, self._regions)
        return InferRequest(pattern.form, ident, data, sink, received_ns), pattern

    def _decode_binary(
        self, target: Target, text: bytes, blobs: Buffer, asked: Asked | None
    ) -> tuple[str, tuple[Buffer, ...], Layout]:
        # The id is the first member of what the usual clients send, and the only one that changes.
        if text.startswith(b'{"id":"'):
            end = text.find(b'"', 7)
            ident, rest = text[7:end], text[end:]
        elif text.startswith(b'{"id": "'):
            end = text.find(b'"', 8)
            ident, rest = text[8:end], text[end:]
        else:
            ident, rest = b"", text
        plain = not ident or _is_plain(ident)
        layout = self._layouts.get((target.name, target.scope, rest))
        if layout is None or layout.pattern.form.generation != self._plane.generation or not plain:
            found, data, layout = self._decode_json(target, text, blobs, asked)
            # Only where the text that was cut out really is the id is the rest the head.
            binary = layout.readers.count(None) == len(layout.readers) and layout.places is None
            if plain and binary and found == ident.decode() and len(text) <= MAX_INVENTED:
                self._remember((target.name, target.scope, rest), layout)
            return found, data, layout
        if len(blobs) != layout.total:
            raise _wrong_total(target, layout, len(blobs))
        if len(layout.sizes) == 1:
            return ident.decode(), (blobs,), layout
        return ident.decode(), heads.order_data(_slices(layout.sizes, blobs), layout.pattern.form.order), layout

    def _decode_json(
        self, target: Target, text: Buffer, blobs: Buffer, asked: Asked | None
    ) -> tuple[str, tuple[Buffer, ...], Layout]:
        if len(text) > self._max:
            raise heads.json_too_large(len(text), self._max)
        try:
            if asked is None:
                asked = (self._bulk.read(text) if len(text) >= LARGE else None) or self._decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._decode_carefully(target, text, blobs)
        inputs = asked.inputs
        described: Any
        if len(inputs) == 1:
            one = inputs[0]
            described = (one.name, one.datatype, one.shape, _text(one.parameters), one.data is msgspec.UNSET)
        else:
            described = tuple(
                [(i.name, i.datatype, i.shape, _text(i.parameters), i.data is msgspec.UNSET) for i in inputs]
            )
        key = (target.name, target.scope, described, _text(asked.parameters), _text(asked.outputs))
        layout = self._layouts.get(key)
        if layout is None or layout.pattern.form.generation != self._plane.generation:
            given = [Input(i.name, i.datatype, i.shape, _parsed(i.parameters), i.data) for i in inputs]
            layout = self._make_layout(
                target, Described(asked.id, given, _parsed(asked.parameters), _parsed(asked.outputs))
            )
            texts = [asked.parameters, asked.outputs, *[each.parameters for each in inputs]]
            if sum([len(_text(each)) for each in texts]) <= MAX_INVENTED:
                self._remember(key, layout)
        return asked.id, self._collect(target, layout, inputs, blobs), layout

    def _decode_carefully(self, target: Target, text: Buffer, blobs: Buffer) -> tuple[str, tuple[Buffer, ...], Layout]:
        """What the typed parser refuses: either Triton takes it all the same, or the client is told what is wrong."""
        self._look(target)
        described = heads.describe(parse(text))
        layout = self._make_layout(target, described)
        return described.id, self._collect(target, layout, described.inputs, blobs), layout

    def _decode_raw(self, target: Target, body: Buffer) -> tuple[str, tuple[Buffer, ...], Layout]:
        """The whole body is the one input's data; the answer's outputs are all binary."""
        if len(body) > self._max:
            raise invalid(
                f"Raw input has a byte_size ({len(body)} bytes) that exceeds the maximum allowed value of {self._max} "
                f"bytes. {heads.RAISE_LIMIT}"
            )
        given, data = raw.input_of(target.name, self._look(target), body)
        described = Described("", [given], {"binary_data_output": True}, msgspec.UNSET)
        return "", (data,), self._make_layout(target, described)

    def _remember(self, key: Any, layout: Layout) -> None:
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = layout

    def _look(self, target: Target) -> ModelConfig:
        """As Triton, look for the model, and for its transaction policy, before anything else."""
        config = self._plane.config(target.name, target.version)
        if config.model_transaction_policy.decoupled:
            raise unsupported("HTTP end point doesn't support models with decoupled transaction policy")
        return config

    def _make_layout(self, target: Target, described: Described) -> Layout:
        self._look(target)
        kept, default_binary = heads.read_parameters(described.parameters)
        kept.update(target.forwarded)
        inputs = described.inputs
        sizes = tuple([heads.binary_size(each) for each in inputs])
        wishes = heads.read_wishes(described.outputs, default_binary)
        input_heads = [heads.input_head(each) for each in inputs]
        places = self._find_places(target, inputs, sizes, wishes)
        key = (
            target.name,
            target.version,
            tuple([(each.name, each.datatype, each.shape) for each in inputs]),
            # 1, 1.0 and True are equal, and different parameters.
            tuple([(name, type(value), value) for name, value in kept.items()]),
            tuple(wishes.kinds.items()),
            tuple(wishes.classes.items()),
            tuple(wishes.places.items()),
            wishes.names,
            default_binary,
        )
        pattern = self._patterns.get(key)
        if pattern is None or pattern.form.generation != self._plane.generation:
            head = RequestHead(target.name, target.version, described.id, input_heads, wishes.names, kept)
            form = self._plane.prepare(head)
            pattern = Pattern(form, wishes, make_delivery(self._plane, form, wishes.classes, wishes.places))
            if head.brief:
                if len(self._patterns) >= MAX_LAYOUTS:
                    self._patterns.clear()
                self._patterns[key] = pattern
        return Layout(pattern, sizes, self._make_readers(pattern, inputs, sizes), places)

    def _find_places(
        self, target: Target, inputs: Sequence[Input], sizes: tuple[int, ...], wishes: Wishes
    ) -> tuple[Place | None, ...] | None:
        """Where inputs lie that are in regions; None if none does. Triton looks for regions before it looks at the
        rest of the request, and for the model before all."""
        if heads.IN_REGION not in sizes and not wishes.places:
            return None
        self._plane.metadata(target.name, target.version)
        places = tuple(
            [
                heads.read_place(each.parameters) if size == heads.IN_REGION else None
                for each, size in zip(inputs, sizes, strict=True)
            ]
        )
        for place in (*places, *wishes.places.values()):
            if place is not None:
                self._regions.window(place.region, place.offset, place.byte_size)
        return places if heads.IN_REGION in sizes else None

    def _make_readers(
        self, pattern: Pattern, inputs: Sequence[Input], sizes: tuple[int, ...]
    ) -> tuple[Reader | None, ...]:
        form = pattern.form
        readers: list[Reader | None] = [None] * len(sizes)
        for place, count, size in zip(form.order, form.counts, form.sizes, strict=True):
            if sizes[place] == heads.IN_JSON:
                given = inputs[place]
                if size > self._max:
                    raise self._too_large(given.name, size)
                datatype = BY_NAME[given.datatype]
                readers[place] = Reader(given.name, datatype, -1 if datatype is BYTES else count)
        return tuple(readers)

    def _collect(
        self, target: Target, layout: Layout, inputs: Sequence[Input | AskedInput], blobs: Buffer
    ) -> tuple[Buffer, ...]:
        """The bytes of each input, in the order of the form."""
        if len(blobs) != layout.total:
            raise _wrong_total(target, layout, len(blobs))
        readers = layout.readers
        if len(readers) == 1 and readers[0] is not None:
            only = readers[0].read(inputs[0].data)  # type: ignore[arg-type]
            if len(only) > self._max:
                raise self._too_large(inputs[0].name, len(only))
            return (only,)
        pieces = _slices(layout.sizes, blobs)
        if layout.places is not None:
            read_places(self._regions, layout.places, [each.datatype for each in inputs], pieces)
        for place, reader in enumerate(readers):
            if reader is not None:
                piece = pieces[place] = reader.read(inputs[place].data)  # type: ignore[arg-type]
                if len(piece) > self._max:
                    raise self._too_large(inputs[place].name, len(piece))
        return heads.order_data(pieces, layout.pattern.form.order)

    def _too_large(self, name: str, size: int) -> InferError:
        return invalid(
            f"JSON input '{name}' has a byte_size ({size} bytes) that exceeds the maximum allowed value of "
            f"{self._max} bytes. {heads.RAISE_LIMIT}"
        )


def _is_plain(ident: bytes) -> bool:
    """Whether the text of an id is the id: no escapes, nothing that JSON forbids."""
    return ident.isascii() and b"\\" not in ident and ident.decode().isprintable()


def _text(member: msgspec.Raw) -> bytes:
    return b"" if member is NOTHING else bytes(member)


def _parsed(text: msgspec.Raw) -> Any:
    return parse(bytes(text)) if text is not NOTHING else msgspec.UNSET


def _slices(sizes: tuple[int, ...], blobs: Buffer) -> list[Buffer]:
    """Each input's share of `blobs`; inputs without one get nothing."""
    pieces: list[Buffer] = []
    at = 0
    for size in sizes:
        if size > 0:
            pieces.append(blobs[at : at + size])
            at += size
        else:
            pieces.append(b"")
    return pieces


def _wrong_total(target: Target, layout: Layout, size: int) -> InferError:
    if size > layout.total:
        return invalid(f"unexpected additional input data for model '{target.name}'")
    left = size
    for each, wanted in zip(layout.pattern.form.head.inputs, layout.sizes, strict=True):
        if wanted > left:
            return invalid(
                f"unexpected size for input '{each.name}', expecting {wanted - left} additional bytes for model "
                f"'{target.name}'"
            )
        left -= max(wanted, 0)
    return internal("the sizes of the binary inputs do not add up")
