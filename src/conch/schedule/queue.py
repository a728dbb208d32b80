"""The scheduler of a model version: a batcher behind a lock, and free instances that come for the next batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from conch.observe.stats import ModelStats, Reason
from conch.schedule.api import Batcher
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix


class Post(Protocol):
    """Runs a call on the event loop's thread, soon. Any thread."""

    def __call__(self, call: Callable[[], object], /) -> object: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


class Later(Protocol):
    """Runs a call on the event loop's thread after so many seconds. Only on that thread."""

    def __call__(self, seconds: float, call: Callable[[], object], /) -> Timer: ...


class Runner(Protocol):
    """What drives one instance. `wake` is called on the loop thread when work waits and the runner is idle."""

    #: Requests in the batch that executes now.
    running: int

    def open(self) -> int:
        """Requests whose execution is over and that the instance has not finished answering. Any thread.

        A request is counted here before it leaves `running`, so who reads `running` first misses none.
        """

    def wake(self) -> None: ...

    def close(self) -> None: ...


class QueueScheduler:
    """Requests of one loop tick meet before any instance is woken: one `kick` per tick, not one per request.

    A runner that finds nothing to do is idle until it is woken, and is woken once per idling.
    """

    def __init__(
        self,
        batcher: Batcher,
        stats: ModelStats,
        post: Post,
        later: Later,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._batcher = batcher
        self._stats = stats
        self._post = post
        self._later = later
        self._clock = clock
        self._lock = threading.Lock()
        self._runners: list[Runner] = []
        self._idle: list[Runner] = []
        self._kicked = False
        self._stopped = False
        self._sweeping = False
        #: When the loop will ask the batcher again by itself; 0 for never.
        self._alarm_ns = 0
        self._timer: Timer | None = None

    def attach(self, runner: Runner) -> None:
        """Add an instance's runner; it begins idle."""
        with self._lock:
            self._runners.append(runner)
            self._idle.append(runner)

    def submit(self, request: InferRequest, /) -> None:
        now = self._clock()
        request.queued_ns = now
        with self._lock:
            if self._stopped:
                raise unavailable(
                    id_prefix(request.id)
                    + "Server is stopping, scheduler for model has stopped accepting new inference requests"
                )
            try:
                self._batcher.offer(request, now)
            except InferError:
                self._stats.failed((request,), Reason.REJECTED, now)
                raise
            kick = not self._kicked
            self._kicked = True
        if kick:
            self._post(self._kick)

    def take(self, runner: Runner) -> list[InferRequest]:
        """The next batch for `runner`; an empty one means that it is idle now and will be woken."""
        now = self._clock()
        with self._lock:
            turn = self._batcher.take(now)
            runner.running = len(turn.run)
            if not turn.run:
                self._idle.append(runner)
            alarm = turn.ask_at != 0 and (self._alarm_ns == 0 or turn.ask_at < self._alarm_ns)
            if alarm:
                self._alarm_ns = turn.ask_at
        if turn.refuse:
            self._refuse(turn.refuse, now)
        if alarm:
            self._post(self._set_alarm)
        return turn.run

    def withdraw(self, request: InferRequest, /) -> None:
        """All requests withdrawn in a loop tick leave the queue in one go."""
        request.cancelled = True
        if not self._sweeping and len(self._batcher):
            self._sweeping = True
            self._post(self._sweep)

    def pending(self) -> int:
        return len(self._batcher)

    def inflight(self) -> int:
        with self._lock:
            return len(self._batcher) + sum([runner.running + runner.open() for runner in self._runners])

    def stop(self) -> None:
        with self._lock:
            self._stopped = True

    def close(self) -> None:
        """End the runners. Call it when nothing is in flight; blocks, never on the loop thread."""
        self.stop()
        for runner in self._runners:
            runner.close()
        # Forms of requests may outlive the version they were made for; its instances must not.
        self._runners.clear()
        self._idle.clear()

    def _kick(self) -> None:
        """On the loop: wake as many idle runners as may find work; wait for the deadlines of the others' requests."""
        with self._lock:
            self._kicked = False
            waiting = len(self._batcher)
            woken = self._idle[-waiting:] if waiting else []
            del self._idle[len(self._idle) - len(woken) :]
            deadline = self._batcher.next_deadline
            alarm = deadline != 0 and (self._alarm_ns == 0 or deadline < self._alarm_ns)
            if alarm:
                self._alarm_ns = deadline
        if alarm:
            self._set_alarm()
        for runner in reversed(woken):
            runner.wake()

    def _set_alarm(self) -> None:
        """On the loop: see to it that `_ring` is called at `_alarm_ns`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._later((self._alarm_ns - self._clock()) / 1e9, self._ring)

    def _ring(self) -> None:
        """On the loop: if the alarm is due, a queue delay or a deadline has passed and the batcher is asked again."""
        now = self._clock()
        if self._alarm_ns == 0:
            return
        if now < self._alarm_ns:
            self._set_alarm()
            return
        with self._lock:
            turn = self._batcher.expire(now)
            self._alarm_ns = turn.ask_at
        if turn.refuse:
            self._refuse(turn.refuse, now)
        if turn.ask_at:
            self._set_alarm()
        self._kick()

    def _sweep(self) -> None:
        """On the loop: the withdrawn requests among the waiting ones are refused."""
        self._sweeping = False
        now = self._clock()
        with self._lock:
            turn = self._batcher.sweep(now)
        if turn.refuse:
            self._refuse(turn.refuse, now)

    def _refuse(self, refused: list[tuple[InferRequest, InferError]], now: int) -> None:
        for request, error in refused:
            request.sink.fail(request, error)
            reason = Reason.CANCELED if error.code is Code.CANCELLED else Reason.REJECTED
            self._stats.failed((request,), reason, now)
