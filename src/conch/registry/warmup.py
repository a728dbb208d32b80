"""Warms an instance up: runs the samples on it and waits for their answers, past scheduler and statistics."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

from conch.backend.api import Instance, LoopInstance
from conch.observe.stats import ModelStats
from conch.registry.samples import Sample
from conch.types.error import InferError, invalid, unavailable
from conch.types.request import InferRequest
from conch.types.response import FailedResponse, InferResponse

log = logging.getLogger("conch.registry")

#: How often to look whether the event loop has ended, in seconds.
_GLANCE = 1.0


class Warmup:
    """The samples of one model version, for each of its instances."""

    def __init__(
        self,
        model: str,
        most: int,
        samples: Sequence[Sample],
        stats: ModelStats,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`most` is the model's max_batch_size."""
        self._model = model
        self._most = most
        self._samples = samples
        self._stats = stats
        self._loop = loop

    def run(self, instance: Instance, name: str) -> None:
        """Blocks, not on the loop's thread, until the instance called `name` has executed every sample.

        Raises InferError (INVALID_ARG) when one of them fails.
        """
        if not self._samples:
            return
        begun = time.monotonic()
        self._stats.warm()
        for sample in self._samples:
            if sample.size > max(1, self._most):
                text = f"batch size {sample.size} for '{name}', max allowed is {self._most}; "
                raise _failed(sample, text * sample.size, "lower the sample's batch_size")
            for turn in range(sample.times):
                log.debug(
                    "model '%s' instance %s is running warmup sample '%s' for iteration %d",
                    self._model, name, sample.name, turn + 1,
                )  # fmt: skip
                self._execute(instance, sample)
        log.info(
            "model '%s' instance %s is warm after %d samples in %.3f s",
            self._model, name, len(self._samples), time.monotonic() - begun,
        )  # fmt: skip

    def _execute(self, instance: Instance, sample: Sample) -> None:
        sink = _Sink(sample.size)
        now = time.monotonic_ns()
        batch = [InferRequest(sample.form, "", sample.data, sink, now) for _ in range(sample.size)]
        for request in batch:
            request.queued_ns = now
        if isinstance(instance, LoopInstance):
            try:
                self._loop.call_soon_threadsafe(instance.start, batch, sink.rest)
            except RuntimeError:
                raise unavailable("Server exiting") from None
            while not sink.wait(_GLANCE):
                if not self._loop.is_running():
                    raise unavailable("Server exiting")
        else:
            instance.run(batch)
        if sink.errors:
            texts = "".join(f"{error.message}; " for error in sink.errors)
            hint = next((error.hint for error in sink.errors if error.hint), "")
            raise _failed(sample, texts, hint)


def _failed(sample: Sample, texts: str, hint: str) -> InferError:
    return invalid(f"failed to run warmup sample '{sample.name}': {texts}", hint)


class _Sink:
    """Waits for `count` requests of one execution and keeps their errors."""

    def __init__(self, count: int) -> None:
        self.errors: list[InferError] = []
        self._left = count
        self._resting = False
        self._change = threading.Condition()

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        with self._change:
            if isinstance(response, FailedResponse):
                self.errors.append(response.error)
            self._settle(final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        with self._change:
            self.errors.append(error)
            self._settle(True)

    def rest(self) -> None:
        """The instance can take the next batch."""
        with self._change:
            self._resting = True
            self._change.notify_all()

    def wait(self, seconds: float) -> bool:
        """Whether all is answered and the instance is idle."""
        with self._change:
            return self._change.wait_for(lambda: self._left == 0 and self._resting, seconds)

    def _settle(self, final: bool) -> None:
        if final:
            self._left -= 1
            self._change.notify_all()
