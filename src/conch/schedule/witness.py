"""Remembers the last requests of a model, so that they can be asked of its next version before that takes over."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from conch.schedule.api import Scheduler
from conch.types.request import InferRequest, RequestHead
from conch.types.tensor import Buffer


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as its client sent it; `data[i]` is of the client's input number `order[i]`."""

    head: RequestHead
    id: str
    order: tuple[int, ...]
    data: tuple[Buffer, ...]
    size: int


class Witness:
    """Implements `schedule.api.Scheduler` around another one. It keeps at most so many requests and so many bytes."""

    def __init__(self, inner: Scheduler, most: int, max_bytes: int) -> None:
        self.inner = inner
        self._most = most
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._seen: deque[Seen] = deque()
        self._bytes = 0

    def submit(self, request: InferRequest, /) -> None:
        form = request.form
        # What was received lies in larger buffers, and what clients share may change: both are copied.
        size = sum([len(each) for each in request.data])
        seen = None
        if size <= self._max_bytes:
            data = tuple([each if type(each) is bytes else bytes(each) for each in request.data])
            seen = Seen(form.head, request.id, form.order, data, size)
        self.inner.submit(request)
        if seen is not None:
            self._keep((seen,))

    def recent(self) -> list[Seen]:
        """The last one first."""
        with self._lock:
            return list(reversed(self._seen))

    def inherit(self, other: Witness) -> None:
        """What `other` has seen is remembered here too, as older than all else."""
        with self._lock:
            later = list(self._seen)
            self._seen.clear()
            self._bytes = 0
        self._keep([*reversed(other.recent()), *later])

    def _keep(self, seen: Iterable[Seen]) -> None:
        with self._lock:
            for each in seen:
                self._seen.append(each)
                self._bytes += each.size
                while len(self._seen) > self._most or self._bytes > self._max_bytes:
                    self._bytes -= self._seen.popleft().size

    def withdraw(self, request: InferRequest, /) -> None:
        self.inner.withdraw(request)

    def pending(self) -> int:
        return self.inner.pending()

    def inflight(self) -> int:
        return self.inner.inflight()

    def stop(self) -> None:
        self.inner.stop()

    def close(self) -> None:
        self.inner.close()
        with self._lock:
            self._seen.clear()
            self._bytes = 0


def witness_of(scheduler: object) -> Witness | None:
    """The witness behind what is in front of it, a cache; None for models without a gate."""
    while scheduler is not None and not isinstance(scheduler, Witness):
        scheduler = getattr(scheduler, "inner", None)
    return scheduler
