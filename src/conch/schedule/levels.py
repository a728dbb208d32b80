"""The batcher for models with priority levels, with time-outs that delay, or with tenants that share. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from conch.schedule.api import Turn
from conch.schedule.forming import Forming
from conch.schedule.line import Fifo, Line
from conch.schedule.policy import QueuePolicy, cancelled, expired
from conch.types.request import InferRequest

#: A heap of deadlines is cleaned when this many, and more than half, are of requests that have gone.
_SLACK = 64


class Level:
    """The requests of one priority: those in time, and behind them those whose time-out only set them back."""

    __slots__ = ("delayed", "line", "policy")

    def __init__(self, policy: QueuePolicy, line: Line) -> None:
        self.policy = policy
        self.line = line
        self.delayed = Fifo()

    def __len__(self) -> int:
        return len(self.line) + len(self.delayed)

    def __iter__(self) -> Iterator[InferRequest]:
        yield from self.line
        yield from self.delayed

    def take(self, count: int) -> list[InferRequest]:
        """The first `count`, or all there are."""
        ready = min(count, len(self.line))
        late = min(count - ready, len(self.delayed))
        return self.line.take(ready) + self.delayed.take(late)

    def remove(self, request: InferRequest) -> None:
        (self.line if request in self.line else self.delayed).remove(request)


class LevelBatcher:
    """Implements `schedule.api.Batcher`.

    Level 1 goes first; what it leaves free of a batch goes to the next. `levels` 0 is a single queue. A request of a
    priority that is no level (0 is what says nothing) has the `default` level. Every level has the `policy` of its own
    in `policies`, else `policy`.
    """

    def __init__(
        self,
        forming: Forming,
        policy: QueuePolicy,
        *,
        levels: int = 0,
        default: int = 0,
        policies: Mapping[int, QueuePolicy] | None = None,
        line: Callable[[], Line] = Fifo,
    ) -> None:
        self._forming = forming
        self._policy = policy
        self._policies = policies or {}
        self._count = levels
        self._default = default
        self._line = line
        #: Only levels in which something waits, and their numbers in order: there may be any number of levels.
        self._levels: dict[int, Level] = {}
        self._order: list[int] = []
        #: Every request that waits, and its level.
        self._waiting: dict[InferRequest, int] = {}
        #: When the time of a request ends. Entries outlive their requests; the first is always of one that waits.
        self._ends: list[tuple[int, int, InferRequest]] = []
        self._offers = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_deadline(self) -> int:
        return self._ends[0][0] if self._ends else 0

    def offer(self, request: InferRequest, now: int) -> None:
        priority = request.form.priority
        number = priority if 0 < priority <= self._count else self._default
        level = self._levels.get(number)
        if level is None:
            level = Level(self._policies.get(number, self._policy), self._line())
        policy = level.policy
        if policy.max_size:
            policy.admit(request, len(level))
        end = request.expires_ns
        if policy.timeout_ns:
            allowed = now + policy.patience_ns(request)
            if end == 0 or allowed < end:
                end = allowed
        if number not in self._levels:
            self._levels[number] = level
            insort(self._order, number)
        level.line.append(request)
        self._waiting[request] = number
        request.deadline_ns = end
        if end:
            self._end_at(end, request)

    def take(self, now: int) -> Turn:
        turn = self.expire(now)
        while self._waiting and not turn.run:
            count, wait_until = self._forming.choose(self._ahead(), now)
            if not count:
                if turn.ask_at == 0 or wait_until < turn.ask_at:
                    turn.ask_at = wait_until
                return turn
            for request in self._pop(count):
                if request.cancelled:
                    turn.refuse.append((request, cancelled()))
                else:
                    turn.run.append(request)
            self._clean()
            turn.ask_at = self.next_deadline
        return turn

    def expire(self, now: int) -> Turn:
        turn = Turn([], [])
        ends = self._ends
        while ends and ends[0][0] <= now:
            self._out_of_time(heappop(ends)[2], now, turn)
            self._clean()
        turn.ask_at = self.next_deadline
        return turn

    def sweep(self, now: int) -> Turn:
        turn = self.expire(now)
        for request in [each for each in self._waiting if each.cancelled]:
            self._remove(request)
            turn.refuse.append((request, cancelled()))
        self._clean()
        turn.ask_at = self.next_deadline
        return turn

    def _ahead(self) -> Iterator[InferRequest]:
        for number in self._order:
            yield from self._levels[number]

    def _pop(self, count: int) -> list[InferRequest]:
        taken: list[InferRequest] = []
        while len(taken) < count:
            number = self._order[0]
            level = self._levels[number]
            taken += level.take(count - len(taken))
            if not len(level):
                del self._levels[number], self._order[0]
        for request in taken:
            del self._waiting[request]
        return taken

    def _remove(self, request: InferRequest) -> None:
        number = self._waiting.pop(request)
        level = self._levels[number]
        level.remove(request)
        if not len(level):
            del self._levels[number]
            self._order.remove(number)

    def _out_of_time(self, request: InferRequest, now: int, turn: Turn) -> None:
        """Set `request` back where its policy says so and its client still waits; else refuse it."""
        level = self._levels[self._waiting[request]]
        gone = request.expires_ns != 0 and request.expires_ns <= now
        if request.cancelled or gone or not level.policy.delays:
            self._remove(request)
            turn.refuse.append((request, cancelled() if request.cancelled else expired()))
            return
        level.line.remove(request)
        level.delayed.append(request)
        request.deadline_ns = request.expires_ns
        if request.expires_ns:
            self._end_at(request.expires_ns, request)

    def _end_at(self, end: int, request: InferRequest) -> None:
        self._offers += 1
        heappush(self._ends, (end, self._offers, request))

    def _clean(self) -> None:
        """Drop the deadlines of requests that have gone: all at the front, and the others when they are many."""
        ends, waiting = self._ends, self._waiting
        while ends and ends[0][2] not in waiting:
            heappop(ends)
        if len(ends) > _SLACK and len(ends) > 2 * len(waiting):
            ends[:] = [entry for entry in ends if entry[2] in waiting]
            heapify(ends)
