"""Sequences and their slots: pure decisions, no thread, no clock (Triton's sequence batching rules).

Rules: a sequence begins with START and gets the free slot of the lowest number, or waits in a backlog, first come,
first served; its requests run strictly in order on the instance of its slot; after END, or when it has had nothing to
do for too long, its slot is given to the backlog; START on a live sequence, or on one whose last request is under way,
begins it anew after what it has waiting; a request that is cancelled or late while it waits ends its sequence and takes
the others that wait along.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

from conch.schedule.sequence_life import END, START, Sequence
from conch.schedule.sequence_rows import Choice
from conch.types.error import Code, InferError, invalid, unavailable
from conch.types.request import InferRequest

_log = logging.getLogger("conch.schedule")


@dataclass(slots=True)
class SequenceTurn:
    """`rows` are the sequences to run now (None: a row without a request); else as `schedule.api.Turn`."""

    rows: list[Sequence | None] = field(default_factory=list)
    refuse: list[tuple[InferRequest, InferError]] = field(default_factory=list)
    ask_at: int = 0


def _form_key(sequence: Sequence) -> object:
    return sequence.waiting[0].form.batch_key


class SequenceBatcher:
    """Every request offered comes out once: by `take` (and then `done`), or in `refuse`.

    `lanes` has one strategy per instance. `iterative`: each request is a sequence of its own, which `again` continues
    and which needs no id.
    `key` tells sequences apart that cannot run together.
    """

    def __init__(
        self,
        name: str,
        lanes: Row[Choice],
        idle_ns: int,
        *,
        iterative: bool = False,
        key: Callable[[Sequence], object] = _form_key,
    ) -> None:
        self._name = name
        self._lanes = lanes
        self._idle_ns = idle_ns
        self._iterative = iterative
        self._key = key
        #: Sequences that may go on, by id.
        self._by_id: dict[int | str, Sequence] = {}
        #: All that have a slot or wait for one.
        self._live: dict[Sequence, None] = {}
        self._backlog: dict[Sequence, None] = {}
        #: Those with nothing to do, the longest idle first.
        self._idle: dict[Sequence, None] = {}
        #: Slots given back, as numbers; slots from `_unused` on were never given away.
        self._free: list[int] = []
        self._unused = 0
        self._slots = max([lane.slots for lane in lanes]) * len(lanes)
        self._waiting = 0
        #: No waiting request must leave before this time; 0: none has a deadline.
        self._deadline = 0
        #: Ids for requests that bring none: the upper half of the range, where clients rarely count.
        self._new_ids = itertools.count((1 << 63) + 1)

    def __len__(self) -> int:
        """How many requests wait."""
        return self._waiting

    @property
    def live(self) -> int:
        """How many sequences have begun and have not ended."""
        return len(self._live)

    def knows(self, request: InferRequest) -> bool:
        """Whether `request` continues a sequence."""
        sequence = self._by_id.get(request.form.correlation_id)
        return sequence is not None and not sequence.ended

    def work(self, lane: int) -> int:
        """How many sequences of `lane` are ready."""
        return len(self._lanes[lane])

    @property
    def next_deadline(self) -> int:
        """When `expire` has something to do; 0: never."""
        if not self._idle:
            return self._deadline
        drop = next(iter(self._idle)).since_ns + self._idle_ns
        return min(drop, self._deadline) if self._deadline else drop

    def offer(self, request: InferRequest, now: int) -> None:
        """Queue a request. Raises InferError; the request is then not taken."""
        form = request.form
        name, flags = form.correlation_id, form.flags
        if self._iterative:
            flags |= END if name else START | END
            name = name or next(self._new_ids)
        sequence = self._by_id.get(name)
        if not flags & START and (sequence is None or sequence.ended):
            raise invalid(
                f"inference request for sequence {name} to model '{self._name}' must specify the START flag on the "
                "first request of the sequence",
                f"a sequence is over after its END, and when it was idle for {self._idle_ns // 1_000_000} ms "
                "(max_sequence_idle_microseconds)",
            )
        if sequence is None:
            sequence = self._by_id[name] = Sequence(name)
            self._enter(sequence, request, now)
        else:
            if flags & START and not sequence.ended:
                _log.warning(
                    "sequence %s for model '%s' has a conflict. The previous sequence did not end before this sequence "
                    "start. Previous sequence will be terminated early.",
                    name, self._name,
                )  # fmt: skip
            self._join(sequence, request, now)
        sequence.ended = bool(flags & END)

    def take(self, lane: int, now: int) -> SequenceTurn:
        """What the (free) instance of `lane` runs next; each sequence's request is its `running`."""
        turn = self.expire(now) if self._deadline and now >= self._deadline else SequenceTurn()
        turn.rows, at = self._lanes[lane].take(now)
        for sequence in turn.rows:
            if sequence is not None:
                sequence.running = sequence.waiting.popleft()
                self._waiting -= 1
        deadline = self.next_deadline
        turn.ask_at = min(at, deadline) if at and deadline else at or deadline
        return turn

    def done(self, sequence: Sequence, now: int, *, lost: bool = False) -> SequenceTurn:
        """What runs of `sequence` is settled. `lost`: it was never executed, so what follows it would be wrong."""
        turn = SequenceTurn()
        last = self._runs_last(sequence)
        sequence.running = sequence.run = None
        sequence.resumed = sequence.dropped = False
        if lost and not last:
            self._drop(sequence, turn, InferError(Code.CANCELLED, ""), now)
        elif sequence.waiting:
            if last and self._backlog:
                # What follows uses the id again: it takes its turn behind those that wait already.
                self._bequeath(sequence, now)
                self._backlog[sequence] = None
                sequence.lane = -1
            else:
                self._ready(sequence, now)
        elif sequence.ended:
            self._release(sequence, now)
        else:
            sequence.since_ns = now
            self._idle[sequence] = None
        return turn

    def again(self, sequence: Sequence, now: int) -> SequenceTurn:
        """What runs of `sequence` goes back to the front, to run in a later batch."""
        request = sequence.running
        assert request is not None
        if request.cancelled:
            turn = self.done(sequence, now)
            turn.refuse.append((request, InferError(Code.CANCELLED, "")))
            return turn
        sequence.running = sequence.run = None
        sequence.resumed = True
        sequence.waiting.appendleft(request)
        self._waiting += 1
        self._leave_by(request.expires_ns)
        self._ready(sequence, now)
        return SequenceTurn()

    def expire(self, now: int) -> SequenceTurn:
        """What is overdue: sequences that are idle for too long, and requests past their deadline."""
        turn = SequenceTurn()
        while self._idle:
            sequence = next(iter(self._idle))
            if now < sequence.since_ns + self._idle_ns:
                break
            _log.debug("model '%s': sequence %s was idle for too long", self._name, sequence.id)
            self._drop(sequence, turn, InferError(Code.CANCELLED, ""), now)
        if self._deadline and now >= self._deadline:
            self._refuse_late(turn, now)
        turn.ask_at = self.next_deadline
        return turn

    def sweep(self, now: int) -> SequenceTurn:
        """As `expire`, and cancelled requests leave, with all that waits behind them. Looks at every request."""
        turn = self.expire(now)
        for sequence in list(self._live):
            gone = any(request.cancelled for request in sequence.waiting)
            run = sequence.run
            if run is not None and not run.cancelled and sequence.running is not None and sequence.running.cancelled:
                # Now, and not again: what comes after this is meant to run.
                run.cancelled = True
                gone = gone or (bool(sequence.waiting) and not self._runs_last(sequence))
            if gone and sequence in self._live:
                self._drop(sequence, turn, InferError(Code.CANCELLED, ""), now)
        turn.ask_at = self.next_deadline
        return turn

    # ---- waiting

    def _enter(self, sequence: Sequence, request: InferRequest, now: int) -> None:
        self._live[sequence] = None
        place = self._place()
        if place is None:
            self._backlog[sequence] = None
        else:
            sequence.lane, sequence.slot = place
        self._join(sequence, request, now)

    def _join(self, sequence: Sequence, request: InferRequest, now: int) -> None:
        if sequence.lane < 0 and request.form.timeout_us:
            request.deadline_ns = now + request.form.timeout_us * 1000
        sequence.waiting.append(request)
        self._waiting += 1
        self._idle.pop(sequence, None)
        self._leave_by(request.deadline_ns)
        self._leave_by(request.expires_ns)
        if len(sequence.waiting) == 1 and sequence.running is None and sequence.lane >= 0:
            self._ready(sequence, now)

    def _leave_by(self, at: int) -> None:
        """Something that waits must leave before this time (0: need not)."""
        if at and (not self._deadline or at < self._deadline):
            self._deadline = at

    def _runs_last(self, sequence: Sequence) -> bool:
        """Whether what runs is the last of its sequence: what waits behind it is another one of the same id."""
        request = sequence.running
        assert request is not None
        return self._iterative or sequence.dropped or bool(request.form.flags & END)

    def _ready(self, sequence: Sequence, now: int) -> None:
        sequence.key = self._key(sequence)
        self._lanes[sequence.lane].ready(sequence, now)

    # ---- slots

    def _place(self) -> tuple[int, int] | None:
        """A free slot: the lowest number, of the first instance that has it."""
        count = len(self._lanes)
        # What was given back was given away before, so it is lower than what never was.
        if self._free:
            slot, lane = divmod(heapq.heappop(self._free), count)
            return lane, slot
        while self._unused < self._slots:
            slot, lane = divmod(self._unused, count)
            self._unused += 1
            if slot < self._lanes[lane].slots:
                return lane, slot
        return None

    def _release(self, sequence: Sequence, now: int) -> None:
        """`sequence` is over; its slot is free for another."""
        self._forget(sequence)
        if self._backlog:
            self._bequeath(sequence, now)
        else:
            heapq.heappush(self._free, sequence.slot * len(self._lanes) + sequence.lane)

    def _forget(self, sequence: Sequence) -> None:
        del self._live[sequence]
        del self._by_id[sequence.id]

    def _bequeath(self, sequence: Sequence, now: int) -> None:
        """The slot of `sequence` goes to the first of the backlog."""
        heir = next(iter(self._backlog))
        del self._backlog[heir]
        heir.lane, heir.slot = sequence.lane, sequence.slot
        # Time-outs are those of the backlog.
        for request in heir.waiting:
            request.deadline_ns = 0
        self._ready(heir, now)

    def _drop(self, sequence: Sequence, turn: SequenceTurn, error: InferError, now: int) -> None:
        """`sequence` ends now; what waits of it is refused. While a request of it runs it keeps its slot and its id."""
        sequence.ended = True
        turn.refuse.extend([(request, error) for request in sequence.waiting])
        self._waiting -= len(sequence.waiting)
        sequence.waiting.clear()
        self._idle.pop(sequence, None)
        if sequence in self._backlog:
            del self._backlog[sequence]
            self._forget(sequence)
        elif sequence.running is None:
            self._lanes[sequence.lane].drop(sequence)
            self._release(sequence, now)
        else:
            sequence.dropped = True

    def _refuse_late(self, turn: SequenceTurn, now: int) -> None:
        self._deadline = 0
        for sequence in list(self._live):
            late = [request for request in sequence.waiting if request.expires_ns and request.expires_ns <= now]
            if any(request.deadline_ns and request.deadline_ns <= now for request in sequence.waiting):
                expired = unavailable("timeout of the corresponding sequence has been expired")
                self._drop(sequence, turn, expired, now)
            elif late:
                for request in late:
                    sequence.waiting.remove(request)
                    self._waiting -= 1
                    turn.refuse.append((request, unavailable("Request timeout expired")))
                self._drop(sequence, turn, InferError(Code.CANCELLED, ""), now)
        ends = [at for sequence in self._live for r in sequence.waiting for at in (r.deadline_ns, r.expires_ns) if at]
        self._deadline = min(ends, default=0)
