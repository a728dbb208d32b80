"""How long and how many requests may wait in one queue, and in which words one is refused. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Zero means no limit; times are nanoseconds."""

    max_size: int = 0
    timeout_ns: int = 0
    #: Whether a request may ask for a shorter time than `timeout_ns` (a longer one is not granted).
    allow_override: bool = False
    #: What a timeout does: the request falls behind those that are in time, instead of being refused.
    delays: bool = False

    @property
    def bounded(self) -> bool:
        """Whether any request may be refused because of the policy."""
        return bool(self.max_size or (self.timeout_ns and not self.delays))

    def admit(self, request: InferRequest, waiting: int) -> None:
        """Raises InferError when `waiting` requests are all that may wait."""
        if self.max_size and waiting >= self.max_size:
            raise unavailable(
                id_prefix(request.id) + "Exceeds maximum queue size",
                f"{self.max_size} requests wait already: send slower, add instances, or raise max_queue_size",
            )

    def patience_ns(self, request: InferRequest) -> int:
        """How long `request` waits in time, where there is a time-out at all."""
        allowed = self.timeout_ns
        if self.allow_override:
            asked = request.form.timeout_us * 1000
            if 0 < asked < allowed:
                return asked
        return allowed


def expired() -> InferError:
    return unavailable("Request timeout expired", "it waited in the queue for as long as its time-out allows")


def cancelled() -> InferError:
    return InferError(Code.CANCELLED, "")


def sift(
    waiting: Iterable[InferRequest], now: int, refused: list[tuple[InferRequest, InferError]]
) -> tuple[deque[InferRequest], int]:
    """What stays, in its order, and the first deadline among it (0: none); what is cancelled or late goes to
    `refused`."""
    kept: deque[InferRequest] = deque()
    first = 0
    for request in waiting:
        if request.cancelled:
            refused.append((request, cancelled()))
        elif request.deadline_ns and now >= request.deadline_ns:
            refused.append((request, expired()))
        else:
            kept.append(request)
            if request.deadline_ns and (first == 0 or request.deadline_ns < first):
                first = request.deadline_ns
    return kept, first
