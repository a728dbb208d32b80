"""Plays the answers of decoupled sample models on the event loop: each request has a script of pauses and responses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from conch.backend.api import Host
from conch.backend.batch import drop_cancelled
from conch.observe.stats import Execution, ModelStats, Reason
from conch.types.error import Code, InferError, internal
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse

_now = time.monotonic_ns
#: So many responses without a pause go out before the loop looks at its other work.
_BURST = 64

#: How long to wait, in seconds, and what is sent then: None for nothing.
Step = tuple[float, InferResponse | InferError | None]


@dataclass(frozen=True, slots=True)
class Script:
    """What happens to one request. `seconds`: how long the execution takes; the steps go on after it."""

    steps: Iterator[Step]
    #: How many steps there are.
    count: int
    seconds: float = 0.0


class Write(Protocol):
    """Makes the script for a request. Raises InferError for one that the model cannot answer."""

    def __call__(self, request: InferRequest, /) -> Script: ...


class ScriptInstance:
    """A `StreamingInstance`. Everything but `open` is on the loop's thread."""

    def __init__(self, write: Write, host: Host, stats: ModelStats) -> None:
        self._write = write
        self._loop = host.loop
        self._stats = stats
        #: Requests that are being answered, and those of them that are in the batch which executes.
        self._playing: set[_Play] = set()
        self._executing: set[_Play] = set()

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        execution = Execution(_now())
        requests = drop_cancelled(batch, self._stats)
        plays = []
        for request in requests:
            try:
                script = self._write(request)
                if not request.form.decoupled and script.count != 1:
                    raise internal(
                        f"model '{request.form.head.model_name}' made {script.count} responses and is not decoupled, "
                        "expected 1",
                        "write model_transaction_policy { decoupled: True } into its config",
                    )
            except InferError as error:
                request.sink.fail(request, error)
                self._stats.failed((request,), Reason.BACKEND, _now())
                continue
            plays.append(_Play(self, request, execution, script))
        self._playing.update(plays)
        self._executing.update(plays)
        for play in plays:
            play.advance()
        seconds = max([play.script.seconds for play in plays], default=0.0)
        if seconds:
            self._loop.call_later(seconds, self._rest, requests, execution, idle)
        else:
            self._rest(requests, execution, idle)

    def open(self) -> int:
        return len(self._playing) - len(self._executing)

    def close(self) -> None:
        """The loop holds what is left; no request is."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds:
            self._loop.call_later(seconds, call)
        else:
            self._loop.call_soon(call)

    def sent(self, play: _Play, kind: str, end_ns: int, output_ns: int) -> None:
        """One response has gone."""
        self._stats.responded([(play.sent, kind, end_ns - play.last_ns - output_ns, output_ns)])

    def ended(self, play: _Play, error: InferError | None) -> None:
        self._playing.discard(play)
        self._executing.discard(play)
        if error is None:
            self._stats.answered(play.request, play.execution, _now())
        else:
            reason = Reason.CANCELED if error.code is Code.CANCELLED else Reason.BACKEND
            self._stats.failed((play.request,), reason, _now())

    def _rest(self, requests: Sequence[InferRequest], execution: Execution, idle: Callable[[], None]) -> None:
        self._executing.clear()
        if requests:
            now = _now()
            # As Triton's: all of the time is the model's.
            self._stats.ran(requests, execution, execution.start_ns, now, now)
        idle()


class _Play:
    """One request and where its script has got to."""

    __slots__ = ("_failed", "_instance", "_next", "execution", "last_ns", "request", "script", "sent")

    def __init__(self, instance: ScriptInstance, request: InferRequest, execution: Execution, script: Script) -> None:
        self._instance = instance
        self.request = request
        self.execution = execution
        self.script = script
        self._next: InferResponse | InferError | None = None
        self._failed: InferError | None = None
        #: Steps done, and when the last one was.
        self.sent = 0
        self.last_ns = execution.start_ns

    def advance(self) -> None:
        """Go on until there is something to wait for."""
        for _ in range(_BURST):
            flow = self.request.flow
            if self.request.cancelled:
                self._end(InferError(Code.CANCELLED, ""))
                return
            if flow is not None and flow.full:
                flow.wait(self.advance)
                return
            step = next(self.script.steps, None)
            if step is None:
                self._end(None)
                return
            seconds, self._next = step
            if seconds:
                self._instance.later(seconds, self._resume)
                return
            if self._send():
                return
        self._instance.later(0.0, self.advance)

    def _resume(self) -> None:
        if not self._send():
            self.advance()

    def _send(self) -> bool:
        """Whether that was the final response."""
        request, content = self.request, self._next
        begun = _now()
        single = not request.form.decoupled
        kind = "success"
        if isinstance(content, InferError):
            kind, self._failed = "fail", content
            if single:
                self._end(content)
                return True
            request.sink.reply(request, FailedResponse(content), False)
        elif content is None:
            kind = "empty_response"
        else:
            request.sink.reply(request, content, single)
        end = _now()
        if not single:
            self._instance.sent(self, kind, end, end - begun)
        self.sent += 1
        self.last_ns = end
        if single:
            self._instance.ended(self, None)
        return single

    def _end(self, error: InferError | None) -> None:
        if error is not None:
            self.request.sink.fail(self.request, error)
        else:
            self.request.sink.reply(self.request, FINAL, True)
        self._instance.ended(self, error or self._failed)
