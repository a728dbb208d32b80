"""The open requests of one instance of a decoupled model, as the server sees them: who still gets responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from conch.backend.python.channel import READ, READ_ENTRY, READ_HEAD, RESPONSE_COST, key_of
from conch.backend.python.reply import Sent
from conch.observe.stats import Execution, ModelStats, Reason, Response
from conch.types.error import Code, InferError
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse

_LOG = logging.getLogger("conch.model")
_now = time.monotonic_ns
#: A message to the worker says of no more requests than this what was taken of them.
_ENTRIES = 1024


class _Responder:
    """One open request."""

    __slots__ = ("count", "execution", "failed", "last_ns", "request")

    def __init__(self, request: InferRequest, execution: Execution) -> None:
        self.request = request
        self.execution = execution
        #: Responses so far, and when the last one came (before the first: when the execution began).
        self.count = 0
        self.last_ns = execution.start_ns
        #: Some response was an error.
        self.failed = False


class Responders:
    """Gives responses to the requests they belong to, exactly one of them as the final one. Loop thread, but `len`."""

    def __init__(self, model: str, stats: ModelStats, send: Callable[[bytes], bool], *, counting: bool = True) -> None:
        """`send` gives a packet to the worker; False when it cannot be sent now. `counting`: by number of response."""
        self._counting = counting
        self._model = model
        self._stats = stats
        self._send = send
        self._open: dict[int, _Responder] = {}
        #: What the worker is to be told: packets read, and bytes taken of each request's responses.
        self._packets = 0
        self._taken: dict[int, int] = {}
        #: The same of requests whose clients do not keep up.
        self._held: dict[int, int] = {}
        self._warned = False

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, batch: Sequence[InferRequest], sequence: int, start_ns: int) -> Execution:
        execution = Execution(start_ns)
        for index, request in enumerate(batch):
            self._open[key_of(sequence, index)] = _Responder(request, execution)
        return execution

    def cancelled(self, sequence: int, index: int) -> bool:
        """Whether nobody waits for more of this request."""
        responder = self._open.get(key_of(sequence, index))
        return responder is None or responder.request.cancelled

    def of(self, sequence: int) -> list[InferRequest]:
        """The open requests of this batch."""
        return [responder.request for key, responder in self._open.items() if key >> 32 == sequence]

    def find(self, sequence: int, index: int) -> InferRequest | None:
        """This request, if it is open."""
        responder = self._open.get(key_of(sequence, index))
        return None if responder is None else responder.request

    def release(self, sequence: int, index: int) -> InferRequest | None:
        """This request is answered elsewhere, if it was open."""
        responder = self._open.pop(key_of(sequence, index), None)
        return None if responder is None else responder.request

    def deliver(self, packet: Sequence[Sent]) -> None:
        """The responses of one packet."""
        self._packets += 1
        counted: list[Response] = []
        for sent in packet:
            responder = self._open.get(sent.key)
            if responder is None:
                self._late(sent)
            else:
                self._answer(responder, sent, counted)
            # A final response is not waited for.
            if not sent.final:
                self._take(sent.key, sent.size + RESPONSE_COST, responder)
        if counted and self._counting:
            self._stats.responded(counted)

    def spoil(self, error: InferError) -> None:
        """A packet cannot be read: whose responses were in it nobody knows."""
        self._packets += 1
        self.fail(error)

    def acknowledge(self) -> bool:
        """Tell the worker what was taken since the last time; False when it has no ear now: try again soon."""
        while self._packets or self._taken:
            told = dict(list(self._taken.items())[:_ENTRIES])
            entries = [READ_ENTRY.pack(key, size) for key, size in told.items()]
            if not self._send(b"".join([READ_HEAD.pack(READ, self._packets), *entries])):
                return False
            self._packets = 0
            if len(told) == len(self._taken):
                self._taken = {}
            else:
                for key in told:
                    del self._taken[key]
        return True

    def fail(self, error: InferError, sequence: int = -1) -> None:
        """Every open request (of batch `sequence` if that is given) ends with this error."""
        keys = [key for key in self._open if sequence < 0 or key >> 32 == sequence]
        for key in keys:
            responder = self._open.pop(key)
            responder.request.sink.fail(responder.request, error)
            self._stats.failed((responder.request,), Reason.BACKEND, _now())

    def forget(self, error: InferError) -> None:
        """The worker is gone: every open request ends with `error`, and nothing is left to say."""
        self.fail(error)
        self._packets = 0
        self._taken = {}
        self._held = {}

    def _answer(self, responder: _Responder, sent: Sent, counted: list[Response]) -> None:
        request = responder.request
        began = _now()
        outcome = sent.outcome
        if sent.final:
            del self._open[sent.key]
        if isinstance(outcome, InferError):
            if sent.final:
                request.sink.fail(request, outcome)
            else:
                request.sink.reply(request, FailedResponse(outcome), False)
        else:
            request.sink.reply(request, FINAL if outcome is None else outcome, sent.final)
        end = _now()
        if request.cancelled:
            kind = "cancel"
        elif isinstance(outcome, InferError):
            kind = "fail"
        else:
            kind = "success" if outcome is not None else "empty_response"
        counted.append((responder.count, kind, began - responder.last_ns, end - began))
        responder.count += 1
        responder.last_ns = end
        if isinstance(outcome, InferError):
            responder.failed = True
        if sent.final and responder.failed:
            cancelled = isinstance(outcome, InferError) and outcome.code is Code.CANCELLED
            self._stats.failed((request,), Reason.CANCELED if cancelled else Reason.BACKEND, end)
        elif sent.final:
            self._stats.answered(request, responder.execution, end)

    def _late(self, sent: Sent) -> None:
        """The request has ended before, with an error of ours. That the model still closes it is as it should be."""
        if sent.outcome is not None and not self._warned:
            self._warned = True
            _LOG.warning(
                "model '%s' sent a response to a request that had ended with an error: it and further ones are dropped",
                self._model,
            )

    def _take(self, key: int, size: int, responder: _Responder | None) -> None:
        flow = None if responder is None else responder.request.flow
        if flow is not None and flow.full and responder is not None and not responder.request.cancelled:
            if key not in self._held:
                flow.wait(lambda: self._let_go(key))
            self._held[key] = self._held.get(key, 0) + size
        else:
            self._taken[key] = self._taken.get(key, 0) + size

    def _let_go(self, key: int) -> None:
        """The client reads again."""
        size = self._held.pop(key, 0)
        if size:
            self._taken[key] = self._taken.get(key, 0) + size
            self.acknowledge()
