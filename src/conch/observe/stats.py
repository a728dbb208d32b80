"""The counters of one model version, written once per batch (spec: protocol 1.6, operations 4)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from conch.types.request import InferRequest


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


class ModelStats:
    """What happened to the requests of one model version since it was loaded.

    Any thread may write. `success`, `queue` and the compute durations count requests, `inferences` counts batch rows,
    `executions` counts runs of the model.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
        self.failures = dict.fromkeys(Reason, 0)
        self.batches: dict[int, BatchDurations] = {}
        #: Seconds that the load took.
        self.load_seconds = 0.0

    def executed(
        self,
        requests: Sequence[InferRequest],
        start_ns: int,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
        failed: Sequence[InferRequest] = (),
    ) -> None:
        """One execution is over: `requests` were answered, `failed` got an error; times are monotonic nanoseconds.

        `start_ns` is when the instance took the batch, `input_end_ns` when its inputs were ready, `output_start_ns`
        when the model was done and `end_ns` when the last answer had been handed to its sink.
        """
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
            batch = self.batches.get(rows)
            if batch is None:
                batch = self.batches[rows] = BatchDurations()
            batch.compute_input.count += 1
            batch.compute_input.ns += into
            batch.compute_infer.count += 1
            batch.compute_infer.ns += run
            batch.compute_output.count += 1
            batch.compute_output.ns += out
        if failed:
            self.failed(failed, Reason.BACKEND, end_ns)

    def failed(self, requests: Sequence[InferRequest], reason: Reason, now_ns: int) -> None:
        """These requests were answered with an error."""
        with self._lock:
            self.failures[reason] += len(requests)
            self.fail.count += len(requests)
            for request in requests:
                self.fail.ns += now_ns - request.received_ns
