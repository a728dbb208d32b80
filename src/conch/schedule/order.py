"""Answers leave in the order in which requests were taken from the queue (`preserve_ordering`)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from conch.types.error import InferError
from conch.types.request import InferRequest, ResponseSink
from conch.types.response import InferResponse

#: So many finished requests, or bytes of answers, may wait for earlier ones; then no further batch begins.
MAX_HELD: Final = 4096
MAX_HELD_BYTES: Final = 256 << 20


class Order:
    """Requests `enter` as they are taken; each then answers through a place in line instead of its own sink.

    What is first in line answers at once, as often as it likes; what stands behind is kept until it is first. Any
    thread may answer; one of them at a time hands the answers on, and none waits for it.
    """

    def __init__(self, *, max_held: int = MAX_HELD, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._line: deque[Place] = deque()
        self._handing_on = False
        #: Answers that are kept, and their bytes.
        self._held = 0
        self._bytes = 0
        #: Called, on any thread, when there is room again after there was none.
        self.on_room: Callable[[], object] = lambda: None

    @property
    def full(self) -> bool:
        """Whether so much is kept that no more should begin. It ends by itself: something earlier still runs."""
        return self._held >= self._max_held or self._bytes >= self._max_bytes

    def enter(self, requests: Sequence[InferRequest]) -> None:
        """In the order in which they are taken: under the scheduler's lock."""
        with self._lock:
            for request in requests:
                place = Place(self, request.sink)
                request.sink = place
                self._line.append(place)

    def put(self, place: Place, answer: Answer, final: bool) -> None:
        with self._lock:
            place.answers.append(answer)
            place.done = final
            self._held += 1
            self._bytes += answer.size
            if self._handing_on:
                # Who does so finds this one too: also this very thread, when handing on leads to an answer.
                return
            self._handing_on = True
        while ready := self._ready():
            for sink, each in ready:
                each.give(sink)

    def _ready(self) -> list[tuple[ResponseSink, Answer]]:
        """What may go now; when it is nothing, the next who puts something hands on."""
        ready: list[tuple[ResponseSink, Answer]] = []
        with self._lock:
            was_full = self.full
            line = self._line
            while line and line[0].answers:
                place = line[0]
                ready += [(place.sink, answer) for answer in place.answers]
                place.answers.clear()
                if not place.done:
                    break
                line.popleft()
            self._held -= len(ready)
            self._bytes -= sum([answer.size for _, answer in ready])
            if not ready:
                self._handing_on = False
            room = was_full and not self.full
        if room:
            self.on_room()
        return ready


class Answer:
    """One call of a sink, to be made later."""

    __slots__ = ("_final", "_request", "_value", "size")

    def __init__(self, request: InferRequest, value: InferResponse | InferError, final: bool) -> None:
        self._request = request
        self._value = value
        self._final = final
        self.size = 0 if isinstance(value, InferError) else sum([len(tensor.data) for tensor in value.outputs])

    def give(self, sink: ResponseSink) -> None:
        if isinstance(self._value, InferError):
            sink.fail(self._request, self._value)
        else:
            sink.reply(self._request, self._value, self._final)


class Place:
    """A `ResponseSink` in front of a request's own."""

    __slots__ = ("_order", "answers", "done", "sink")

    def __init__(self, order: Order, sink: ResponseSink) -> None:
        self._order = order
        self.sink = sink
        self.answers: list[Answer] = []
        self.done = False

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        self._order.put(self, Answer(request, response, final), final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._order.put(self, Answer(request, error, True), True)

    def __getattr__(self, name: str) -> Any:
        """What else sinks know of their clients (protocol, trace context)."""
        return getattr(self.sink, name)
