"""The scheduler of a model version: a batcher behind a lock, and free instances that come for the next batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from conch.backend.api import Instance
from conch.observe.stats import ModelStats, Reason
from conch.schedule.alarm import Alarm, Later
from conch.schedule.api import Batcher
from conch.schedule.drain import DrainRate
from conch.schedule.order import Order
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix


class Post(Protocol):
    """Runs a call on the event loop's thread, soon. Any thread."""

    def __call__(self, call: Callable[[], object], /) -> object: ...


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


class Drive(Protocol):
    """Makes the runner of an instance."""

    def __call__(self, instance: Instance, name: str, /) -> Runner: ...


#: How often to look whether an instance that leaves has answered all it has run, in seconds.
_GLANCE = 0.005


class QueueScheduler:
    """Requests of one loop tick meet before any instance is woken: one `kick` per tick, not one per request.

    A runner that finds nothing to do is idle until it is woken, and is woken once per idling.

    With an `order`, answers leave in the order in which batches were taken. A `rate` tells refused clients when to come
    again; it is for queues that refuse.
    """

    def __init__(
        self,
        batcher: Batcher,
        stats: ModelStats,
        post: Post,
        later: Later,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        order: Order | None = None,
        rate: DrainRate | None = None,
    ) -> None:
        self._batcher = batcher
        self._order = order
        self._rate = rate
        if order is not None:
            order.on_room = lambda: post(self._kick)
        self._stats = stats
        self._latencies = stats.latencies
        self._post = post
        self._clock = clock
        self._lock = threading.Lock()
        self._runners: list[Runner] = []
        self._idle: list[Runner] = []
        #: Runners that get no more work -> what to set when they have seen it.
        self._leaving: dict[Runner, threading.Event] = {}
        #: The runners of hired instances, by the identity of the instance.
        self._driven: dict[int, Runner] = {}
        #: Makes the runner of an instance that is hired.
        self.drive: Drive | None = None
        self._kicked = False
        self._stopped = False
        self._sweeping = False
        self._alarm = Alarm(later, clock, self._ring)

    def attach(self, runner: Runner) -> None:
        """Add an instance's runner; it begins idle."""
        with self._lock:
            self._runners.append(runner)
            self._idle.append(runner)

    def hire(self, instance: Instance, name: str, /) -> None:
        """See `Elastic.hire`."""
        assert self.drive is not None
        runner = self._driven[id(instance)] = self.drive(instance, name)
        self.attach(runner)
        self._post(self._kick)

    def dismiss(self, instance: Instance, /) -> None:
        """See `Elastic.dismiss`."""
        runner = self._driven.pop(id(instance))
        gone = threading.Event()
        self._post(partial(self._let_go, runner, gone))
        gone.wait()
        while runner.open():
            time.sleep(_GLANCE)
        runner.close()
        with self._lock:
            if runner in self._runners:
                self._runners.remove(runner)

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
            except InferError as error:
                error.retry_after_s = self._retry_after(now)
                self._stats.failed((request,), Reason.REJECTED, now)
                raise
            if self._latencies is not None:
                self._latencies.watch(request)
            kick = not self._kicked
            self._kicked = True
        if kick:
            self._post(self._kick)

    def take(self, runner: Runner) -> list[InferRequest]:
        """The next batch for `runner`; an empty one means that it is idle now and will be woken."""
        now = self._clock()
        order = self._order
        with self._lock:
            if self._leaving and runner in self._leaving:
                runner.running = 0
                self._leaving.pop(runner).set()
                # It may have been woken for work that another one has to do now.
                self._post(self._kick)
                return []
            if order is not None and order.full:
                # It kicks when there is room again.
                runner.running = 0
                self._idle.append(runner)
                return []
            turn = self._batcher.take(now)
            runner.running = len(turn.run)
            if not turn.run:
                self._idle.append(runner)
            elif order is not None:
                order.enter(turn.run)
            if self._rate is not None and turn.run:
                self._rate.took(len(turn.run), len(self._batcher), now)
            alarm = turn.ask_at != 0 and self._alarm.earlier(turn.ask_at)
        if turn.refuse:
            self._refuse(turn.refuse, now)
        if alarm:
            self._post(self._alarm.arm)
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

    def _let_go(self, runner: Runner, gone: threading.Event) -> None:
        """On the loop, where runners are woken: one that is idle will not be, one that works ends at its next look."""
        with self._lock:
            if runner in self._idle:
                self._idle.remove(runner)
                gone.set()
            else:
                self._leaving[runner] = gone

    def _kick(self) -> None:
        """On the loop: wake as many idle runners as may find work; wait for the deadlines of the others' requests."""
        with self._lock:
            self._kicked = False
            waiting = len(self._batcher)
            woken = self._idle[-waiting:] if waiting else []
            del self._idle[len(self._idle) - len(woken) :]
            alarm = self._alarm.earlier(self._batcher.next_deadline)
        if alarm:
            self._alarm.arm()
        for runner in reversed(woken):
            runner.wake()

    def _ring(self) -> None:
        """On the loop: if the alarm is due, a queue delay or a deadline has passed and the batcher is asked again."""
        now = self._clock()
        if not self._alarm.due(now):
            return
        with self._lock:
            turn = self._batcher.expire(now)
            self._alarm.at = turn.ask_at
        if turn.refuse:
            self._refuse(turn.refuse, now)
        if turn.ask_at:
            self._alarm.arm()
        self._kick()

    def _sweep(self) -> None:
        """On the loop: the withdrawn requests among the waiting ones are refused."""
        self._sweeping = False
        now = self._clock()
        with self._lock:
            turn = self._batcher.sweep(now)
        if turn.refuse:
            self._refuse(turn.refuse, now)

    def _retry_after(self, now: int) -> float:
        """Seconds until what waits now, and one more, has been taken; 0 where nobody measures."""
        return 0.0 if self._rate is None else self._rate.seconds(len(self._batcher) + 1, now)

    def _refuse(self, refused: list[tuple[InferRequest, InferError]], now: int) -> None:
        wait = self._retry_after(now)
        for _, error in refused:
            if error.code is Code.UNAVAILABLE:
                error.retry_after_s = wait
        refuse(refused, self._stats, now)


def refuse(refused: Iterable[tuple[InferRequest, InferError]], stats: ModelStats, now: int) -> None:
    """Tell these requests that they have left the queue without running, and count them."""
    for request, error in refused:
        request.sink.fail(request, error)
        reason = Reason.CANCELED if error.code is Code.CANCELLED else Reason.REJECTED
        stats.failed((request,), reason, now)
