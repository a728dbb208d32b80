"""Instances that execute only when it is their turn (the rate limiter), or only on some CPUs (host policies).

Both wrap an instance. Models that ask for neither have none of this in their way.
"""

from __future__ import annotations

import _thread
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence

from conch.backend.api import Instance, LoopInstance, StreamingInstance, ThreadInstance
from conch.schedule.queue import Post
from conch.schedule.rate import Demand, Limit, RateLimiter, Ticket
from conch.types.request import InferRequest

_log = logging.getLogger("conch.schedule")


class Turns:
    """The rate limiter of the server, for instances of any thread."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limiter = RateLimiter(limits)
        self._lock = threading.Lock()
        #: What to call when a ticket that waits may execute.
        self._calls: dict[Ticket, Callable[[], object]] = {}

    def join(self, demands: Sequence[Demand]) -> list[Ticket]:
        """See `RateLimiter.join`."""
        with self._lock:
            return self._limiter.join(demands)

    def ask(self, ticket: Ticket, go: Callable[[], object]) -> bool:
        """True: the instance may execute now. Else `go` is called once, from any thread, when it may."""
        with self._lock:
            granted = self._limiter.ask(ticket)
            if ticket not in granted:
                self._calls[ticket] = go
            calls = self._pop(granted)
        for call in calls:
            call()
        return ticket in granted

    def done(self, ticket: Ticket) -> None:
        """The instance has executed."""
        with self._lock:
            calls = self._pop(self._limiter.done(ticket))
        for call in calls:
            call()

    def leave(self, ticket: Ticket) -> None:
        """The instance is gone; again does no harm."""
        with self._lock:
            self._calls.pop(ticket, None)
            calls = self._pop(self._limiter.leave(ticket))
        for call in calls:
            call()

    def _pop(self, granted: Sequence[Ticket]) -> list[Callable[[], object]]:
        return [self._calls.pop(ticket) for ticket in granted if ticket in self._calls]


class LimitedThread:
    """An instance with a thread, which sleeps until it is the instance's turn."""

    def __init__(self, inner: ThreadInstance, turns: Turns, ticket: Ticket) -> None:
        self._inner = inner
        self._turns = turns
        self._ticket = ticket
        self._turn = _thread.allocate_lock()
        self._turn.acquire()

    def run(self, batch: Sequence[InferRequest]) -> None:
        if not self._turns.ask(self._ticket, self._turn.release):
            self._turn.acquire()
        try:
            self._inner.run(batch)
        finally:
            self._turns.done(self._ticket)

    def close(self) -> None:
        self._turns.leave(self._ticket)
        self._inner.close()


class LimitedLoop:
    """An instance of the event loop, whose batch waits until it is the instance's turn."""

    def __init__(self, inner: LoopInstance, turns: Turns, ticket: Ticket, post: Post) -> None:
        self._inner = inner
        self._turns = turns
        self._ticket = ticket
        self._post = post
        self._open = inner.open if isinstance(inner, StreamingInstance) else None

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        def begin() -> None:
            self._begin(batch, idle)

        if self._turns.ask(self._ticket, lambda: self._post(begin)):
            begin()

    def open(self) -> int:
        return 0 if self._open is None else self._open()

    def close(self) -> None:
        self._turns.leave(self._ticket)
        self._inner.close()

    def _begin(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        def over() -> None:
            self._turns.done(self._ticket)
            idle()

        try:
            self._inner.start(batch, over)
        except BaseException:
            self._turns.done(self._ticket)
            raise


class PinnedThread:
    """An instance with a thread that runs on `cores` alone. The thread is the runner's: it pins itself."""

    def __init__(self, inner: ThreadInstance, cores: frozenset[int]) -> None:
        self._inner = inner
        self._cores = cores
        self._pinned = 0

    def run(self, batch: Sequence[InferRequest]) -> None:
        thread = threading.get_ident()
        if thread != self._pinned:
            self._pinned = thread
            try:
                os.sched_setaffinity(0, self._cores)
            except OSError as error:
                # CPUs may be taken from a container while it runs; requests are answered all the same.
                _log.warning("an instance cannot be kept to CPUs %s: %s", sorted(self._cores), error.strerror)
        self._inner.run(batch)

    def close(self) -> None:
        self._inner.close()


def limited(instance: Instance, turns: Turns, ticket: Ticket, post: Post) -> Instance:
    """`instance`, which executes only when the rate limiter lets it."""
    if isinstance(instance, LoopInstance):
        return LimitedLoop(instance, turns, ticket, post)
    return LimitedThread(instance, turns, ticket)


def pinned(instance: Instance, cores: frozenset[int]) -> Instance:
    """`instance` on these CPUs. One that the event loop drives computes elsewhere: it was pinned when it was made."""
    return instance if isinstance(instance, LoopInstance) else PinnedThread(instance, cores)
