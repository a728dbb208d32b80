"""A small in-memory data and control plane for tests of transports: models that give their inputs back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import ALL, BY_NAME, BYTES, INT32, DataType
from conch.types.error import InferError, internal, invalid, not_found, unavailable
from conch.types.model import IndexEntry, ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import InferResponse
from conch.types.tensor import Tensor, join_bytes

Answer = Callable[[InferRequest, ModelSpec], None]


def identity_spec(name: str, *types: DataType, dims: tuple[int, ...] = (-1,), max_batch_size: int = 0) -> ModelSpec:
    """INPUT0 goes to OUTPUT0, INPUT1 to OUTPUT1, and so on."""
    inputs = tuple([TensorSpec(f"INPUT{i}", datatype, dims) for i, datatype in enumerate(types)])
    outputs = tuple([TensorSpec(f"OUTPUT{i}", datatype, dims) for i, datatype in enumerate(types)])
    return ModelSpec(name, 1, max_batch_size, inputs, outputs)


def give_back(request: InferRequest, spec: ModelSpec) -> None:
    """The identity model, at once and in the calling thread."""
    form = request.form
    names = form.outputs or tuple([output.name for output in spec.outputs])
    outputs = []
    for name in names:
        place = int(name.removeprefix("OUTPUT"))
        index = form.inputs.index(place)
        outputs.append(Tensor(name, spec.outputs[place].datatype, form.shapes[index], request.data[index]))
    request.sink.reply(request, InferResponse(outputs), True)


def from_thread(request: InferRequest, spec: ModelSpec) -> None:
    """The identity model, answering from a thread of its own."""
    threading.Thread(target=give_back, args=(request, spec)).start()


def fail(request: InferRequest, spec: ModelSpec) -> None:
    request.sink.fail(request, internal('boom "q" é'))


class Plane:
    """Implements `DataPlane` and `ControlPlane`. `prepared` counts forms; `requests` keeps what came if `keep`."""

    def __init__(self, keep: bool = False) -> None:
        self.generation = 1
        self.specs: dict[str, ModelSpec] = {}
        self.answers: dict[str, Answer] = {}
        self.prepared = 0
        self.keep = keep
        self.requests: list[InferRequest] = []
        self.exiting = False
        self.loads: list[tuple[str, Mapping[str, str | bytes]]] = []
        self.work: Future[None] | None = None
        self.add(identity_spec("identity", BY_NAME["FP32"], dims=(16,), max_batch_size=64))
        self.add(identity_spec("two", INT32, BY_NAME["FP32"], max_batch_size=8))
        self.add(identity_spec("large", BY_NAME["UINT8"]))
        self.add(identity_spec("thread", BY_NAME["FP32"]), from_thread)
        self.add(identity_spec("fail", INT32), fail)
        self.add(ModelSpec("dec", 1, 0, (TensorSpec("INPUT0", INT32, (1,)),), (), decoupled=True))
        for datatype in ALL:
            self.add(identity_spec(f"id_{datatype.name.lower()}", datatype))

    def add(self, spec: ModelSpec, answer: Answer = give_back) -> None:
        self.specs[spec.name] = spec
        self.answers[spec.name] = answer
        self.generation += 1

    def _find(self, name: str, version: str) -> ModelSpec:
        spec = self.specs.get(name)
        if spec is None:
            raise not_found(f"Request for unknown model: '{name}' is not found")
        if version and int(version) != spec.version:
            raise not_found(f"Request for unknown model: '{name}' version {version} is not found")
        return spec

    def prepare(self, head: RequestHead) -> RequestForm:
        self.prepared += 1
        spec = self._find(head.model_name, head.model_version)
        names = [each.name for each in head.inputs]
        for name in names:
            if name not in [each.name for each in spec.inputs]:
                raise invalid(f"unexpected inference input '{name}' for model '{spec.name}'")
        if len(names) != len(spec.inputs) or len(set(names)) != len(names):
            raise invalid(f"expected {len(spec.inputs)} inputs but got {len(names)} inputs for model '{spec.name}'.")
        for name in head.outputs:
            if name not in [each.name for each in spec.outputs]:
                raise invalid(f"unexpected inference output '{name}' for model '{spec.name}'")
        shapes, sizes, counts = [], [], []
        order = tuple([names.index(each.name) for each in spec.inputs])
        for place, given in zip(order, spec.inputs, strict=True):
            each = head.inputs[place]
            dims = (-1, *given.dims) if spec.max_batch_size else given.dims
            if len(dims) != len(each.shape) or any(d not in {-1, s} for d, s in zip(dims, each.shape, strict=True)):
                raise invalid(f"unexpected shape for input '{each.name}' for model '{spec.name}'.")
            if each.datatype != given.datatype.name:
                raise invalid(f"inference input '{each.name}' data-type is '{each.datatype}'")
            count = math.prod(each.shape)
            shapes.append(each.shape)
            counts.append(count)
            sizes.append(-1 if given.datatype is BYTES else count * given.datatype.size)
        return RequestForm(
            head=head, model=spec, submit=self.infer, version=1, generation=self.generation,
            inputs=tuple(range(len(order))), order=order, shapes=tuple(shapes), backend_shapes=tuple(shapes),
            sizes=tuple(sizes), counts=tuple(counts), rows=1, batch_key=None, outputs=tuple(head.outputs) or None,
            parameters=head.parameters or None, has_bytes=-1 in sizes, decoupled=spec.decoupled,
        )  # fmt: skip

    def infer(self, request: InferRequest, /) -> None:
        form = request.form
        for data, size in zip(request.data, form.sizes, strict=True):
            if size not in {-1, len(data)}:
                raise invalid(f"input byte size mismatch. Expected {size}, got {len(data)}")
        if self.keep:
            self.requests.append(request)
        self.answers[form.model.name](request, form.model)

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        if self.exiting:
            raise unavailable("Server exiting")
        return True

    def model_ready(self, name: str, version: str) -> bool:
        return bool(self._find(name, version))

    def server_metadata(self) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="fake", version="1.2.3", extensions=["statistics"])

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        spec = self._find(name, version)
        answer = pb.ModelMetadataResponse(name=name, versions=["1"], platform="identity")
        lead = (-1,) if spec.max_batch_size else ()
        for given, into in ((spec.inputs, answer.inputs), (spec.outputs, answer.outputs)):
            for each in given:
                into.add(name=each.name, datatype=each.datatype.name, shape=(*lead, *each.dims))
        return answer

    def config(self, name: str, version: str) -> ModelConfig:
        spec = self._find(name, version)
        config = ModelConfig(name=name, max_batch_size=spec.max_batch_size)
        for each in spec.inputs:
            config.input.add(name=each.name, data_type=each.datatype.number, dims=each.dims)
        config.model_transaction_policy.decoupled = spec.decoupled
        return config

    def labels(self, name: str, version: str, output: str) -> Sequence[bytes]:
        return next(each.labels for each in self._find(name, version).outputs if each.name == output)

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        answer = pb.ModelStatisticsResponse()
        for each in [name] if name else sorted(self.specs):
            if each not in self.specs:
                raise invalid(f"requested model '{each}' is not available")
            stats = answer.model_stats.add(name=each, version="1", inference_count=3, execution_count=2)
            stats.inference_stats.success.count = 3
            stats.batch_stats.add(batch_size=1).compute_infer.ns = 7
        return answer

    def index(self, ready_only: bool) -> list[IndexEntry]:
        known = [IndexEntry(name, "1", "READY") for name in sorted(self.specs)]
        return known if ready_only else [*known, IndexEntry("zz")]

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        self.loads.append((name, dict(parameters)))
        return self._done(name)

    def load_group(self, models: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]:
        self.loads += [(name, dict(parameters)) for name, parameters in models.items()]
        return self._done(next(iter(models)))

    def unload(self, name: str, unload_dependents: bool) -> Future[None]:
        self.loads.append((name, {"unload_dependents": str(unload_dependents)}))
        return self._done(name)

    def _done(self, name: str) -> Future[None]:
        if self.work is not None:
            return self.work
        done: Future[None] = Future()
        error = InferError if name not in self.specs else None
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(internal(f"failed to load '{name}', failed to poll from model repository"))
        return done


def strings(*elements: bytes) -> bytes:
    return join_bytes(elements)
