"""The workers of an instance, one after another: the first, and those in place of ones that have died."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from conch.backend.python.process import Launch, WorkerProcess
from conch.backend.python.supervise import Backoff
from conch.types.error import InferError, foreign

_LOG = logging.getLogger("conch.backend")


class Started:
    """A worker that is ready, and what its model is like."""

    __slots__ = ("has_ready", "overlap", "worker")

    def __init__(self, launch: Launch, closing: threading.Event) -> None:
        """Blocks. Raises InferError."""
        self.worker = WorkerProcess(launch)
        content = self.worker.begin(closing.is_set)["content"]
        #: The model has `is_ready`.
        self.has_ready = bool(content["is_ready"])
        #: Its batches overlap, though it is not decoupled.
        self.overlap = bool(content["overlap"])


class Restarts:
    """Starts workers, those after the first in a thread of its own."""

    def __init__(
        self, launch: Launch, up: Callable[[WorkerProcess], object], hopeless: Callable[[InferError], object]
    ) -> None:
        """`up` is told of each worker after the first, `hopeless` why starting keeps failing; from any thread."""
        self._launch = launch
        self._up = up
        self._hopeless = hopeless
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        #: Held while `_thread` is set and not started yet.
        self._starting = threading.Lock()
        self._backoff: Backoff | None = None

    @property
    def closed(self) -> bool:
        """No more workers are started."""
        return self._closing.is_set()

    def first(self) -> Started:
        """Blocks. Raises InferError."""
        started = Started(self._launch, self._closing)
        self._backoff = Backoff(time.monotonic())
        return started

    def died(self) -> None:
        """The worker has died: start another, soon. Not if this is closed, or about to be. Loop thread."""
        if self._closing.is_set():
            return
        assert self._backoff is not None
        pause = self._backoff.died(time.monotonic())
        with self._starting:
            self._thread = threading.Thread(
                target=self._run, args=(pause,), name=f"restart {self._launch.instance}", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Blocks until no worker is being started; `up` was told of the last one by then."""
        self._closing.set()
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, pause: float) -> None:
        backoff = self._backoff
        assert backoff is not None
        while not self._closing.wait(pause):
            try:
                if self._launch.cores:
                    os.sched_setaffinity(0, self._launch.cores)
                started = Started(self._launch, self._closing)
            except Exception as error:  # noqa: BLE001  no descriptors, no memory: whatever it is may pass
                if not isinstance(error, InferError):
                    _LOG.exception("the worker of model instance '%s' cannot be restarted", self._launch.instance)
                pause = backoff.failed()
                if backoff.hopeless:
                    self._hopeless(foreign(error))
            else:
                backoff.started(time.monotonic())
                self._up(started.worker)
                return
