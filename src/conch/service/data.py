"""The data plane: requests are checked, given to the version that answers, and questions about models answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from conch import TRITON_VERSION
from conch.observe.stats import Duration
from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.api import Version
from conch.service import checks
from conch.service.sequence_checks import check_sequence
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


class _NoTracer:
    armed = False

    def begin(self, request: InferRequest) -> None:
        """Never called."""


class Data:
    """Implements `service.api.DataPlane` over a registry."""

    def __init__(
        self, registry: Registry, server_id: str, exiting: Callable[[], bool], tracer: Tracer | None = None
    ) -> None:
        self._registry = registry
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
            form = self._forms[key] = self._check(head, generation)
        return form

    def _check(self, head: RequestHead, generation: int) -> RequestForm:
        """`generation` was read before the look-up: a version that goes meanwhile makes the form old, not wrong."""
        return self._form(self._registry.find(head.model_name, head.model_version), head, generation)

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
            form = request.form = self._renew(form, request.id)
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
            form.submit(request)
        except InferError:
            # A swap between the look at the generation and here: the version that took over answers.
            if form.generation == self._registry.generation:
                raise
            request.form = self._renew(form, request.id)
            request.form.submit(request)

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        if self._exiting():
            raise unavailable("Server exiting")
        return self._registry.ready()

    def model_ready(self, name: str, version: str) -> bool:
        return self._registry.find(name, version).ready()

    def server_metadata(self) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=self._server_id, version=TRITON_VERSION, extensions=EXTENSIONS)

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        found = self._registry.find(name, version)
        config, spec = found.config, found.spec
        versions = [str(spec.version)] if version else self._versions(name)
        answer = pb.ModelMetadataResponse(
            name=config.name, versions=versions, platform=config.platform or config.backend
        )
        lead = (-1,) if spec.max_batch_size > 0 else ()
        for tensors, into in ((spec.inputs, answer.inputs), (spec.outputs, answer.outputs)):
            for tensor in tensors:
                into.add(name=tensor.name, datatype=tensor.datatype.name, shape=(*lead, *tensor.dims))
        return answer

    def config(self, name: str, version: str) -> ModelConfig:
        return self._registry.find(name, version).config

    def labels(self, name: str, version: str, output: str) -> Sequence[bytes]:
        outputs = self._registry.find(name, version).spec.outputs
        return next((each.labels for each in outputs if each.name == output), ())

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        answer = pb.ModelStatisticsResponse()
        if not name:
            found = sorted(self._registry.ready_versions(), key=lambda v: (v.spec.name, v.spec.version))
        else:
            found = self._asked_versions(name, version)
        for each in found:
            _write_statistics(each, answer.model_stats.add())
        return answer

    def _renew(self, form: RequestForm, id: str) -> RequestForm:
        """The set of servable versions has changed since `form` was made; its head is checked against today's."""
        head = form.head
        fresh = RequestHead(
            head.model_name, head.model_version, id, head.inputs, head.outputs, head.parameters, head.steers
        )
        renewed = self.prepare(fresh)
        if renewed.order != form.order:
            raise unavailable(
                f"model '{head.model_name}' was reloaded with its inputs in another order while this request was "
                "being read; send it again"
            )
        return renewed

    def _versions(self, name: str) -> list[str]:
        return [str(number) for number in sorted([v.spec.version for v in self._registry.ready_versions(name)])]

    def _asked_versions(self, name: str, version: str) -> list[Version]:
        ready = sorted(self._registry.ready_versions(name), key=lambda v: v.spec.version)
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


def _write_statistics(version: Version, into: pb.ModelStatistics) -> None:
    stats = version.stats
    into.name = version.spec.name
    into.version = str(version.spec.version)
    into.last_inference = stats.last_inference_ms
    into.inference_count = stats.inferences
    into.execution_count = stats.executions
    each = into.inference_stats
    for message, duration in (
        (each.success, stats.success),
        (each.fail, stats.fail),
        (each.queue, stats.queue),
        (each.compute_input, stats.compute_input),
        (each.compute_infer, stats.compute_infer),
        (each.compute_output, stats.compute_output),
        (each.cache_hit, stats.cache_hit),
        (each.cache_miss, stats.cache_miss),
    ):
        _write_duration(duration, message)
    for size, batch in sorted(stats.batches.items()):
        entry = into.batch_stats.add(batch_size=size)
        _write_duration(batch.compute_input, entry.compute_input)
        _write_duration(batch.compute_infer, entry.compute_infer)
        _write_duration(batch.compute_output, entry.compute_output)
    for index, response in sorted(stats.responses.copy().items()):
        into_response = into.response_stats[str(index)]
        for name in ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"):
            _write_duration(getattr(response, name), getattr(into_response, name))


def _write_duration(duration: Duration, into: pb.StatisticDuration) -> None:
    into.count = duration.count
    into.ns = duration.ns
    into.SetInParent()
