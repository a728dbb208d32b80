"""The counters of one model version, written once per batch (spec: protocol 1.6, operations 4)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from conch.observe.latencies import Latencies
from conch.types.request import InferRequest

#: The `model` of forms whose requests warm an instance up: such are no requests to anybody who counts.
WARMUP: Final = object()


class Reason(Enum):
    """Why a request failed: the `reason` label of nv_inference_request_failure."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0


@dataclass(slots=True)
class BatchDurations:
    """The executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ResponseDurations:
    """The responses that were the n-th of their requests (decoupled models).

    `compute_infer` is the time since the response before (since the execution began, for the first), `compute_output`
    the time to hand it to its sink; the others are sums of both, each response counts for one of them.
    """

    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty_response: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


#: Index within its request, the field of `ResponseDurations` that it counts for, nanoseconds of infer and of output.
Response = tuple[int, str, int, int]
#: So many indices have counters of their own; responses after that count for the last one.
RESPONSES = 4096


@dataclass(slots=True)
class Execution:
    """When a batch of a decoupled model ran; all but the start are 0 while it does. Monotonic nanoseconds."""

    start_ns: int
    input_end_ns: int = 0
    output_start_ns: int = 0
    end_ns: int = 0


#: Nanoseconds spent in input, inference and output.
Compute = tuple[int, int, int]


class Meter(Protocol):
    """What `InferRequest.meter` is."""

    def computed(self, compute: Compute, /) -> None:
        """The model has run. Any thread; after the answer."""


@dataclass(slots=True)
class CacheStats:
    """What happened in a response cache, all models together."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    #: How many answers it holds now, and which part of its size they take.
    entries: int = 0
    utilization: float = 0.0
    lookup_ns: int = 0
    insertion_ns: int = 0


class ModelStats:
    """What happened to the requests of one model version since it was loaded.

    Any thread may write. `success`, `queue` and the compute durations count requests, `inferences` counts batch rows,
    `executions` counts runs of the model. What instances on GPUs do is counted in `gpus` instead, see `gpu_stats`.
    """

    def __init__(self, latencies: Latencies | None = None) -> None:
        """`latencies` is where single durations go; None where nobody asks for more than sums."""
        self._lock = threading.Lock()
        self.latencies = latencies
        #: Wall-clock milliseconds of the last request that was answered, 0 for never.
        self.last_inference_ms = 0
        self.inferences = 0
        self.executions = 0
        self.success = Duration()
        self.fail = Duration()
        self.queue = Duration()
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()
        #: Requests answered from the response cache: they are successes, and no inferences.
        self.cache_hit = Duration()
        #: Requests whose answers were looked for and then kept: the time of both.
        self.cache_miss = Duration()
        #: Whether the model has a response cache.
        self.cached = False
        self.failures = dict.fromkeys(Reason, 0)
        #: GPU, by number -> what the instances on it did.
        self.gpus: dict[int, ModelStats] = {}
        self.batches: dict[int, BatchDurations] = {}
        self.responses: dict[int, ResponseDurations] = {}
        #: Seconds that the load took.
        self.load_seconds = 0.0
        #: Bytes that it takes, by device (`ram`, `gpu:<n>`); empty where nobody measures.
        self.memory: Mapping[str, int] = {}
        #: Whether the server pads inputs of the model; their elements as the model saw them, and how many were padding.
        self.pads = False
        self.input_elements = 0
        self.padding_elements = 0
        #: Whether any request has been traced: only then are requests asked for their traces.
        self.traced = False
        #: Whether any request has had a meter: only then are requests asked for theirs.
        self.metered = False
        #: Whether there have been requests that are no client's: only then are they looked for.
        self._warms = False

    def warm(self) -> None:
        """From now on requests whose form's `model` is WARMUP are not counted, however late an instance counts them."""
        self._warms = True

    def executed(
        self,
        requests: Sequence[InferRequest],
        start_ns: int,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
        failed: Sequence[InferRequest] = (),
        empty: int = 0,
    ) -> None:
        """One execution is over: `requests` were answered, `failed` got an error; times are monotonic nanoseconds.

        `empty` is how many more rows the batch had, without a request.
        `start_ns` is when the instance took the batch, `input_end_ns` when its inputs were ready, `output_start_ns`
        when the model was done and `end_ns` when the last answer had been handed to its sink.
        """
        if self._warms:
            requests, failed = _counted(requests), _counted(failed)
            if not requests and not failed:
                return
        rows = queued = total = 0
        for request in requests:
            rows += request.form.rows
            queued += start_ns - request.queued_ns
            total += end_ns - request.received_ns
        count = len(requests)
        into, run, out = input_end_ns - start_ns, output_start_ns - input_end_ns, end_ns - output_start_ns
        with self._lock:
            self.executions += 1
            self.last_inference_ms = time.time_ns() // 1_000_000
            if count:
                self.inferences += rows
                self.success.count += count
                self.success.ns += total
                self.queue.count += count
                self.queue.ns += queued
                self.compute_input.count += count
                self.compute_input.ns += into * count
                self.compute_infer.count += count
                self.compute_infer.ns += run * count
                self.compute_output.count += count
                self.compute_output.ns += out * count
            for request in failed:
                rows += request.form.rows
            self._batch(rows + empty, into, run, out)
        if self.latencies is not None:
            self.latencies.executed(requests, start_ns, (into, run, out), end_ns)
        if self.traced or self.metered:
            _tell(requests, start_ns, input_end_ns, output_start_ns, end_ns)
        if failed:
            self.failed(failed, Reason.BACKEND, end_ns)

    def hit(self, requests: Sequence[InferRequest], found_ns: int, end_ns: int, hit_ns: int) -> None:
        """These were answered from the cache: their wait ended at `found_ns`, all was done at `end_ns`.

        `hit_ns` is what looking up took for each.
        """
        queued = total = 0
        for request in requests:
            queued += found_ns - request.queued_ns
            total += end_ns - request.received_ns
        count = len(requests)
        with self._lock:
            self.success.count += count
            self.success.ns += total
            self.queue.count += count
            self.queue.ns += queued
            self.cache_hit.count += count
            self.cache_hit.ns += hit_ns * count
        if self.latencies is not None:
            self.latencies.hit(requests, found_ns, end_ns, hit_ns)
        if self.traced:
            for request in requests:
                if request.trace is not None:
                    request.trace.at("QUEUE_START", request.queued_ns)
                    request.trace.ended()

    def missed(self, ns: int) -> None:
        """An answer was not in the cache and has been executed; looking for it and keeping it took this long."""
        with self._lock:
            self.cache_miss.count += 1
            self.cache_miss.ns += ns
            self.success.ns += ns
        if self.latencies is not None:
            self.latencies.missed(ns, time.monotonic_ns())

    def ran(
        self,
        requests: Sequence[InferRequest],
        execution: Execution,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
    ) -> None:
        """A decoupled model has returned from an execution of `requests`, which are answered on their own."""
        execution.input_end_ns, execution.output_start_ns, execution.end_ns = input_end_ns, output_start_ns, end_ns
        if self._warms:
            requests = _counted(requests)
            if not requests:
                return
        rows = sum([request.form.rows for request in requests])
        with self._lock:
            self.executions += 1
            into, run = input_end_ns - execution.start_ns, output_start_ns - input_end_ns
            self._batch(rows, into, run, end_ns - output_start_ns)

    def answered(self, request: InferRequest, execution: Execution, end_ns: int) -> None:
        """A decoupled model has sent the final response of `request`, at `end_ns`, maybe before it has returned."""
        if self._warms and request.form.model is WARMUP:
            return
        start, input_end = execution.start_ns, execution.input_end_ns or execution.start_ns
        output_start = execution.output_start_ns or end_ns
        with self._lock:
            self.last_inference_ms = time.time_ns() // 1_000_000
            self.inferences += request.form.rows
            for duration, ns in (
                (self.success, end_ns - request.received_ns),
                (self.queue, start - request.queued_ns),
                (self.compute_input, input_end - start),
                (self.compute_infer, output_start - input_end),
                (self.compute_output, (execution.end_ns or end_ns) - output_start),
            ):
                duration.count += 1
                duration.ns += ns
        if self.latencies is not None:
            compute = (input_end - start, output_start - input_end, (execution.end_ns or end_ns) - output_start)
            self.latencies.executed((request,), start, compute, end_ns)
        if request.trace is not None:
            request.trace.executed(request.queued_ns, start, input_end, output_start, end_ns)
        if request.meter is not None:
            out = (execution.end_ns or end_ns) - output_start
            request.meter.computed((input_end - start, output_start - input_end, out))

    def composed(self, request: InferRequest, start_ns: int, end_ns: int, compute: Compute) -> None:
        """An ensemble has answered: its steps have spent so long in input, inference and output until now."""
        rows = request.form.rows
        with self._lock:
            self.executions += 1
            self.last_inference_ms = time.time_ns() // 1_000_000
            self.inferences += rows
            self.success.count += 1
            self.success.ns += end_ns - request.received_ns
            self.queue.count += 1
            self.queue.ns += start_ns - request.queued_ns
            for duration, ns in zip(
                (self.compute_input, self.compute_infer, self.compute_output), compute, strict=True
            ):
                duration.count += 1
                duration.ns += ns
            self._batch(rows, *compute)
        if self.latencies is not None:
            self.latencies.executed((request,), start_ns, compute, end_ns)
        if request.trace is not None:
            request.trace.composed(request.queued_ns)
        if request.meter is not None:
            request.meter.computed(compute)

    def composed_more(self, request: InferRequest, compute: Compute, before: Compute) -> None:
        """The last step of an ensemble's request tells its times after the answer; `before` they were the sum."""
        with self._lock:
            # The sum was asked for, and is perhaps not counted yet: another thread does it.
            batch = self._of(request.form.rows)
            own = (self.compute_input, self.compute_infer, self.compute_output)
            for duration, ns in zip(own, compute, strict=True):
                duration.ns += ns
            for duration, ns in zip(
                (batch.compute_input, batch.compute_infer, batch.compute_output), compute, strict=True
            ):
                duration.ns += ns
        if self.latencies is not None:
            self.latencies.composed_more(compute, before)
        if request.meter is not None:
            request.meter.computed(compute)

    def responded(self, responses: Iterable[Response]) -> None:
        """A decoupled model has sent these responses."""
        with self._lock:
            for index, kind, infer_ns, output_ns in responses:
                index = min(index, RESPONSES - 1)
                counters = self.responses.get(index)
                if counters is None:
                    counters = self.responses[index] = ResponseDurations()
                if kind in {"success", "fail"}:
                    counters.compute_output.count += 1
                    counters.compute_output.ns += output_ns
                if kind != "cancel":
                    counters.compute_infer.count += 1
                    counters.compute_infer.ns += infer_ns
                duration: Duration = getattr(counters, kind)
                duration.count += 1
                duration.ns += infer_ns + output_ns

    def _batch(self, rows: int, into: int, run: int, out: int) -> None:
        """One more execution of so many rows; nanoseconds."""
        batch = self._of(rows)
        batch.compute_input.count += 1
        batch.compute_input.ns += into
        batch.compute_infer.count += 1
        batch.compute_infer.ns += run
        batch.compute_output.count += 1
        batch.compute_output.ns += out

    def _of(self, rows: int) -> BatchDurations:
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchDurations()
        return batch

    def padded(self, real: int, elements: int) -> None:
        """A batch had so many `real` elements in its padded inputs, and so many with the padding."""
        with self._lock:
            self.input_elements += elements
            self.padding_elements += elements - real

    def failed(self, requests: Sequence[InferRequest], reason: Reason, now_ns: int) -> None:
        """These requests were answered with an error."""
        if self._warms:
            requests = _counted(requests)
        if not requests:
            return
        with self._lock:
            self.failures[reason] += len(requests)
            self.fail.count += len(requests)
            for request in requests:
                self.fail.ns += now_ns - request.received_ns
        if self.traced:
            for request in requests:
                if request.trace is not None:
                    request.trace.ended()


def _counted(requests: Sequence[InferRequest]) -> list[InferRequest]:
    """These requests without those that are no client's."""
    return [each for each in requests if each.form.model is not WARMUP]


def _tell(
    requests: Sequence[InferRequest], start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int
) -> None:
    """Tell the traces and meters of requests, where they have some, when their model has run."""
    compute = (input_end_ns - start_ns, output_start_ns - input_end_ns, end_ns - output_start_ns)
    for request in requests:
        if request.trace is not None:
            request.trace.executed(request.queued_ns, start_ns, input_end_ns, output_start_ns, end_ns)
    for request in requests:
        if request.meter is not None:
            request.meter.computed(compute)
