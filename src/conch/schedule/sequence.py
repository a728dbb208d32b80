"""The scheduler of a sequence model: sequences behind a lock, each instance with slots of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from conch.observe.stats import ModelStats
from conch.schedule.alarm import Alarm, Later
from conch.schedule.order import Order
from conch.schedule.queue import Post, Runner, refuse
from conch.schedule.sequence_batcher import SequenceBatcher, SequenceTurn
from conch.schedule.sequence_controls import Controls, SequencedRequest
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix
from conch.types.response import InferResponse


class SequenceScheduler:
    """Implements `schedule.api.Scheduler`, and is the sink of what the instances get.

    Requests of one loop tick meet before an instance is woken. A request goes to its instance as a derived one, with
    the controls and states; the answer goes to the client's own, once the sequence may go on.
    """

    def __init__(
        self,
        batcher: SequenceBatcher,
        stats: ModelStats,
        post: Post,
        later: Later,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        ordered: bool = False,
    ) -> None:
        """Set `controls` before the first request. `ordered`: answers leave in the order of their batches."""
        self.controls: Controls
        self._ordered = ordered
        #: By lane.
        self._orders: list[Order] = []
        self._batcher = batcher
        self._stats = stats
        self._post = post
        self._clock = clock
        self._lock = threading.Lock()
        #: In the order of the batcher's lanes.
        self._runners: list[Runner] = []
        self._lanes: dict[Runner, int] = {}
        self._idle: set[int] = set()
        #: Requests that have been given to an instance and are not settled.
        self._running = 0
        self._kicked = False
        self._stopped = False
        self._sweeping = False
        self._alarm = Alarm(later, clock, self._ring)

    def attach(self, runner: Runner) -> None:
        """Add the runner of the next lane; it begins idle."""
        with self._lock:
            self._lanes[runner] = len(self._runners)
            self._idle.add(len(self._runners))
            self._runners.append(runner)
            if self._ordered:
                order = Order()
                order.on_room = lambda: self._post(self._kick)
                self._orders.append(order)

    def submit(self, request: InferRequest, /) -> None:
        now = self._clock()
        request.queued_ns = now
        with self._lock:
            if self._stopped and not self._batcher.knows(request):
                raise unavailable(
                    id_prefix(request.id)
                    + "Server is stopping, scheduler for model has stopped accepting new inference requests"
                )
            self._batcher.offer(request, now)
            if self._stats.latencies is not None:
                self._stats.latencies.watch(request)
            kick = not self._kicked
            self._kicked = True
        if kick:
            self._post(self._kick)

    def take(self, runner: Runner) -> list[InferRequest]:
        """The next batch for `runner`; an empty one means that it is idle now and will be woken."""
        now = self._clock()
        lane = self._lanes[runner]
        run: list[InferRequest] = []
        with self._lock:
            # Under the lock: room that comes later finds the runner among the idle ones.
            full = self._ordered and self._orders[lane].full
            turn = SequenceTurn() if full else self._batcher.take(lane, now)
            made = [None if each is None else self.controls.request(each, self) for each in turn.rows]
            if made:
                like = next(each for each in made if each is not None)
                run += [self.controls.empty(like, self) if each is None else each for each in made]
                self._running += sum([each is not None for each in made])
                if self._ordered:
                    self._orders[lane].enter(run)
            else:
                self._idle.add(lane)
            runner.running = len(run)
            alarm = self._alarm.earlier(turn.ask_at)
        if turn.refuse:
            refuse(turn.refuse, self._stats, now)
        if alarm:
            self._post(self._alarm.arm)
        return run

    def withdraw(self, request: InferRequest, /) -> None:
        """All requests withdrawn in a loop tick leave in one go."""
        request.cancelled = True
        if not self._sweeping and (len(self._batcher) or self._running):
            self._sweeping = True
            self._post(self._sweep)

    def reschedule(self, request: InferRequest, /) -> None:
        """A model has released `request`, which it was given, to have it again in a later batch."""
        assert isinstance(request, SequencedRequest)
        assert request.sequence is not None
        now = self._clock()
        with self._lock:
            self._running -= 1
            turn = self._batcher.again(request.sequence, now)
            kick = self._kick_needed(request.sequence.lane)
        if turn.refuse:
            refuse(turn.refuse, self._stats, now)
        if kick:
            self._post(self._kick)

    #: See `Sequential`.
    sequential = True

    def continues(self, request: InferRequest, /) -> bool:
        with self._lock:
            return self._batcher.knows(request)

    def sequences(self) -> int:
        with self._lock:
            return self._batcher.live

    def pending(self) -> int:
        return len(self._batcher)

    def inflight(self) -> int:
        with self._lock:
            # An instance may be busy with requests that are settled, or with rows that nobody asked for.
            busy = sum([runner.running + runner.open() for runner in self._runners])
            return len(self._batcher) + max(self._running, busy)

    def stop(self) -> None:
        """Sequences that have begun may go on."""
        with self._lock:
            self._stopped = True

    def close(self) -> None:
        """End the runners. Call it when nothing is in flight; blocks, never on the loop thread."""
        self.stop()
        for runner in self._runners:
            runner.close()
        with self._lock:
            # Forms of requests may outlive the version they were made for; its instances must not.
            self._runners.clear()
            self._lanes.clear()
            self._idle.clear()

    # ---- the sink of the instances

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        assert isinstance(request, SequencedRequest)
        client = request.client
        if client is None:
            return
        response = self.controls.answer(request, response)
        if final:
            self._settled(request)
        client.sink.reply(client, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        assert isinstance(request, SequencedRequest)
        client = request.client
        if client is None:
            return
        # What is dropped before its execution fails like this; a model may say CANCELLED of its own accord.
        self._settled(request, lost=error.code is Code.CANCELLED and request.cancelled)
        client.sink.fail(client, error)

    def _settled(self, request: SequencedRequest, *, lost: bool = False) -> None:
        sequence = request.sequence
        assert sequence is not None
        now = self._clock()
        with self._lock:
            self._running -= 1
            turn = self._batcher.done(sequence, now, lost=lost)
            kick = self._kick_needed(sequence.lane)
        if turn.refuse:
            refuse(turn.refuse, self._stats, now)
        if kick:
            self._post(self._kick)

    # ---- waking

    def _kick_needed(self, lane: int) -> bool:
        """Whether an idle instance has work again, or there is an idle sequence and no alarm for it; sets `_kicked`."""
        if self._kicked:
            return False
        wanted = (lane in self._idle and self._batcher.work(lane) > 0) or (
            self._alarm.at == 0 and self._batcher.next_deadline != 0
        )
        self._kicked = wanted
        return wanted

    def _kick(self) -> None:
        """On the loop: wake the idle runners that find work."""
        with self._lock:
            self._kicked = False
            woken = [lane for lane in self._idle if self._batcher.work(lane)]
            self._idle.difference_update(woken)
            runners = [self._runners[lane] for lane in woken]
            alarm = self._alarm.earlier(self._batcher.next_deadline)
        if alarm:
            self._alarm.arm()
        for runner in runners:
            runner.wake()

    def _ring(self) -> None:
        """On the loop: if the alarm is due, something is overdue, or a batch has waited long enough."""
        now = self._clock()
        if not self._runners or not self._alarm.due(now):
            return
        with self._lock:
            turn = self._batcher.expire(now)
            self._alarm.at = turn.ask_at
        if turn.refuse:
            refuse(turn.refuse, self._stats, now)
        if turn.ask_at:
            self._alarm.arm()
        self._kick()

    def _sweep(self) -> None:
        """On the loop: the withdrawn requests among the waiting ones are refused; those that run hear of it."""
        self._sweeping = False
        now = self._clock()
        with self._lock:
            turn = self._batcher.sweep(now)
        if turn.refuse:
            refuse(turn.refuse, self._stats, now)
        self._kick()
