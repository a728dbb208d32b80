"""One sequence of requests, from its START to the end of its slot."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from conch.types.request import InferRequest

#: `RequestForm.flags`.
START: Final = 1
END: Final = 2


class Sequence:
    """Its requests run strictly one after the other. Changed by the batcher alone, but for `run` and `state`.

    `lane` and `slot` say where it runs; lane -1 is the backlog. It is `ended` when it cannot go on without a new START:
    its last request waits or runs, or it was dropped.
    """

    __slots__ = ("dropped", "ended", "id", "key", "lane", "ready_ns", "resumed", "run", "running", "since_ns", "slot",
                 "state", "waiting")  # fmt: skip

    def __init__(self, id: int | str) -> None:
        self.id = id
        self.lane = -1
        self.slot = -1
        self.waiting: deque[InferRequest] = deque()
        #: The client's request that runs.
        self.running: InferRequest | None = None
        #: What the instance was given for it.
        self.run: InferRequest | None = None
        #: Whether its first request was given back by the model, to run again.
        self.resumed = False
        self.ended = False
        #: It was dropped while `running` runs: what waits is another sequence of its id.
        self.dropped = False
        #: Since when nothing of it waits or runs.
        self.since_ns = 0
        #: Since when its first waiting request may run.
        self.ready_ns = 0
        #: Sequences whose keys differ do not run together.
        self.key: object = None
        #: The implicit state; None stands for the initial one.
        self.state: Any = None

    def __repr__(self) -> str:
        return f"Sequence({self.id!r}, lane={self.lane}, slot={self.slot}, waiting={len(self.waiting)})"
