"""Shadows of traffic routes: copies of requests, and the comparison of their answers with those that clients get.

A copy is submitted after its request was, and whatever becomes of it is only counted. Answers are compared on a thread
of their own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import numpy as np

from conch.config.route import Shadow
from conch.observe.traffic import ShadowCounts
from conch.registry.traffic import Split, place_of
from conch.schedule.api import Version
from conch.types.difference import compare
from conch.types.error import Code, InferError
from conch.types.request import InferRequest, RequestForm
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor

_log = logging.getLogger("conch.traffic")

_PRIMARY: Final = 0
_SHADOW: Final = 1
Outcome = InferResponse | InferError


class LiveShadow:
    """One shadow of a route that is in force."""

    def __init__(self, model: str, shadow: Shadow, counts: ShadowCounts, comparer: Comparer) -> None:
        self.model = model
        self.shadow = shadow
        self.counts = counts
        self.comparer = comparer
        #: What it stands for now; None where it is not ready, and then why.
        self.version: Version | None = None
        self.reason = ""
        self.misfit = False
        share = Fraction(str(shadow.fraction))
        self._share = float(share)
        self._split = Split([share, 1 - share])
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        return self.shadow.target.label

    def begin(self, form: RequestForm) -> Pair | None:
        """The pair of a request and the copy that is to be made of it; None where none is."""
        if not self._wants(form):
            return None
        if self.version is None:
            self.counts.drop()
            return None
        return Pair(self) if self.counts.begin(self.shadow.max_in_flight) else None

    def _wants(self, form: RequestForm) -> bool:
        if form.correlation_id:
            # All requests of a sequence, or none.
            return place_of(str(form.correlation_id)) < self._share * 2.0**64
        with self._lock:
            return self._split.next() == 0


class Pair:
    """A request and its copy. Implements `types.request.ResponseSink` for the copy."""

    __slots__ = ("id", "live", "outcomes")

    def __init__(self, live: LiveShadow) -> None:
        self.live = live
        self.id = ""
        #: The primary's and the shadow's, once they are known. The comparer's own.
        self.outcomes: list[Outcome | None] = [None, None]

    def send(self, form: RequestForm, id: str, data: tuple[Buffer, ...]) -> None:
        """Submit the copy; the request itself has been."""
        self.id = id
        request = InferRequest(form, id, tuple([own(each) for each in data]), self, time.monotonic_ns())
        try:
            form.submit(request)
        except InferError as error:
            if error.code is Code.UNAVAILABLE:
                self.live.counts.end("dropped")
            else:
                self.spoil(error)

    def spoil(self, error: InferError) -> None:
        """The copy cannot be made."""
        self.live.counts.end("error", self._told(error.message))

    def skip(self) -> None:
        """The request itself was refused."""
        self.live.counts.end("skipped")

    def primary(self, outcome: Outcome) -> None:
        """The request was answered. Any thread, as the calls of a sink."""
        self.live.comparer.put(self, _PRIMARY, outcome)

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if final:
            self.live.comparer.put(self, _SHADOW, response)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self.live.comparer.put(self, _SHADOW, error)

    def judge(self) -> None:
        """Both have ended."""
        expected, found = self.outcomes
        live = self.live
        if not isinstance(expected, InferResponse):
            live.counts.end("skipped")
        elif not isinstance(found, InferResponse):
            live.counts.end("error", self._told(str(found)))
        else:
            difference = compare(expected.outputs, found.outputs, live.shadow.tolerance)
            live.counts.compared(difference, self._told(difference.reason) if difference.reason else "")
            if difference.reason and _is_power(live.counts.outcomes["mismatched"]):
                _log.warning(
                    "shadow %s of model '%s' answered otherwise (%d times so far): %s",
                    live.label, live.model, live.counts.outcomes["mismatched"], self._told(difference.reason),
                )  # fmt: skip

    def _told(self, text: str) -> str:
        return f"request '{self.id}': {text}" if self.id else text


class Comparer:
    """The thread that compares, begun when it is first needed."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Pair, int, Outcome] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, pair: Pair, side: int, outcome: Outcome) -> None:
        if self._thread is None:
            self._begin()
        self._queue.put((pair, side, outcome))

    def close(self) -> None:
        """What was put before is still compared. Blocks; nothing is put afterwards that must be."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="conch-shadow", daemon=True)
                thread.start()
                # Only now: what has not begun is tried again by the next answer.
                self._thread = thread

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            pair, side, outcome = item
            # A queue's item must not keep answers alive while the next one is waited for.
            del item
            try:
                self._take(pair, side, outcome)
            except Exception:  # noqa: BLE001  a model's bad tensor must not end the comparing of all others
                _log.exception("answers of shadow %s of '%s' cannot be compared", pair.live.label, pair.live.model)
                pair.live.counts.end("error", "the answers cannot be compared, see the server's log")
            del pair, outcome

    def _take(self, pair: Pair, side: int, outcome: Outcome) -> None:
        if pair.outcomes[1 - side] is None:
            # The first of the two must wait: memory that is only lent goes back at once.
            pair.outcomes[side] = _kept(outcome)
        else:
            pair.outcomes[side] = outcome
            pair.judge()


def own(data: Buffer) -> Buffer:
    """`data`, or a copy where the memory is somebody else's (clients' shared memory, a worker's areas), who may write
    to it as soon as the request that it came with has been answered."""
    if not isinstance(data, memoryview):
        return data
    owner = data.obj
    if isinstance(owner, bytes | bytearray) or (isinstance(owner, np.ndarray) and owner.flags.owndata):
        return data
    return bytes(data)


def _kept(outcome: Outcome) -> Outcome:
    if isinstance(outcome, InferError):
        return outcome
    outputs: Sequence[Tensor] = outcome.outputs
    return InferResponse([Tensor(each.name, each.datatype, each.shape, own(each.data)) for each in outputs])


def _is_power(count: int) -> bool:
    """Whether it is 1, 10, 100 and so on: a line of the log for each."""
    return str(count).strip("0") == "1"
