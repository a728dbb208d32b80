"""One question on its way: the request that is executed for it, and those that wait for the same answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conch.cache.api import Entry
from conch.types.error import Code, InferError
from conch.types.request import InferRequest, ResponseSink
from conch.types.response import InferResponse

if TYPE_CHECKING:
    from conch.cache.scheduler import CachedScheduler

#: Errors that say something about one request's wait, not about the question: those who follow still want an answer.
_OWN_FATE = (Code.CANCELLED, Code.UNAVAILABLE)


class Flight:
    """Stands in the place of the leading request's sink, and hears its answer first.

    An answer goes to all. An error of the model goes to all, too: they have asked the same thing at the same time, and
    it is not kept. When the leader alone cannot be answered (it was cancelled, its time in the queue ran out, the queue
    is full), the next one leads.
    """

    __slots__ = ("_owner", "_private", "_sink", "fallen", "followers", "key", "looked_ns", "together")

    def __init__(self, owner: CachedScheduler, key: bytes, together: object) -> None:
        self._owner = owner
        self._sink: ResponseSink
        #: The answer is for the leader alone.
        self._private = False
        self.key = key
        #: Requests with equal ones share a flight.
        self.together = together
        #: How long it took to find that there is no answer yet.
        self.looked_ns = 0
        #: In the order in which they came; guarded by the owner's lock.
        self.followers: dict[InferRequest, None] = {}
        #: Leaders that could not be answered and have no successor yet; guarded by the owner's lock.
        self.fallen = 0

    def lead(self, request: InferRequest) -> None:
        """Execute this request for all. Raises InferError, and the request is the caller's again."""
        self._private = self._owner.altered(request, self.key)
        self._sink, request.sink = request.sink, self
        try:
            self._owner.execute(request)
        except InferError:
            request.sink = self._sink
            raise

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if not final:
            # One answer is all that can be kept and shared.
            self._private = True
            self._sink.reply(request, response, False)
            return
        sink = request.sink = self._sink
        if self._private:
            sink.reply(request, response, True)
            self._owner.next(self)
            return
        entry = Entry(response)
        followers = self._owner.land(self, entry)
        sink.reply(request, response, True)
        if followers:
            self._owner.answer(followers, entry)

    def fail(self, request: InferRequest, error: InferError) -> None:
        sink = request.sink = self._sink
        sink.fail(request, error)
        if error.code in _OWN_FATE:
            self._owner.next(self)
        else:
            self._owner.crash(self, error)
