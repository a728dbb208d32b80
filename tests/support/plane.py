"""A data plane and a control plane whose models give back their inputs, at once or from another thread."""

from __future__ import annotations

import queue
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.service.data import Data
from conch.types.dtype import BYTES, FP32, INT8, INT32
from conch.types.error import Code, InferError, not_found
from conch.types.model import IndexEntry, ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor

#: Answers as often as its input says, with the response's number as output.
DECOUPLED = ModelSpec("decoupled", 1, 0, (TensorSpec("N", INT32, (1,)),), (TensorSpec("OUT", INT32, (1,)),))
IDENTITY = ModelSpec("identity", 1, 8, (TensorSpec("INPUT0", FP32, (-1,)),), (TensorSpec("OUTPUT0", FP32, (-1,)),))
SIMPLE = ModelSpec(
    "simple",
    3,
    8,
    (TensorSpec("A", FP32, (-1,)), TensorSpec("B", BYTES, (-1,)), TensorSpec("C", INT8, (2,), optional=True)),
    (TensorSpec("OA", FP32, (-1,)), TensorSpec("OB", BYTES, (-1,)), TensorSpec("OC", INT8, (2,))),
)


class EchoScheduler:
    """`mode`: "inline" answers inside `submit`, "thread" from another thread, "hold" when `release` is called."""

    def __init__(self, spec: ModelSpec, mode: str) -> None:
        self.spec = spec
        self.mode = mode
        self.held: list[InferRequest] = []
        self.error: InferError | None = None
        #: Where each answer is counted, as load generators expect; None to save the time.
        self.stats: ModelStats | None = None
        self._queue: queue.SimpleQueue[InferRequest | None] = queue.SimpleQueue()
        if mode == "thread":
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, request: InferRequest, /) -> None:
        if self.mode == "inline":
            self.answer(request)
        elif self.mode == "thread":
            self._queue.put(request)
        else:
            self.held.append(request)

    def withdraw(self, request: InferRequest, /) -> None:
        """Held requests stay until they are released; the answer finds nobody."""
        request.cancelled = True

    def answer(self, request: InferRequest) -> None:
        if self.error is not None:
            request.sink.fail(request, self.error)
            return
        form = request.form
        if form.decoupled:
            for number in range(struct.unpack("<i", request.data[0])[0]):
                tensor = Tensor("OUT", INT32, (1,), struct.pack("<i", number))
                request.sink.reply(request, InferResponse([tensor]), final=False)
            request.sink.reply(request, FINAL, final=True)
            return
        outputs = [
            Tensor(spec.name, spec.datatype, shape, data)
            for position, shape, data in zip(form.inputs, form.shapes, request.data, strict=True)
            for spec in (self.spec.outputs[position],)
            if form.outputs is None or spec.name in form.outputs
        ]
        request.sink.reply(request, InferResponse(outputs), final=True)
        if self.stats is not None:
            now = time.monotonic_ns()
            request.queued_ns = request.received_ns
            self.stats.executed([request], request.received_ns, request.received_ns, now, now)

    def release(self) -> None:
        held, self.held = self.held, []
        for request in held:
            self.answer(request)

    def inflight(self) -> int:
        return len(self.held)

    def stop(self) -> None:
        self._queue.put(None)

    def _work(self) -> None:
        while (request := self._queue.get()) is not None:
            self.answer(request)


@dataclass
class EchoVersion:
    spec: ModelSpec
    scheduler: EchoScheduler
    stats: ModelStats = field(default_factory=ModelStats)

    @property
    def config(self) -> ModelConfig:
        spec = self.spec
        config = ModelConfig(name=spec.name, backend="identity", max_batch_size=spec.max_batch_size)
        config.model_transaction_policy.decoupled = spec is DECOUPLED
        for tensors, into in ((spec.inputs, config.input), (spec.outputs, config.output)):
            for tensor in tensors:
                into.add(name=tensor.name, data_type=tensor.datatype.number, dims=tensor.dims)
        return config

    def ready(self) -> bool:
        return True


class EchoRegistry:
    def __init__(self, mode: str = "inline", specs: Iterable[ModelSpec] = (IDENTITY, SIMPLE, DECOUPLED)) -> None:
        self.generation = 1
        self.is_ready = True
        self.versions = {spec.name: EchoVersion(spec, EchoScheduler(spec, mode)) for spec in specs}

    def find(self, name: str, version: str) -> EchoVersion:
        found = self.versions.get(name)
        if found is None:
            raise not_found(f"Request for unknown model: '{name}' is not found")
        if version not in ("", str(found.spec.version)):
            raise not_found(f"Request for unknown model: '{name}' version {version} is not found")
        return found

    def ready_versions(self, name: str = "") -> list[EchoVersion]:
        return [version for version in self.versions.values() if name in ("", version.spec.name)]

    def ready(self) -> bool:
        return self.is_ready


def echo_plane(
    mode: str = "inline", specs: Iterable[ModelSpec] = (IDENTITY, SIMPLE, DECOUPLED)
) -> tuple[Data, EchoRegistry]:
    """The real data plane over models that echo."""
    registry = EchoRegistry(mode, specs)
    return Data(registry, "triton", lambda: False), registry


class RecordingControl:
    """Remembers loads and unloads; those of a model named `broken` fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def index(self, ready_only: bool) -> list[IndexEntry]:
        self.calls.append(("index", ready_only))
        return [IndexEntry("identity", "1", "READY"), IndexEntry("idle")]

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        self.calls.append(("load", name, dict(parameters)))
        return self._done(name)

    def load_group(self, models: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]:
        self.calls.append(("group", {name: dict(parameters) for name, parameters in models.items()}))
        return self._done("broken" if "broken" in models else "")

    def unload(self, name: str, unload_dependents: bool) -> Future[None]:
        self.calls.append(("unload", name, unload_dependents))
        return self._done(name)

    def _done(self, name: str) -> Future[None]:
        future: Future[None] = Future()
        if name == "broken":
            future.set_exception(InferError(Code.INVALID_ARG, "load failed for model 'broken': it is"))
        else:
            future.set_result(None)
        return future
