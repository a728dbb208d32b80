"""Which waiting requests run together, and when: pure decisions, no thread, no clock (Triton's dynamic batching rules).

Rules: first come, first served; a batch never exceeds the maximum size and no request is split; requests whose batch
keys differ never meet, and the first that does not fit closes the batch; a queue that is full refuses; a request past
its deadline (the queue policy's or the client's, whichever is earlier) is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from conch.schedule.api import Turn
from conch.schedule.forming import Forming
from conch.schedule.policy import QueuePolicy, cancelled, expired, sift
from conch.types.request import InferRequest

__all__ = ["QueueBatcher", "QueuePolicy"]

#: The deadline of a request that has none, where deadlines are compared.
_NEVER = 1 << 63


class QueueBatcher:
    """One queue without levels, where nothing falls back: the quick one, see `levels.LevelBatcher` for the others.

    `max_rows` 1 gives the default scheduler: each request runs alone. For the others see `Forming`.
    """

    def __init__(
        self,
        max_rows: int,
        preferred: Iterable[int] = (),
        delay_ns: int = 0,
        policy: QueuePolicy | None = None,
    ) -> None:
        self._forming = Forming(max_rows, preferred, delay_ns)
        self._max_rows = self._forming.max_rows
        self._greedy = self._forming.greedy
        self._policy = policy or QueuePolicy()
        self._waiting: deque[InferRequest] = deque()
        #: No waiting request has an earlier deadline (0: none has one).
        self.next_deadline = 0
        #: While deadlines stand in the order of the queue (`_latest` the last), only its front can be past its own.
        self._in_order = True
        self._latest = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, request: InferRequest, now: int) -> None:
        policy, waiting = self._policy, self._waiting
        if policy.max_size:
            policy.admit(request, len(waiting))
        end = request.expires_ns
        if policy.timeout_ns:
            allowed = now + policy.patience_ns(request)
            if end == 0 or allowed < end:
                end = allowed
        if end or self.next_deadline:
            self._end_at(request, end)
        waiting.append(request)

    def take(self, now: int) -> Turn:
        """The next batch, for an instance that is free now."""
        turn = self.expire(now)
        if self._greedy:
            turn.run = self._take_greedy()
        elif self._waiting:
            count, wait_until = self._forming.choose(self._waiting, now)
            turn.run = [self._waiting.popleft() for _ in range(count)]
            if wait_until and (turn.ask_at == 0 or wait_until < turn.ask_at):
                turn.ask_at = wait_until
        return turn

    def expire(self, now: int) -> Turn:
        """Refuse what is past its deadline, or cancelled and first in line; `ask_at` is the next deadline."""
        turn = Turn([], [])
        waiting = self._waiting
        while waiting and waiting[0].cancelled:
            turn.refuse.append((waiting.popleft(), cancelled()))
        if self.next_deadline and now >= self.next_deadline:
            if self._in_order:
                self._sweep_front(now, turn)
            else:
                self._sweep(now, turn)
        turn.ask_at = self.next_deadline
        return turn

    def sweep(self, now: int) -> Turn:
        """Refuse what is past its deadline or cancelled, wherever it stands."""
        turn = Turn([], [])
        self._sweep(now, turn)
        turn.ask_at = self.next_deadline
        return turn

    def _end_at(self, request: InferRequest, end: int) -> None:
        """`request`, which comes last, must not wait longer than until `end` (0: as long as it takes)."""
        request.deadline_ns = end
        if not self._waiting:
            self._in_order, self._latest = True, end or _NEVER
        elif end and (self.next_deadline == 0 or end < self._latest):
            self._in_order = False
        else:
            self._latest = end or _NEVER
        if end and (self.next_deadline == 0 or end < self.next_deadline):
            self.next_deadline = end

    def _sweep_front(self, now: int, turn: Turn) -> None:
        waiting = self._waiting
        while waiting and (waiting[0].cancelled or 0 < waiting[0].deadline_ns <= now):
            request = waiting.popleft()
            turn.refuse.append((request, cancelled() if request.cancelled else expired()))
        self.next_deadline = waiting[0].deadline_ns if waiting else 0

    def _sweep(self, now: int, turn: Turn) -> None:
        self._waiting, self.next_deadline = sift(self._waiting, now, turn.refuse)

    def _take_greedy(self) -> list[InferRequest]:
        waiting = self._waiting
        if not waiting:
            return []
        first = waiting.popleft()
        run = [first]
        rows, key, most = first.form.rows, first.form.batch_key, self._max_rows
        while waiting:
            form = waiting[0].form
            rows += form.rows
            if rows > most or form.batch_key != key:
                break
            run.append(waiting.popleft())
        return run
