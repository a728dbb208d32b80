"""Pipelines: ensembles whose steps follow one another, each reading what the one before has written.

Most ensembles are that. Nothing has to be decided about them at run time, so a request costs little more than those
of its steps; whatever is out of the ordinary is handed over to a `Run`, in the middle.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from conch.observe.stats import Compute
from conch.schedule.ensemble_forms import SEQUEL, Cast, Prepared, Route, Shape, shown
from conch.schedule.ensemble_graph import Course, Graph, Step
from conch.schedule.ensemble_meter import Meter
from conch.schedule.ensemble_run import Owner, Run, Task, fault
from conch.types.dtype import DataType
from conch.types.error import Code, InferError, internal
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse
from conch.types.tensor import Tensor


class Link:
    """One step of a pipeline, for the requests of one form; remembers how it was prepared the last time."""

    __slots__ = ("_last", "outputs", "sources", "step")

    def __init__(self, step: Step, sources: tuple[str, ...]) -> None:
        self.step = step
        #: The outputs of the step before (for the first step: the ensemble's inputs) in the order of `step.reads`.
        self.sources = sources
        self.outputs = step.outputs.keys()
        #: One value, as several threads may use it.
        self._last: tuple[DataType, Shape, Prepared] | None = None

    def prepared(self, route: Route, values: Sequence[Tensor], id: str) -> Prepared:
        """See `Route.prepared`."""
        first, last = values[0], self._last
        if len(values) == 1 and last is not None and last[0] is first.datatype and last[1] == first.shape:
            return last[2]
        prepared = route.prepared(self.step, values, route.sequel, id)
        self._last = (first.datatype, first.shape, prepared)
        return prepared


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What the requests of one form have in common that are pipelines."""

    links: tuple[Link, ...]
    #: Names of the last step's outputs that the answer shows, the ensemble's names for them, and their tensors.
    shown: tuple[tuple[str, str, int], ...]


class ChainOwner(Owner, Protocol):
    def handed_over(self, chain: Chain, run: Run, /) -> None:
        """`run` goes on with the request."""


def pipeline(graph: Graph, course: Course, given: Sequence[tuple[str, int]]) -> Pipeline | None:
    """None for graphs that are none. `given` are the names and tensors of the inputs that the request brings."""
    if graph.decoupled or not given:
        return None
    needed = {step for readers in course.readers for step in readers}
    available = {tensor: name for name, tensor in given}
    links: list[Link] = []
    while len(links) < len(needed):
        following = {step for tensor in available for step in course.readers[tensor]}
        if len(following) != 1:
            return None
        step = graph.steps[following.pop()]
        # What is read must come from the step before, all of it, and be read by nobody else.
        used = [tensor for tensor in available if course.uses[tensor]]
        if sorted(step.reads) != sorted(used) or any(course.uses[tensor] != 1 for tensor in used):
            return None
        links.append(Link(step, tuple([available[tensor] for tensor in step.reads])))
        available = {tensor: name for name, tensor in step.outputs.items()}
    wanted = {tensor for _, tensor in course.wanted}
    if not links or not wanted <= available.keys() or any(course.uses[tensor] != 1 for tensor in wanted):
        return None
    return Pipeline(tuple(links), tuple([(available[tensor], name, tensor) for name, tensor in course.wanted]))


class Chain:
    """One request on its way through a pipeline: sink and meter of its steps' requests, one after the other."""

    __slots__ = (
        "_at", "_cast", "_current", "_meter", "_owner", "_pipeline", "_route", "_run", "_task", "_well", "request",
        "started_ns",
    )  # fmt: skip

    def __init__(
        self, owner: ChainOwner, cast: Cast, route: Route, pipeline: Pipeline, request: InferRequest, now: int
    ) -> None:
        self.request = request
        self.started_ns = now
        self._owner = owner
        self._cast = cast
        self._route = route
        self._pipeline = pipeline
        self._at = 0
        #: The request of the step that runs.
        self._current: InferRequest | None = None
        #: Who goes on, after something out of the ordinary, and the step that ran then.
        self._run: Run | None = None
        self._task: Task | None = None
        self._meter = Meter()
        #: Whether it was answered, and not with an error.
        self._well = False

    def begin(self) -> None:
        route = self._route
        self._go(
            [
                Tensor(name, datatype, shape, data)
                for (name, datatype, shape, _), data in zip(route.given, self.request.data, strict=True)
            ]
        )

    def withdraw(self) -> None:
        """See `Run.withdraw`."""
        current = self._current
        if current is not None:
            current.form.withdraw(current)

    # The step's side.

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        run = self._run
        if run is not None:
            assert self._task is not None
            run.arrive(self._task, response, None, final)
            return
        outputs, links = response.outputs, self._pipeline.links
        if (
            not final
            or response is FINAL
            or isinstance(response, FailedResponse)
            or (response.parameters and not SEQUEL.isdisjoint(response.parameters))
            or links[self._at].outputs != {output.name for output in outputs}
        ):
            self._hand_over(response, final)
            return
        self._current = None
        if self._at + 1 == len(links):
            self._answer(outputs)
        else:
            self._at += 1
            self._go(outputs)

    def fail(self, request: InferRequest, error: InferError) -> None:
        run = self._run
        if run is not None:
            assert self._task is not None
            run.arrive(self._task, FINAL, error, True)
        else:
            self._current = None
            self._fail(error)

    def computed(self, times: Compute, /) -> None:
        """See `Run.computed`."""
        if self._run is not None:
            self._run.computed(times)
            return
        before = self._meter.add(times)
        if before is not None and self._well:
            self._owner.computed_late(self, times, before)

    def compute(self) -> Compute:
        """See `Run.compute`."""
        return self._meter.close()

    # What comes of it.

    def _go(self, values: Sequence[Tensor]) -> None:
        """The next step, with the outputs of the one before."""
        link, parent = self._pipeline.links[self._at], self.request
        try:
            if parent.cancelled:
                raise InferError(Code.CANCELLED, "")  # noqa: TRY301  told as any other failure of the step
            if len(values) > 1 or values[0].name != link.sources[0]:
                named = {value.name: value for value in values}
                values = [named[name] for name in link.sources]
            prepared = link.prepared(self._route, values, parent.id)
            data = tuple([values[pick].data for pick in prepared.picks])
            request = self._current = InferRequest(prepared.form, parent.id, data, self, time.monotonic_ns())
            request.expires_ns = parent.expires_ns
            request.meter = self
            if parent.trace is not None:
                request.trace = parent.trace.child(request)
            prepared.form.submit(request)
        except Exception as raised:  # noqa: BLE001  whatever it is, the request is answered
            self._current = None
            self._fail(raised if isinstance(raised, InferError) else internal(repr(raised)))
            return
        if parent.cancelled:
            # It may have been withdrawn while the step was on its way into the queue.
            request.cancelled = True

    def _answer(self, outputs: Sequence[Tensor]) -> None:
        cast = self._cast
        named = {output.name: output for output in outputs}
        tensors = [shown(cast, name, tensor, named[source]) for source, name, tensor in self._pipeline.shown]
        self._well = True
        self._owner.answered(self, None)
        self.request.sink.reply(self.request, InferResponse(tensors, self._route.parameters), True)

    def _fail(self, error: InferError) -> None:
        told = fault(self._cast, self._pipeline.links[self._at].step, error)
        self._owner.answered(self, told)
        self.request.sink.fail(self.request, told)

    def _hand_over(self, response: InferResponse, final: bool) -> None:
        """More or fewer answers than one, outputs left out, another sequence: not for a pipeline."""
        done, step = [link.step for link in self._pipeline.links[: self._at]], self._pipeline.links[self._at].step
        assert self._current is not None
        run = Run(self._owner, self._cast, self._route, self.request, self.started_ns)
        self._task = run.take_over(done, step, self._current, self._meter)
        self._run = run
        # The task has it now.
        self._current = None
        self._owner.handed_over(self, run)
        run.arrive(self._task, response, None, final)
