"""A loaded model whose instances, whatever their backend, get padded requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from conch.backend.api import Housed, Instance, LoadedModel, LoopInstance, Placement, StreamingInstance, ThreadInstance
from conch.backend.padding import Padder
from conch.observe.stats import ModelStats, Reason
from conch.types.error import internal
from conch.types.model import ModelSpec
from conch.types.padding import Padding
from conch.types.request import InferRequest


class PaddedModel:
    """Wraps each instance so that it stays of its kind."""

    def __init__(self, model: LoadedModel, spec: ModelSpec, padding: Padding, stats: ModelStats) -> None:
        self._model = model
        self._pad = _Pad(Padder(spec, padding, stats), stats)

    def instance(self, placement: Placement) -> Instance:
        instance = self._model.instance(placement)
        if isinstance(instance, StreamingInstance):
            return _PaddedStreaming(instance, self._pad)
        if isinstance(instance, LoopInstance):
            return _PaddedLoop(instance, self._pad)
        return _PaddedThread(instance, self._pad)

    def ready(self) -> bool:
        return self._model.ready()

    def processes(self) -> Sequence[int]:
        """See `backend.api.Housed`."""
        return self._model.processes() if isinstance(self._model, Housed) else ()

    def close(self) -> None:
        self._model.close()


class _Pad:
    """Pads a batch, or answers all of its requests with the error that came in the way (memory may run out)."""

    def __init__(self, padder: Padder, stats: ModelStats) -> None:
        self._padder = padder
        self._stats = stats

    def __call__(self, batch: Sequence[InferRequest]) -> list[InferRequest]:
        """Empty after an error."""
        try:
            return self._padder.pad(batch)
        except Exception as error:  # noqa: BLE001  whatever it is, the requests must be answered
            failure = internal(f"the batch cannot be padded: {error!r}")
            for request in batch:
                request.sink.fail(request, failure)
            self._stats.failed(batch, Reason.OTHER, time.monotonic_ns())
            return []


class _PaddedThread:
    def __init__(self, instance: ThreadInstance, pad: _Pad) -> None:
        self._instance = instance
        self._pad = pad

    def run(self, batch: Sequence[InferRequest]) -> None:
        padded = self._pad(batch)
        if padded:
            self._instance.run(padded)

    def close(self) -> None:
        self._instance.close()


class _PaddedLoop:
    def __init__(self, instance: LoopInstance, pad: _Pad) -> None:
        self._instance = instance
        self._pad = pad

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        padded = self._pad(batch)
        if padded:
            self._instance.start(padded, idle)
        else:
            idle()

    def close(self) -> None:
        self._instance.close()


class _PaddedStreaming:
    def __init__(self, instance: StreamingInstance, pad: _Pad) -> None:
        self._instance = instance
        self._loop = _PaddedLoop(instance, pad)

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        self._loop.start(batch, idle)

    def open(self) -> int:
        return self._instance.open()

    def close(self) -> None:
        self._instance.close()
