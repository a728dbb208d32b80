"""The data plane: requests are checked, given to the version that answers, and questions about models answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from conch import TRITON_VERSION
from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.api import Version
from conch.service import checks
from conch.service.fork import routed_form
from conch.service.routed import Routed
from conch.service.sequence_checks import check_sequence
from conch.service.statistics import write_statistics
from conch.service.succession import Elders, nobody, reordered, succession
from conch.types.error import InferError, invalid, unavailable
from conch.types.request import InferRequest, RequestForm, RequestHead

#: What the server says it can do, in Triton's order. What is not served yet is not claimed.
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


#: Forms remembered; more kinds of request than this at a time are unusual.
_MAX_FORMS = 1024


class Registry(Protocol):
    """What the data plane needs to know of the registry."""

    @property
    def generation(self) -> int: ...
    def find(self, name: str, version: str) -> Version: ...
    def ready_versions(self, name: str = "") -> Iterable[Version]: ...
    def ready(self) -> bool: ...


class Tracer(Protocol):
    """What the data plane needs to know of tracing."""

    @property
    def armed(self) -> bool: ...
    def begin(self, request: InferRequest) -> None: ...


class Traffic(Protocol):
    """What the data plane needs to know of traffic routes."""

    def find(self, name: str) -> Routed | None: ...


class _NoTraffic:
    def find(self, name: str) -> Routed | None:
        return None


class _NoTracer:
    armed = False

    def begin(self, request: InferRequest) -> None:
        """Never called."""


class Data:
    """Implements `service.api.DataPlane` over a registry."""

    def __init__(
        self,
        registry: Registry,
        server_id: str,
        exiting: Callable[[], bool],
        tracer: Tracer | None = None,
        elders: Elders = nobody,
        traffic: Traffic | None = None,
    ) -> None:
        self._registry = registry
        self._traffic: Traffic = traffic or _NoTraffic()
        self._elders = elders
        self._server_id = server_id
        self._exiting = exiting
        self._tracer: Tracer = tracer or _NoTracer()
        #: One form for all requests of equal heads, whatever connection they come by: equal forms make cheap batches.
        self._forms: dict[object, RequestForm] = {}
        self._forms_generation = 0

    @property
    def generation(self) -> int:
        return self._registry.generation

    def prepare(self, head: RequestHead) -> RequestForm:
        generation = self._registry.generation
        if generation != self._forms_generation or len(self._forms) >= _MAX_FORMS:
            self._forms.clear()
            self._forms_generation = generation
        key = _key(head)
        form = self._forms.get(key)
        if form is None or form.generation != generation:
            form = self._check(head, generation)
            if head.brief:
                self._forms[key] = form
        return form

    def _check(self, head: RequestHead, generation: int) -> RequestForm:
        """`generation` was read before the look-up: a version that goes meanwhile makes the form old, not wrong."""
        routed = None if head.model_version else self._traffic.find(head.model_name)
        if routed is not None:
            return routed_form(routed, head, generation, partial(self._answer, generation))
        return self._answer(generation, self._registry.find(head.model_name, head.model_version), head)

    def _answer(self, generation: int, version: Version, head: RequestHead) -> RequestForm:
        """The form of `head` for the version that serves."""
        if self._elders(version):
            return succession(version, self._elders, lambda each, asked: self._form(each, asked, generation), head)
        return self._form(version, head, generation)

    def prepare_on(self, version: Version, head: RequestHead) -> RequestForm:
        """As `prepare`, for a version that is known, whether it is what serves now or not; nothing is remembered."""
        return self._form(version, head, self._registry.generation)

    def _form(self, version: Version, head: RequestHead, generation: int) -> RequestForm:
        spec = version.spec
        checks.check_outputs(spec, head)
        steering = checks.steering(head)
        inputs = checks.check_inputs(spec, head)
        if spec.sequence is not None:
            check_sequence(spec.name, spec.sequence, head, steering.correlation_id, inputs.rows)
        return RequestForm(
            head=head,
            model=version,
            submit=version.scheduler.submit,
            version=spec.version,
            generation=generation,
            inputs=inputs.positions,
            order=inputs.order,
            shapes=inputs.shapes,
            backend_shapes=inputs.backend_shapes,
            sizes=inputs.sizes,
            counts=inputs.counts,
            rows=inputs.rows,
            batch_key=inputs.batch_key,
            outputs=tuple(head.outputs) or None,
            parameters=steering.parameters,
            priority=steering.priority,
            timeout_us=steering.timeout_us,
            correlation_id=steering.correlation_id,
            flags=steering.flags,
            has_bytes=inputs.has_bytes,
            decoupled=version.config.model_transaction_policy.decoupled,
            withdraw=version.scheduler.withdraw,
        )

    def infer(self, request: InferRequest) -> None:
        form = request.form
        if form.generation != self._registry.generation:
            form = self._renew(request)
        for index, data in enumerate(request.data):
            size = form.sizes[index]
            if len(data) != size:
                if size < 0:
                    spec, position = form.model.spec, form.inputs[index]
                    checks.check_strings(spec, position, form.counts[index], data, request.id)
                else:
                    raise checks.size_mismatch(form.model.spec, form.inputs[index], size, len(data), request.id)
        if self._tracer.armed:
            self._tracer.begin(request)
        try:
            try:
                form.submit(request)
            except InferError:
                # A swap between the look at the generation and here: the version that took over answers.
                if form.generation == self._registry.generation:
                    raise
                self._renew(request).submit(request)
        except InferError:
            if request.trace is not None:
                request.trace.refused()
            raise

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        if self._exiting():
            raise unavailable("Server exiting")
        return self._registry.ready()

    def model_ready(self, name: str, version: str) -> bool:
        routed = None if version else self._traffic.find(name)
        return self._registry.find(name, version).ready() if routed is None else routed.ready()

    def server_metadata(self) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=self._server_id, version=TRITON_VERSION, extensions=EXTENSIONS)

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        found = self._find(name, version)
        config, spec = found.config, found.spec
        versions = [str(spec.version)] if version else self._versions(name) or [str(spec.version)]
        answer = pb.ModelMetadataResponse(
            name=config.name, versions=versions, platform=config.platform or config.backend
        )
        lead = (-1,) if spec.max_batch_size > 0 else ()
        for tensors, into in ((spec.inputs, answer.inputs), (spec.outputs, answer.outputs)):
            for tensor in tensors:
                into.add(name=tensor.name, datatype=tensor.datatype.name, shape=(*lead, *tensor.dims))
        return answer

    def config(self, name: str, version: str) -> ModelConfig:
        return self._find(name, version).config

    def labels(self, name: str, version: str, output: str) -> Sequence[bytes]:
        outputs = self._find(name, version).spec.outputs
        return next((each.labels for each in outputs if each.name == output), ())

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        answer = pb.ModelStatisticsResponse()
        if not name:
            found = sorted(self._registry.ready_versions(), key=lambda v: (v.spec.name, v.spec.version))
        else:
            found = self._asked_versions(name, version)
        for each in found:
            write_statistics(each, answer.model_stats.add())
        return answer

    def _renew(self, request: InferRequest) -> RequestForm:
        """The set of servable versions has changed since the form was made; its head is checked against today's."""
        form, head = request.form, request.form.head
        renewed = self.prepare(
            RequestHead(
                head.model_name,
                head.model_version,
                request.id,
                head.inputs,
                head.outputs,
                head.parameters,
                head.steers,
            )
        )
        request.data = reordered(request.data, form.order, renewed.order)
        request.form = renewed
        return renewed

    def _find(self, name: str, version: str) -> Version:
        """What a question is about; of a routed name without a version it is the default arm."""
        routed = self._traffic.find(name)
        if routed is None:
            return self._registry.find(name, version)
        if not version:
            return routed.default()
        try:
            return self._registry.find(name, version)
        except InferError:
            # An alias has no versions of its own, and codecs ask by the version that the form said.
            default = routed.default()
            if str(default.spec.version) != version:
                raise
            return default

    def _versions(self, name: str) -> list[str]:
        return [str(number) for number in sorted([v.spec.version for v in self._registry.ready_versions(name)])]

    def _asked_versions(self, name: str, version: str) -> list[Version]:
        ready = sorted(self._registry.ready_versions(name), key=lambda v: v.spec.version)
        routed = self._traffic.find(name) if not ready else None
        if routed is not None and not version:
            return sorted(routed.serving(), key=lambda v: (v.spec.name, v.spec.version))
        if not ready:
            raise invalid(f"requested model '{name}' is not available")
        if not version:
            return ready
        try:
            number = self._registry.find(name, version).spec.version
        except InferError as error:
            raise invalid(f"requested model version is not available for model '{name}'") from error
        return [each for each in ready if each.spec.version == number]


def _key(head: RequestHead) -> object:
    """Equal for heads that ask the same of the same model. The id is no part of it, and True is not 1."""
    return (
        head.model_name,
        head.model_version,
        tuple([(each.name, each.datatype, each.shape) for each in head.inputs]),
        tuple(head.outputs),
        tuple([(name, type(value), value) for name, value in sorted(head.parameters.items())]),
        head.steers,
    )
