"""The scheduler of a model that may be asleep: requests wait until it is awake, and then go to its real scheduler."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from conch.observe.stats import ModelStats, Reason
from conch.schedule.alarm import Alarm, Later
from conch.schedule.api import Scheduler, Sequential
from conch.schedule.policy import QueuePolicy, sift
from conch.schedule.queue import Post
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix

#: So many requests wait for a model where its config does not limit its queue.
MOST_WAITING: Final = 10_000


class Sleeper:
    """Implements `schedule.api.Scheduler` and `Sequential`.

    Between `close_gate` and `open_gate` requests wait here, in their order, bounded by the model's queue policy; so
    they do while there is no scheduler behind. `call` is told, from any thread and without delay, that somebody waits.
    """

    def __init__(
        self,
        stats: ModelStats,
        policy: QueuePolicy,
        call: Callable[[], object],
        post: Post,
        later: Later,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        sequential: bool = False,
    ) -> None:
        self._stats = stats
        self._policy = policy if policy.max_size else replace(policy, max_size=MOST_WAITING)
        self._call = call
        self._post = post
        self._clock = clock
        #: Whether requests belong together; the model then stays awake as long as a sequence is under way.
        self.sequential = sequential
        #: When the last request came that went straight on; monotonic nanoseconds.
        self.used_ns = 0
        self._lock = threading.Lock()
        #: Where requests go: None while the gate is closed.
        self._inner: Scheduler | None = None
        #: The scheduler that there is, whether the gate is open or not.
        self._behind: Scheduler | None = None
        self._waiting: deque[InferRequest] = deque()
        #: Requests that are on their way from here to the scheduler.
        self._moving = 0
        self._opening = False
        self._stopped = False
        self._sweeping = False
        #: Whoever comes now is refused so, until then: a load has just failed.
        self._trouble: tuple[InferError, int] | None = None
        self._alarm = Alarm(later, clock, self._ring)

    # ---- the scheduler

    def submit(self, request: InferRequest, /) -> None:
        inner = self._inner
        if inner is not None:
            self.used_ns = request.received_ns
            try:
                inner.submit(request)
            except InferError:
                # The gate was closed meanwhile, or it is a refusal.
                if inner is self._inner:
                    raise
            else:
                return
        self._hold(request)

    def withdraw(self, request: InferRequest, /) -> None:
        """All requests withdrawn in a loop tick leave in one go."""
        behind = self._behind
        if behind is not None:
            behind.withdraw(request)
        request.cancelled = True
        if self._waiting and not self._sweeping:
            self._sweeping = True
            self._post(self._sweep)

    def pending(self) -> int:
        behind = self._behind
        return len(self._waiting) + self._moving + (0 if behind is None else behind.pending())

    def inflight(self) -> int:
        with self._lock:
            behind = self._behind
            return len(self._waiting) + self._moving + (0 if behind is None else behind.inflight())

    def continues(self, request: InferRequest, /) -> bool:
        behind = self._behind
        return isinstance(behind, Sequential) and behind.continues(request)

    def sequences(self) -> int:
        behind = self._behind
        return behind.sequences() if isinstance(behind, Sequential) else 0

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            behind = self._behind if self._inner is not None else None
        # What waits here was taken over, and is still to be let in.
        if behind is not None and not self._waiting:
            behind.stop()

    def close(self) -> None:
        """What is behind is closed by who made it."""
        self.stop()

    # ---- the gate; not on the loop's thread

    def busy(self) -> bool:
        """Whether the model has something to answer, or is about to be given it."""
        with self._lock:
            behind = self._behind
            waiting = len(self._waiting) if self._opening or self._inner is not None else 0
            inflight = waiting + self._moving + (0 if behind is None else behind.inflight())
        return inflight > 0 or self.sequences() > 0

    def refusing(self) -> bool:
        """Whether whoever comes now is refused, since a load has just failed."""
        trouble = self._trouble
        return trouble is not None and self._clock() < trouble[1]

    def open_gate(self, scheduler: Scheduler | None = None) -> None:
        """Let in what waits, and whatever comes; to `scheduler`, or to that which there is."""
        with self._lock:
            self._behind = scheduler or self._behind
            self._opening = True
            self._trouble = None
        self._post(self._let_in)

    def close_gate(self) -> None:
        """Sequences that have begun still go on, and what was let in is answered."""
        with self._lock:
            self._inner = None
            self._opening = False
            asked = bool(self._waiting)
        if asked:
            self._call()

    def leave(self) -> Scheduler | None:
        """The gate is closed: the scheduler behind takes nothing any more, and is no more behind once nothing is in
        flight there. Returns it as long as there is something."""
        behind = self._behind
        if behind is None:
            return None
        behind.stop()
        with self._lock:
            if self._moving or behind.inflight() or self.sequences():
                return behind
            self._behind = None
        return None

    def fail(self, error: InferError, seconds: float) -> None:
        """Refuse all that wait, and whoever comes within so many seconds."""
        with self._lock:
            gone, self._waiting = self._waiting, deque()
            self._trouble = (error, self._clock() + int(seconds * 1e9))
            # They are in flight until they are told.
            self._moving += len(gone)
        now = self._clock()
        for request in gone:
            request.sink.fail(request, error)
        self._stats.failed(gone, Reason.OTHER, now)
        with self._lock:
            self._moving -= len(gone)

    # ---- waiting

    def _hold(self, request: InferRequest) -> None:
        now = self._clock()
        policy = self._policy
        with self._lock:
            opened = self._inner is not None
            behind = self._behind if not opened and self.continues(request) else None
            if not opened and behind is None:
                self._admit(request, now)
                request.queued_ns = now
                end = request.expires_ns
                if policy.timeout_ns and not policy.delays:
                    allowed = now + policy.patience_ns(request)
                    end = min(end, allowed) if end else allowed
                request.deadline_ns = end
                self._waiting.append(request)
                first = len(self._waiting) == 1
                alarm = self._alarm.earlier(end)
        if opened:
            # And may be closed again.
            self.submit(request)
            return
        if behind is not None:
            # The request's sequence goes on behind the gate.
            behind.submit(request)
            return
        if first:
            self._call()
        if alarm:
            self._post(self._alarm.arm)

    def _admit(self, request: InferRequest, now: int) -> None:
        """Raises InferError."""
        if self._stopped:
            raise unavailable(
                id_prefix(request.id)
                + "Server is stopping, scheduler for model has stopped accepting new inference requests"
            )
        trouble = self._trouble
        if trouble is not None and now < trouble[1]:
            error = InferError(trouble[0].code, trouble[0].message, trouble[0].hint)
            error.retry_after_s = (trouble[1] - now) / 1e9
            self._stats.failed((request,), Reason.OTHER, now)
            raise error
        try:
            self._policy.admit(request, len(self._waiting))
        except InferError:
            self._stats.failed((request,), Reason.REJECTED, now)
            raise

    def _let_in(self) -> None:
        """On the loop, in order; the gate is open once nobody waits."""
        while True:
            with self._lock:
                behind = self._behind
                if not self._opening or behind is None:
                    return
                if not self._waiting:
                    self._inner = behind
                    self._opening = False
                    stopped = self._stopped
                    break
                going, self._waiting = self._waiting, deque()
                self._moving += len(going)
            for request in going:
                waits_since, expires = request.queued_ns, request.expires_ns
                # The time in the queue does not begin anew: what is left of it is what the request still has.
                request.expires_ns = request.deadline_ns
                try:
                    behind.submit(request)
                except InferError as error:
                    request.sink.fail(request, error)
                else:
                    request.queued_ns = waits_since
                request.expires_ns = expires
                with self._lock:
                    self._moving -= 1
        if stopped:
            behind.stop()

    def _ring(self) -> None:
        """On the loop."""
        if self._alarm.due(self._clock()):
            self._sweep()

    def _sweep(self) -> None:
        """On the loop: who is late or withdrawn is told so."""
        self._sweeping = False
        now = self._clock()
        refused: list[tuple[InferRequest, InferError]] = []
        with self._lock:
            self._waiting, self._alarm.at = sift(self._waiting, now, refused)
            self._moving += len(refused)
            alarm = self._alarm.at
        if alarm:
            self._alarm.arm()
        for request, error in refused:
            request.sink.fail(request, error)
            reason = Reason.CANCELED if error.code is Code.CANCELLED else Reason.REJECTED
            self._stats.failed((request,), reason, now)
        with self._lock:
            self._moving -= len(refused)
