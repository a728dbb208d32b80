"""What the HTTP codec remembers of a request head: the core's form, where bytes come from, how answers are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import msgspec

from conch.protocol.v2.delivery import Delivery
from conch.protocol.v2.head import Wishes
from conch.protocol.v2.numbers import Reader, Writer
from conch.protocol.v2.place import Place
from conch.protocol.v2.rendering import Rendering, is_heavy, write
from conch.types.request import Parameter, RequestForm
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor

#: Response layouts kept per head; BYTES outputs have one per byte size.
MAX_TEMPLATES: Final = 256

_JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
_BINARY_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n"
)

_encode = msgspec.json.Encoder().encode


class Template:
    """The answers of one layout: everything but the id, the response parameters and the tensors' bytes.

    `pieces` are the JSON from `"outputs"` on, cut where data goes in; `writers[i]` makes the text between the pieces i
    and i+1 from the output number `places[i]`. `blobs` are the numbers of the outputs that follow as bytes.
    """

    __slots__ = ("_constant", "_lead", "_pieces", "_places", "_size", "_writers", "blobs", "heavy")

    def __init__(self, lead: bytes, outputs: Sequence[Tensor], wishes: Wishes) -> None:
        self._lead = lead
        self._writers: list[Writer] = []
        self._places: list[int] = []
        self._size = 0
        self.blobs: list[int] = []
        #: The text is to be written in steps.
        self.heavy = False
        pieces = [b',"outputs":[']
        for place, tensor in enumerate(outputs):
            described = _encode({"name": tensor.name, "datatype": tensor.datatype.name, "shape": tensor.shape})
            pieces[-1] += b"," * (place > 0) + described[:-1]
            size = len(tensor.data)
            if tensor.name in wishes.places:
                pieces[-1] += b"}"
            elif wishes.binary(tensor.name):
                pieces[-1] += b',"parameters":{"binary_data_size":%d}}' % size
                self._size += size
                if size:
                    self.blobs.append(place)
            else:
                self._writers.append(Writer(tensor.datatype, size))
                self.heavy = self.heavy or is_heavy(tensor.datatype, size)
                self._places.append(place)
                pieces[-1] += b',"data":'
                pieces.append(b"}")
        pieces[-1] += b"]}"
        self._pieces = pieces
        #: The whole answer up to the blobs, where nothing in it varies: no id, no parameters, no JSON data.
        self._constant = None if self._writers else self._finish(b"{" + lead + pieces[0])

    def render(
        self, id: str, parameters: dict[str, Parameter] | None, outputs: Sequence[Tensor]
    ) -> tuple[bytes, bytes]:
        """The response's HTTP head without its closing empty line, and its JSON.

        Parameters that are NaN or infinite become null.
        """
        if self._constant is not None and not id and not parameters:
            return self._constant
        text = self._begin(id, parameters)
        if len(self._writers) == 1:
            before, after = self._pieces
            return self._finish(b"".join((text, before, self._writers[0].write(outputs[self._places[0]].data), after)))
        parts = [text, self._pieces[0]]
        for place, writer, piece in zip(self._places, self._writers, self._pieces[1:], strict=True):
            parts.append(writer.write(outputs[place].data))
            parts.append(piece)
        return self._finish(b"".join(parts))

    def write(self, id: str, parameters: dict[str, Parameter] | None, outputs: Sequence[Tensor]) -> Iterator[bytes]:
        """The JSON of `render`, in pieces."""
        yield self._begin(id, parameters) + self._pieces[0]
        for place, piece in zip(self._places, self._pieces[1:], strict=True):
            yield from write(outputs[place].datatype, outputs[place].data)
            yield piece

    def head(self, size: int) -> bytes:
        """The HTTP head of an answer whose JSON has `size` bytes."""
        return _BINARY_HEAD % (size, size + self._size) if self.blobs else _JSON_HEAD % size

    def _begin(self, id: str, parameters: dict[str, Parameter] | None) -> bytes:
        text = b'{"id":' + _encode(id) + b"," + self._lead if id else b"{" + self._lead
        return text + b',"parameters":' + _encode(parameters) if parameters else text

    def _finish(self, text: bytes) -> tuple[bytes, bytes]:
        return self.head(len(text)), text


class Pattern:
    """One distinct head of requests: its form, and the layouts of its answers."""

    __slots__ = ("_lead", "_templates", "_wishes", "delivery", "form")

    def __init__(self, form: RequestForm, wishes: Wishes, delivery: Delivery | None = None) -> None:
        self.form = form
        #: What happens to outputs before they are encoded; None for nothing.
        self.delivery = delivery
        self._wishes = wishes
        self._templates: dict[Any, Template] = {}
        self._lead = b'"model_name":%s,"model_version":"%d"' % (_encode(form.head.model_name), form.version)

    def of(self, form: RequestForm) -> Pattern:
        """The same wishes for the answers of another version, whose form has taken the place of this one's."""
        found = form.memo.get(self)
        if found is None:
            found = form.memo[self] = Pattern(form, self._wishes, self.delivery)
        return cast("Pattern", found)

    def encode(self, id: str, response: InferResponse) -> tuple[bytes, list[Buffer]] | Rendering:
        """The response's HTTP head without the closing empty line, and its body: JSON, then the blobs. What would take
        long is only begun.

        Raises InferError where an output cannot be sent as the client asked.
        """
        outputs = response.outputs
        key: Any
        if len(outputs) == 1:
            tensor = outputs[0]
            key = (tensor.name, tensor.datatype, tensor.shape, len(tensor.data))
        else:
            key = tuple([(each.name, each.datatype, each.shape, len(each.data)) for each in outputs])
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            template = self._templates[key] = Template(self._lead, outputs, self._wishes)
        if template.heavy:
            return _rendering(template, id, response)
        head, text = template.render(id, response.parameters, outputs)
        return head, [text, *[outputs[place].data for place in template.blobs]]


def _rendering(template: Template, id: str, response: InferResponse) -> Rendering:
    outputs = response.outputs

    def finish(text: list[bytes]) -> tuple[bytes, list[Buffer]]:
        return template.head(sum(map(len, text))), [*text, *[outputs[place].data for place in template.blobs]]

    return Rendering(template.write(id, response.parameters, outputs), finish)


class Layout:
    """Where the bytes of a request with this very head are.

    `sizes[i]` is the byte size of the client's i-th input after the JSON, `head.IN_JSON` where its data is in the
    JSON; then `readers[i]` takes it from there. `total` is how many bytes follow the JSON. `places[i]` is where an
    input lies in a region; None as a whole where no input does.
    """

    __slots__ = ("pattern", "places", "readers", "sizes", "total")

    def __init__(
        self,
        pattern: Pattern,
        sizes: tuple[int, ...],
        readers: tuple[Reader | None, ...],
        places: tuple[Place | None, ...] | None = None,
    ) -> None:
        self.places = places
        self.pattern = pattern
        self.sizes = sizes
        self.readers = readers
        self.total = sum([size for size in sizes if size > 0])
