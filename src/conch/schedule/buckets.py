"""Which requests of a padded model run together: a queue per bucket, the oldest head first. Pure, as `QueueBatcher`.

Requests are told apart by their batch keys (`types.padding.Bucket`). Each bucket is first come, first served; of the
buckets that have a batch to send, the one whose first request has waited longest sends it, so that none starves. With
`max_waste` a batch that has room takes in the first requests of smaller buckets, as long as no larger share of it is
padding for their sake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from conch.schedule.api import Turn
from conch.schedule.forming import Forming
from conch.schedule.policy import QueuePolicy, cancelled, sift
from conch.types.padding import Bucket
from conch.types.request import InferRequest

Line = deque[InferRequest]


class BucketBatcher:
    """`max_rows`, `preferred` and `delay_ns` hold for each batch, `policy` for all requests that wait."""

    def __init__(
        self,
        max_rows: int,
        preferred: Iterable[int] = (),
        delay_ns: int = 0,
        policy: QueuePolicy | None = None,
        max_waste: float = 0.0,
    ) -> None:
        self._forming = Forming(max_rows, preferred, delay_ns)
        self._max_rows = self._forming.max_rows
        self._policy = policy or QueuePolicy()
        self._max_waste = max_waste
        #: No line is empty.
        self._lines: dict[object, Line] = {}
        self._waiting = 0
        #: No waiting request has an earlier deadline (0: none has one).
        self.next_deadline = 0

    def __len__(self) -> int:
        return self._waiting

    def offer(self, request: InferRequest, now: int) -> None:
        self._policy.admit(request, self._waiting)
        if self._policy.timeout_ns:
            self._due(request, now + self._policy.patience_ns(request))
        if request.expires_ns:
            self._due(request, request.expires_ns)
        key = request.form.batch_key
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
        line.append(request)
        self._waiting += 1

    def take(self, now: int) -> Turn:
        turn = self.expire(now)
        for key in sorted(self._lines, key=self._head_ns):
            line = self._lines[key]
            count, wait_until = self._forming.choose(line, now)
            if count:
                turn.run = [line.popleft() for _ in range(count)]
                if self._max_waste:
                    self._take_smaller(key, turn.run)
                self._left(key, len(turn.run))
                break
            if turn.ask_at == 0 or wait_until < turn.ask_at:
                turn.ask_at = wait_until
        return turn

    def expire(self, now: int) -> Turn:
        """Refuse what is past its deadline, or cancelled and first in its line; `ask_at` is the next deadline."""
        turn = Turn([], [])
        for key, line in list(self._lines.items()):
            while line and line[0].cancelled:
                turn.refuse.append((line.popleft(), cancelled()))
                self._left(key, 1)
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

    def _head_ns(self, key: object) -> int:
        return self._lines[key][0].queued_ns

    def _left(self, key: object, count: int) -> None:
        self._waiting -= count
        if not self._lines[key]:
            del self._lines[key]

    def _due(self, request: InferRequest, at: int) -> None:
        """`request` must not wait longer than until `at`."""
        if request.deadline_ns == 0 or at < request.deadline_ns:
            request.deadline_ns = at
        if self.next_deadline == 0 or at < self.next_deadline:
            self.next_deadline = at

    def _sweep(self, now: int, turn: Turn) -> None:
        self.next_deadline = 0
        for key, line in list(self._lines.items()):
            kept, first = sift(line, now, turn.refuse)
            if first and (self.next_deadline == 0 or first < self.next_deadline):
                self.next_deadline = first
            self._lines[key] = kept
            self._left(key, len(line) - len(kept))

    def _take_smaller(self, key: object, run: list[InferRequest]) -> None:
        """Fill `run`, a batch of bucket `key`, with the first requests of smaller buckets."""
        if not isinstance(key, Bucket):
            return
        rows = sum([request.form.rows for request in run])
        size = sum(key.sizes)
        needed = rows * size
        for other in sorted(self._smaller(key), key=self._head_ns):
            line = self._lines[other]
            own = sum(other.sizes)
            while line:
                more = line[0].form.rows
                most = (rows + more) * size
                if rows + more > self._max_rows or most - (needed + more * own) > self._max_waste * most:
                    break
                run.append(line.popleft())
                rows += more
                needed += more * own
            if not line:
                del self._lines[other]

    def _smaller(self, key: Bucket) -> list[Bucket]:
        return [
            other
            for other in self._lines
            if isinstance(other, Bucket)
            and other != key
            and other.rest == key.rest
            and all(theirs <= ours for theirs, ours in zip(other.sizes, key.sizes, strict=True))
        ]
