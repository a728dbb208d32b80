"""How much of what waits makes the next batch, and how long to wait for more: Triton's rule, pure."""

from __future__ import annotations

from collections.abc import Iterable

from conch.types.request import InferRequest


class Forming:
    """`max_rows` 1 lets each request run alone, whatever its rows.

    `delay_ns` is how long a batch may wait to reach a preferred size; 0 sends what is there as soon as it is asked.
    """

    __slots__ = ("delay_ns", "greedy", "largest", "max_rows", "preferred")

    def __init__(self, max_rows: int, preferred: Iterable[int] = (), delay_ns: int = 0) -> None:
        self.max_rows = max(1, max_rows)
        self.preferred = frozenset(preferred) or frozenset((self.max_rows,))
        self.largest = max(self.preferred)
        self.delay_ns = delay_ns
        #: With no delay and no preference below the maximum, a batch is simply as much as fits.
        self.greedy = delay_ns == 0 and self.preferred == {self.max_rows}

    def choose(self, waiting: Iterable[InferRequest], now: int) -> tuple[int, int]:
        """How many from the front make the batch (0: wait), and until when to wait (0: no need).

        `waiting` is in the order in which the requests shall run and has at least one; it is read as far as needed.
        """
        rows = count = best = oldest = 0
        closed = False
        key: object = None
        for request in waiting:
            form = request.form
            if count:
                if rows + form.rows > self.largest and best == 0:
                    best = count
                if rows + form.rows > self.max_rows or form.batch_key != key:
                    closed = True
                    break
                if request.queued_ns < oldest:  # noqa: PLR1730  min() costs a call per request
                    oldest = request.queued_ns
            else:
                key, oldest = form.batch_key, request.queued_ns
            rows += form.rows
            count += 1
            if rows in self.preferred:
                best = count
        overdue = self.delay_ns > 0 and now - oldest >= self.delay_ns
        if best and not overdue:
            return best, 0
        if closed or overdue or self.delay_ns == 0 or rows >= self.largest:
            return count, 0
        return 0, oldest + self.delay_ns
