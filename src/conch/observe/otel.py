"""Traces as OpenTelemetry spans, sent by OTLP over HTTP in the background (spec: operations 5)."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from conch.config.server import TraceOptions
from conch.observe.trace import Source, Trace

_log = logging.getLogger("conch")

_CLOSE_SECONDS: Final = 3.0
#: Traces that may wait to be made into spans; more are lost, as in the SDK's own queue.
_MOST: Final = 10_000
_COMPUTE: Final = ("COMPUTE_START", "COMPUTE_END")
_REQUEST: Final = ("REQUEST_START", "REQUEST_END")


class Exporter:
    """Implements `trace.Recorder`. Spans wait in the SDK's queue; a collector that is away loses them, not requests."""

    def __init__(self, options: TraceOptions) -> None:
        resource = {"service.name": "triton-inference-server", **options.resource}
        # Who is traced has been decided; whether the client's context says so too does not matter.
        self._provider = TracerProvider(resource=Resource.create(resource), sampler=ALWAYS_ON, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=options.url),
                max_queue_size=options.bsp_max_queue_size,
                schedule_delay_millis=options.bsp_schedule_delay,
                max_export_batch_size=min(options.bsp_max_export_batch_size, options.bsp_max_queue_size),
            )
        )
        self._tracer = self._provider.get_tracer("conch")
        #: Making spans takes longer than an event loop has.
        self._making = ThreadPoolExecutor(1, "conch-otel")
        self._propagator = TraceContextTextMapPropagator()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = self._complained = False

    def put(self, trace: Trace) -> None:
        if not trace.times:
            return
        with self._lock:
            if self._closed:
                return
            full = self._waiting >= _MOST
            tell, self._complained = full and not self._complained, full
            if not full:
                self._waiting += 1
                self._making.submit(self._work, trace)
        if tell:
            _log.warning("traces are lost: more requests are traced than spans can be made of")

    def retire(self, source: Source) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._making.shutdown()
        # The SDK tries a collector that is away for longer than anyone waits for a server's end.
        ending = threading.Thread(target=self._provider.shutdown, name="conch-otel-end", daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)

    def _work(self, trace: Trace) -> None:
        try:
            self._make(trace)
        except Exception:  # noqa: BLE001  whatever it is, it is one trace's
            _log.exception("a trace could not be made into spans")
        finally:
            with self._lock:
                self._waiting -= 1

    def _make(self, trace: Trace) -> None:
        # Spans have the clock on the wall.
        offset = time.time_ns() - time.monotonic_ns()
        times = sorted([(ns + offset, name) for name, ns in trace.times], key=lambda each: each[0])
        sent = {"traceparent": trace.context, "tracestate": trace.state}
        parent = self._propagator.extract(sent) if trace.context else Context()
        # A step of an ensemble stands beside the ensemble's request; its parent's number says whose it is.
        root = parent if trace.parent_id else self._span("InferRequest", parent, times, times, {})
        attributes: dict[str, Any] = {
            "triton.model_name": trace.model,
            "triton.model_version": trace.version,
            "triton.trace_id": trace.id,
            "triton.trace_parent_id": trace.parent_id,
        }
        if trace.request_id:
            attributes["triton.request_id"] = trace.request_id
        own = [each for each in times if not each[1].startswith(("HTTP_", "GRPC_"))]
        model = self._span(trace.model, root, own, _between(times, *_REQUEST), attributes)
        compute = _between(own, *_COMPUTE)
        if compute:
            self._span("compute", model, compute, compute, {})

    def _span(
        self,
        name: str,
        parent: Context,
        events: list[tuple[int, str]],
        span: list[tuple[int, str]],
        attributes: dict[str, Any],
    ) -> Context:
        """A span as long as `span`; gives the context for its children."""
        span = span or events
        made = self._tracer.start_span(name, context=parent, start_time=span[0][0], attributes=attributes)
        for ns, event in events:
            made.add_event(event, timestamp=ns)
        made.end(end_time=span[-1][0])
        return api.set_span_in_context(made, parent)


def _between(times: list[tuple[int, str]], first: str, last: str) -> list[tuple[int, str]]:
    """The times from `first` to `last`; none when one of them is missing."""
    ends = sorted([ns for ns, name in times if name in (first, last)])
    if len({name for _, name in times if name in (first, last)}) < 2:
        return []
    return [each for each in times if ends[0] <= each[0] <= ends[-1]]
