"""The scheduler of a model with a response cache: answers what it remembers, has the rest executed, once."""

from __future__ import annotations

import functools
import logging
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from conch.cache.api import Cache, Entry, Far, Near
from conch.cache.flight import Flight
from conch.cache.key import Keys
from conch.observe.stats import ModelStats, Reason
from conch.types.error import Code, InferError, unavailable
from conch.types.request import InferRequest, id_prefix

_log = logging.getLogger("conch.cache")


class Inner(Protocol):
    """What is needed of the scheduler that executes (`schedule.api.Scheduler`)."""

    def submit(self, request: InferRequest, /) -> None: ...
    def withdraw(self, request: InferRequest, /) -> None: ...
    def pending(self) -> int: ...
    def inflight(self) -> int: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


class Line(Protocol):
    """Lets answers leave in the order in which their requests have entered (`schedule.order.Order`)."""

    def enter(self, requests: Sequence[InferRequest], /) -> None: ...


class Post(Protocol):
    """Runs a call on the event loop's thread, soon. Any thread."""

    def __call__(self, call: Callable[[], object], /) -> object: ...


class CachedScheduler:
    """Implements `schedule.api.Scheduler` around another one.

    A request that the cache can answer is answered within `submit`. Of those that ask the same at the same time, one is
    executed; the others wait for its answer and count as hits. Requests of other priorities or time-outs do not wait
    for it, but may use it later. With a `line`, answers that are remembered do not overtake others.
    """

    def __init__(
        self,
        inner: Inner,
        cache: Cache,
        keys: Keys,
        stats: ModelStats,
        post: Post,
        name: str,
        *,
        line: Line | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._inner = inner
        self._keys = keys
        self._stats = stats
        self._post = post
        self._name = name
        self._line = line
        self._clock = clock
        self._cache = cache
        self._near = cache if isinstance(cache, Near) else None
        self._far = cache if isinstance(cache, Far) else None
        #: Guards flights, their followers, and the order of looking up and inserting.
        self._lock = threading.Lock()
        self._flights: dict[object, Flight] = {}
        #: Where each request that waits for another's answer waits.
        self._waiting: dict[InferRequest, Flight] = {}
        #: Requests for which a far cache is being asked or a place in the queue sought.
        self._asking = 0
        self._stopped = self._inner_stopped = False
        self._warned = False
        stats.cached = True

    def submit(self, request: InferRequest, /) -> None:
        if self._stopped:
            self._refuse(request)
            return
        if self._line is None:
            self._answer(request)
            return
        self._line.enter((request,))
        try:
            self._answer(request)
        except InferError as error:
            # It stands in line: it must not go away without a word.
            request.sink.fail(request, error)

    def _answer(self, request: InferRequest) -> None:
        """Raises InferError, and the request is still the caller's."""
        begun = request.queued_ns = self._clock()
        found = self._find(request)
        if isinstance(found, Entry):
            found_ns = self._clock()
            request.sink.reply(request, found.response, True)
            self._stats.hit((request,), begun, self._clock(), found_ns - begun)
        elif found is not None and not (self._far is not None and self._ask(self._far, found, request, begun)):
            found.looked_ns = self._clock() - begun
            try:
                found.lead(request)
            except InferError:
                self.next(found)
                raise

    def _find(self, request: InferRequest) -> Entry | Flight | None:
        """The answer, or the flight that this request has to lead; None: it has joined a flight."""
        key = self._keys.of(request)
        with self._lock:
            # Under the lock: an answer is either in the cache or still on its way.
            entry = None if self._near is None else self._near.lookup(key)
            if entry is not None:
                return entry
            form = request.form
            together = (key, form.priority, form.timeout_us)
            flight = self._flights.get(together)
            if flight is None:
                flight = self._flights[together] = Flight(self, key, together)
                return flight
            flight.followers[request] = None
            self._waiting[request] = flight
            return None

    def withdraw(self, request: InferRequest, /) -> None:
        if request in self._waiting:
            request.cancelled = True
            self._post(functools.partial(self._leave, request))
        else:
            self._inner.withdraw(request)

    def pending(self) -> int:
        return self._inner.pending() + len(self._waiting) + self._asking

    def inflight(self) -> int:
        # Those who wait first: whoever stops waiting to be executed is in the scheduler before he leaves here.
        with self._lock:
            waiting = len(self._waiting) + self._asking
        return waiting + self._inner.inflight()

    def stop(self) -> None:
        self._stopped = True
        with self._lock:
            idle = not self._waiting and not self._asking
        if idle:
            self._stop_inner()

    @property
    def inner(self) -> Inner:
        """What executes."""
        return self._inner

    def close(self) -> None:
        self._inner.close()

    def _refuse(self, request: InferRequest) -> None:
        """It is stopped. While requests wait for others' answers, the scheduler behind must still take one of them."""
        with self._lock:
            idle = not self._waiting and not self._asking
        if not idle:
            raise unavailable(
                id_prefix(request.id)
                + "Server is stopping, scheduler for model has stopped accepting new inference requests"
            )
        self._stop_inner()
        self._inner.submit(request)

    def _stop_inner(self) -> None:
        if not self._inner_stopped:
            self._inner_stopped = True
            self._inner.stop()

    # --- for flights ---

    def execute(self, request: InferRequest) -> None:
        self._inner.submit(request)

    def altered(self, request: InferRequest, key: bytes) -> bool:
        """Whether the request is no more the one that the key was made of. From here on it cannot change.

        Inputs in shared memory are read where they lie, and a client may write there at any time: what is answered to
        other bytes must not be remembered for these.
        """
        if not any(type(each) is memoryview and isinstance(each.obj, mmap.mmap) for each in request.data):
            return False
        request.data = tuple([bytes(each) for each in request.data])
        return self._keys.of(request) != key

    def land(self, flight: Flight, entry: Entry) -> Sequence[InferRequest]:
        """The answer is there: keep it. Gives the requests that have waited for it."""
        begun = self._clock()
        with self._lock:
            fits = self._cache.insert(flight.key, entry)
            followers = self._end(flight)
        if not fits and not self._warned:
            self._warned = True
            _log.warning(
                "a response of model '%s' takes %d bytes, which is more than the response cache holds: it is not "
                "cached, and this is said only once",
                self._name,
                entry.size,
            )
        self._stats.missed(flight.looked_ns + self._clock() - begun)
        return followers

    def crash(self, flight: Flight, error: InferError) -> None:
        """The model has failed: all who waited hear the same."""
        with self._lock:
            followers = self._end(flight)
        for request in followers:
            request.sink.fail(request, error)
        if followers:
            self._stats.failed(followers, Reason.BACKEND, self._clock())
        self._settle(followers)

    def answer(self, followers: Sequence[InferRequest], entry: Entry) -> None:
        """These have waited for an answer that was on its way: their wait is time in the queue."""
        begun = self._clock()
        for request in followers:
            request.sink.reply(request, entry.response, True)
        now = self._clock()
        self._stats.hit(followers, begun, now, (now - begun) // len(followers))
        self._settle(followers)

    def next(self, flight: Flight) -> None:
        """Nothing came of the flight: the one who has waited longest leads it."""
        with self._lock:
            flight.fallen += 1
            if flight.fallen > 1:
                # Who is at it goes on with this one: leaders that are refused at once do not pile up on the stack.
                return
        while (request := self._heir(flight)) is not None:
            try:
                flight.lead(request)
            except InferError as error:
                request.sink.fail(request, error)
                continue
            finally:
                self._settle((request,))
            with self._lock:
                flight.fallen -= 1
                if not flight.fallen:
                    return

    def _heir(self, flight: Flight) -> InferRequest | None:
        """Who leads the flight now; None: nobody is left, and the flight is over."""
        with self._lock:
            request = next(iter(flight.followers), None)
            if request is None:
                self._flights.pop(flight.together, None)
            else:
                del flight.followers[request], self._waiting[request]
                self._asking += 1
            return request

    # --- the rest ---

    def _end(self, flight: Flight) -> Sequence[InferRequest]:
        """Under the lock: nobody joins the flight any more. Those who have are in flight until `_settle`."""
        self._flights.pop(flight.together, None)
        followers = tuple(flight.followers)
        if followers:
            flight.followers.clear()
            for request in followers:
                del self._waiting[request]
            self._asking += len(followers)
        return followers

    def _settle(self, requests: Sequence[InferRequest]) -> None:
        with self._lock:
            self._asking -= len(requests)

    def _ask(self, far: Far, flight: Flight, request: InferRequest, begun: int) -> bool:
        """Whether the far cache has been asked for the answer."""
        with self._lock:
            self._asking += 1
        if far.ask(flight.key, functools.partial(self._told, flight, request, begun)):
            return True
        self._settle((request,))
        return False

    def _told(self, flight: Flight, request: InferRequest, begun: int, entry: Entry | None) -> None:
        """On the loop: what the far cache says."""
        now = self._clock()
        if entry is not None:
            with self._lock:
                followers = self._end(flight)
            request.sink.reply(request, entry.response, True)
            self._stats.hit((request,), begun, self._clock(), now - begun)
            if followers:
                self.answer(followers, entry)
        elif request.cancelled:
            error = InferError(Code.CANCELLED, "")
            request.sink.fail(request, error)
            self._stats.failed((request,), Reason.CANCELED, now)
            self.next(flight)
        else:
            flight.looked_ns = now - begun
            try:
                flight.lead(request)
            except InferError as error:
                request.sink.fail(request, error)
                self.next(flight)
        self._settle((request,))

    def _leave(self, request: InferRequest) -> None:
        """On the loop: a request that nobody waits for stops waiting, unless its answer has come meanwhile."""
        with self._lock:
            flight = self._waiting.pop(request, None)
            if flight is not None:
                del flight.followers[request]
                self._asking += 1
        if flight is None:
            # It has come to lead meanwhile, or has its answer.
            self._inner.withdraw(request)
            return
        request.sink.fail(request, InferError(Code.CANCELLED, ""))
        self._stats.failed((request,), Reason.CANCELED, self._clock())
        self._settle((request,))
