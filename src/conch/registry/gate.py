"""The gate of a reload: a new version answers the last requests of the old one, as that does, before it takes over."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from conch.config.swap_gate import SwapGate, swap_gate
from conch.observe.stats import WARMUP
from conch.registry.served import ServedVersion
from conch.schedule.api import Version
from conch.schedule.witness import Seen, witness_of
from conch.types.difference import compare
from conch.types.error import InferError, invalid, unavailable
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import FailedResponse, InferResponse
from conch.types.tensor import Tensor

log = logging.getLogger("conch.registry")

#: So many differences are told in full.
_SHOWN: Final = 3
#: Medians of fewer latencies mean nothing.
_FEWEST: Final = 5
#: So many requests are asked of the new version before any latency is taken: it has just been loaded.
_WARMING: Final = 3


class Prepare(Protocol):
    """Makes a form for a version that is known (`service.data.Data.prepare_on`)."""

    def __call__(self, version: Version, head: RequestHead, /) -> RequestForm: ...


class Gatekeeper:
    """Any thread but the loop's: it waits for answers."""

    def __init__(self, prepare: Prepare, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._prepare = prepare
        self._clock = clock

    def __call__(self, new: ServedVersion, old: ServedVersion, /) -> None:
        """Raises InferError where `new` must not take over from `old`; models without a gate pass."""
        gate = swap_gate(new.config)
        if gate is None:
            return
        before, after = witness_of(old.scheduler), witness_of(new.scheduler)
        seen = [] if before is None else before.recent()[: gate.requests]
        if not seen:
            log.warning("model '%s': no recent requests, its gate lets version %d through", new.name, new.version)
            return
        old.stats.warm()
        new.stats.warm()
        trial = _Trial(self._prepare, self._clock, gate, old, new)
        trial.run(seen)
        trial.judge()
        if before is not None and after is not None:
            after.inherit(before)


class _Trial:
    """Both versions answer the same requests, one after the other."""

    def __init__(
        self, prepare: Prepare, clock: Callable[[], int], gate: SwapGate, old: ServedVersion, new: ServedVersion
    ) -> None:
        self._prepare = prepare
        self._clock = clock
        self._gate = gate
        self._old = old
        self._new = new
        self._end = clock() + round(gate.seconds * 1e9)
        self._compared = 0
        #: How many of the compared requests the new version fails.
        self._failures = 0
        self._differences: list[str] = []
        self._latencies: tuple[list[int], list[int]] = ([], [])

    def run(self, seen: list[Seen]) -> None:
        for each in seen[:_WARMING] if self._gate.latency_factor is not None else ():
            self._ask(self._new, each)
        for taken in self._latencies:
            taken.clear()
        for number, each in enumerate(seen):
            if self._clock() >= self._end:
                log.warning(
                    "model '%s': its gate has compared %d of %d requests in %g s, and leaves the others out",
                    self._new.name, number, len(seen), self._gate.seconds,
                )  # fmt: skip
                return
            # Who comes second finds the caches warm.
            pair = (self._old, self._new) if number % 2 == 0 else (self._new, self._old)
            answers = {version: self._ask(version, each) for version in pair}
            self._compare(number, len(seen), each, answers[self._old], answers[self._new])

    def judge(self) -> None:
        """Raises InferError."""
        allowed, found = self._gate.max_mismatches, self._differences
        name = f"'{self._new.name}' version {self._new.version}"
        if len(found) > allowed:
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise invalid(
                f"{name} answers {len(found)} of {self._compared} recent requests otherwise than version "
                f"{self._old.version} that serves, {allowed} may be: {'; '.join(found[:_SHOWN])}{more}",
                "load it with the parameter skip_gate if that is what you want",
            )
        if self._compared and self._failures == self._compared:
            raise invalid(
                f"{name} fails all {self._compared} recent requests that version {self._old.version} that serves "
                f"answers: {'; '.join(found[:_SHOWN])}",
                "load it with the parameter skip_gate if that is what you want",
            )
        before, after = self._latencies
        factor = self._gate.latency_factor
        if factor is not None and min(len(before), len(after)) >= _FEWEST:
            usual, now = statistics.median(before), statistics.median(after)
            if now > factor * usual:
                raise invalid(
                    f"{name} takes {now / 1e6:.3f} ms for a request, version {self._old.version} that serves takes "
                    f"{usual / 1e6:.3f} ms (medians of {len(before)} recent requests), allowed are {factor:g} times",
                    "load it with the parameter skip_gate, or raise latency_factor",
                )
        log.info("%s has passed its gate with %d recent requests", name, self._compared)

    def _compare(
        self, number: int, count: int, seen: Seen, before: InferResponse | InferError, after: InferResponse | InferError
    ) -> None:
        if isinstance(before, InferError):
            # What the old version cannot answer says nothing about the new one.
            return
        self._compared += 1
        which = f"request {number + 1} of {count}" + (f" (id '{seen.id}')" if seen.id else "")
        if isinstance(after, InferError):
            self._failures += 1
            self._differences.append(f"{which}: it fails with {after}")
            return
        difference = compare(self._chosen(before), self._chosen(after), self._gate.tolerance)
        if difference.reason:
            self._differences.append(f"{which}: {difference.reason}")

    def _chosen(self, response: InferResponse) -> list[Tensor]:
        chosen = self._gate.outputs
        return [each for each in response.outputs if not chosen or each.name in chosen]

    def _ask(self, version: ServedVersion, seen: Seen) -> InferResponse | InferError:
        witness = witness_of(version.scheduler)
        scheduler = version.scheduler if witness is None else witness.inner
        answer = _Answer(self._clock)
        begun = self._clock()
        try:
            form = dataclasses.replace(
                self._prepare(version, seen.head), model=WARMUP, priority=0, timeout_us=0, memo={}
            )
            by_place = dict(zip(seen.order, seen.data, strict=True))
            data = tuple([by_place[place] for place in form.order])
            request = InferRequest(form, seen.id, data, answer, begun)
            begun = self._clock()
            scheduler.submit(request)
        except InferError as error:
            return error
        if not answer.wait(max(1.0, (self._end - begun) / 1e9)):
            request.cancelled = True
            return unavailable(f"no answer within {self._gate.seconds:g} s")
        if isinstance(answer.outcome, InferResponse):
            self._latencies[version is self._new].append(answer.at - begun)
        return answer.outcome


class _Answer:
    """The sink of one request. `outcome` and `at` are set when `wait` says so."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._done = threading.Event()
        self.outcome: InferResponse | InferError = unavailable("no answer")
        self.at = 0

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        self._set(response.error if isinstance(response, FailedResponse) else response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._set(error, True)

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def _set(self, outcome: InferResponse | InferError, final: bool) -> None:
        self.at = self._clock()
        self.outcome = outcome
        if final:
            self._done.set()
