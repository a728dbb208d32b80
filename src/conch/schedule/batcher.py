"""Which waiting requests run together, and when: pure decisions, no thread, no clock (Triton's dynamic batching rules).

Rules: first come, first served; a batch never exceeds the maximum size and no request is split; requests whose batch
keys differ never meet, and the first that does not fit closes the batch; a queue that is full refuses; a request past
its deadline (the queue policy's or the client's, whichever is earlier) is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from conch.schedule.api import Turn
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long and how many requests may wait. Zero means no limit; times are nanoseconds."""

    max_size: int = 0
    timeout_ns: int = 0
    #: Whether a request may ask for a shorter time than `timeout_ns` (a longer one is not granted).
    allow_override: bool = False


class QueueBatcher:
    """One queue. `max_rows` 1 gives the default scheduler: each request runs alone.

    `delay_ns` is how long a batch may wait to reach a preferred size; 0 sends what is there as soon as it is asked.
    """

    def __init__(
        self,
        max_rows: int,
        preferred: Iterable[int] = (),
        delay_ns: int = 0,
        policy: QueuePolicy | None = None,
    ) -> None:
        self._max_rows = max(1, max_rows)
        self._preferred = frozenset(preferred) or frozenset((self._max_rows,))
        self._largest = max(self._preferred)
        self._delay_ns = delay_ns
        self._policy = policy or QueuePolicy()
        #: With no delay and no preference below the maximum, a batch is simply as much as fits.
        self._greedy = delay_ns == 0 and self._preferred == {self._max_rows}
        self._waiting: deque[InferRequest] = deque()
        #: No waiting request has an earlier deadline (0: none has one).
        self.next_deadline = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, request: InferRequest, now: int) -> None:
        policy = self._policy
        if policy.max_size and len(self._waiting) >= policy.max_size:
            raise unavailable(
                id_prefix(request.id) + "Exceeds maximum queue size",
                f"{policy.max_size} requests wait already: send slower, add instances, or raise max_queue_size",
            )
        if policy.timeout_ns:
            allowed = policy.timeout_ns
            asked = request.form.timeout_us * 1000
            if policy.allow_override and 0 < asked < allowed:
                allowed = asked
            self._due(request, now + allowed)
        if request.expires_ns:
            self._due(request, request.expires_ns)
        self._waiting.append(request)

    def take(self, now: int) -> Turn:
        """The next batch, for an instance that is free now."""
        turn = self.expire(now)
        if self._greedy:
            turn.run = self._take_greedy()
        elif self._waiting:
            count, wait_until = self._choose(now)
            turn.run = [self._waiting.popleft() for _ in range(count)]
            if wait_until and (turn.ask_at == 0 or wait_until < turn.ask_at):
                turn.ask_at = wait_until
        return turn

    def expire(self, now: int) -> Turn:
        """Refuse what is past its deadline, or cancelled and first in line; `ask_at` is the next deadline."""
        turn = Turn([], [])
        waiting = self._waiting
        while waiting and waiting[0].cancelled:
            turn.refuse.append((waiting.popleft(), InferError(Code.CANCELLED, "")))
        if self.next_deadline and now >= self.next_deadline:
            self._sweep(now, turn)
        turn.ask_at = self.next_deadline
        return turn

    def sweep(self, now: int) -> Turn:
        """Refuse what is past its deadline or cancelled, wherever it stands."""
        turn = Turn([], [])
        self._sweep(now, turn)
        turn.ask_at = self.next_deadline
        return turn

    def _due(self, request: InferRequest, at: int) -> None:
        """`request` must not wait longer than until `at`."""
        if request.deadline_ns == 0 or at < request.deadline_ns:
            request.deadline_ns = at
        if self.next_deadline == 0 or at < self.next_deadline:
            self.next_deadline = at

    def _sweep(self, now: int, turn: Turn) -> None:
        kept: deque[InferRequest] = deque()
        self.next_deadline = 0
        for request in self._waiting:
            if request.cancelled:
                turn.refuse.append((request, InferError(Code.CANCELLED, "")))
            elif request.deadline_ns and now >= request.deadline_ns:
                turn.refuse.append((request, unavailable("Request timeout expired")))
            else:
                kept.append(request)
                if request.deadline_ns and (self.next_deadline == 0 or request.deadline_ns < self.next_deadline):
                    self.next_deadline = request.deadline_ns
        self._waiting = kept

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

    def _choose(self, now: int) -> tuple[int, int]:
        """How many requests from the front make the batch (0: wait), and until when to wait."""
        rows = count = best = 0
        closed = False
        key = self._waiting[0].form.batch_key
        for request in self._waiting:
            form = request.form
            if count:
                if rows + form.rows > self._largest and best == 0:
                    best = count
                if rows + form.rows > self._max_rows or form.batch_key != key:
                    closed = True
                    break
            rows += form.rows
            count += 1
            if rows in self._preferred:
                best = count
        waited = now - self._waiting[0].queued_ns
        overdue = self._delay_ns > 0 and waited >= self._delay_ns
        if best and not overdue:
            return best, 0
        if closed or overdue or self._delay_ns == 0 or rows >= self._largest:
            return count, 0
        return 0, self._waiting[0].queued_ns + self._delay_ns
