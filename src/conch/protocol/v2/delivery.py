"""What happens to outputs between the model and the message: classified, or put into a client's shared memory.

Most requests ask for nothing of the kind and have no `Delivery`. For the others the codec puts a sink before the
request's own, so that neither schedulers nor transports know of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from conch.memory.regions import Regions, Window
from conch.pb.model_config_pb2 import ModelConfig
from conch.protocol.v2.classify import classify
from conch.protocol.v2.place import Place
from conch.types.error import InferError, internal
from conch.types.request import InferRequest, RequestForm, ResponseSink
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one distinct head asks for, by the names of outputs; shared by all requests with this head."""

    #: How many classes.
    classes: Mapping[str, int]
    places: Mapping[str, Place]
    #: Of the outputs that are classified.
    labels: Mapping[str, Sequence[bytes]]
    #: Whether the first dimension of the model's outputs is the batch.
    batching: bool

    def before(self, sink: ResponseSink, regions: Regions) -> ResponseSink:
        """The sink of one request: what comes to it goes on to `sink`. Raises InferError for regions not there."""
        windows = {
            output: regions.window(place.region, place.offset, place.byte_size) for output, place in self.places.items()
        }
        return _Deliverer(self, sink, windows)


class Plane(Protocol):
    """What is asked of the data plane, for outputs that are classified."""

    def config(self, name: str, version: str, /) -> ModelConfig: ...
    def labels(self, name: str, version: str, output: str, /) -> Sequence[bytes]: ...


def make_delivery(
    plane: Plane, form: RequestForm, classes: Mapping[str, int], places: Mapping[str, Place]
) -> Delivery | None:
    """None for heads that ask for neither."""
    if not classes and not places:
        return None
    name, version = form.head.model_name, str(form.version)
    labels = {output: plane.labels(name, version, output) for output in classes}
    return Delivery(classes, places, labels, plane.config(name, version).max_batch_size > 0)


def read_places(regions: Regions, places: Sequence[Place | None], datatypes: Sequence[str], into: list[Buffer]) -> None:
    """The bytes of the inputs that lie in regions, in the client's order, put into their places.

    Large tensors are views of the client's memory. BYTES elements are copied: their lengths are checked once, and a
    client that changed them afterwards could mix up its batch.
    """
    for number, place in enumerate(places):
        if place is not None:
            copy = datatypes[number] == "BYTES"
            into[number] = regions.read(place.region, place.offset, place.byte_size, copy=copy)


class _Deliverer:
    """Implements `types.request.ResponseSink`. It holds the regions' windows until the request has ended."""

    __slots__ = ("_delivery", "_failed", "_sink", "_windows")

    def __init__(self, delivery: Delivery, sink: ResponseSink, windows: Mapping[str, Window]) -> None:
        self._delivery = delivery
        self._sink = sink
        self._windows = windows
        #: The request has been answered with an error of ours; what its model still sends is dropped.
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        """What else the sink has: the trace context of its request."""
        return getattr(self._sink, name)

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if self._failed:
            return
        try:
            outputs = response.outputs
            if outputs:
                response = InferResponse([self._deliver(each) for each in outputs], response.parameters)
        except InferError as error:
            self._refuse(request, error, final)
        except Exception as error:  # noqa: BLE001  a model's bad tensor must not leave the client waiting
            self._refuse(request, internal(f"the response could not be delivered: {error}"), final)
        else:
            self._sink.reply(request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        if not self._failed:
            self._sink.fail(request, error)

    def _refuse(self, request: InferRequest, error: InferError, final: bool) -> None:
        self._failed = True
        if not final:
            request.cancelled = True
        self._sink.fail(request, error)

    def _deliver(self, output: Tensor) -> Tensor:
        delivery = self._delivery
        k = delivery.classes.get(output.name)
        if k is not None:
            labels = delivery.labels.get(output.name, ())
            return classify(output, k, labels, batching=delivery.batching)
        window = self._windows.get(output.name)
        if window is None:
            return output
        size = len(output.data)
        if size > window.size:
            raise internal(
                f"shared memory size specified with the request for output '{output.name}' ({window.size} bytes) "
                f"should be at least {size} bytes to hold the results"
            )
        window.write(output.data)
        return Tensor(output.name, output.datatype, output.shape, b"")
