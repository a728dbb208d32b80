"""One request on its way through an ensemble: runs steps as their inputs come, and answers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from conch.observe.stats import Compute
from conch.schedule.ensemble_forms import (
    MISSING,
    SEQUEL,
    Cast,
    FollowingTensor,
    Route,
    next_sequel,
    sequel_of,
    sequel_parameters,
    shown,
)
from conch.schedule.ensemble_graph import Dataflow, Frame, Step, Turn
from conch.schedule.ensemble_meter import Meter
from conch.schedule.ensemble_pace import Pace
from conch.types.error import Code, InferError, internal, invalid
from conch.types.flow import Flow
from conch.types.request import InferRequest, id_prefix
from conch.types.response import FINAL, FailedResponse, InferResponse
from conch.types.tensor import Tensor

_log = logging.getLogger("conch.schedule")


class Passage(Protocol):
    """A request on its way through an ensemble."""

    request: InferRequest
    started_ns: int

    def compute(self) -> Compute: ...
    def withdraw(self) -> None: ...


class Owner(Protocol):
    """The scheduler that a run belongs to."""

    def enter(self, task: Task, /) -> bool:
        """Whether the step may run now; if not, `task.begin` is called when it may."""

    def hurry(self, tasks: Iterable[Task], /) -> None:
        """Those of these tasks that wait for their turn begin now: their request is over, they will not run."""

    def leave(self, task: Task, /) -> None:
        """A step that has entered is over."""

    def pace(self, client: Flow | None, /) -> Pace:
        """For a request with steps that are decoupled."""

    def answered(self, run: Passage, error: InferError | None, /) -> None:
        """The run is over and its answer about to go out."""

    def computed_late(self, run: Passage, compute: Compute, before: Compute, /) -> None:
        """A step of a run that was answered well has had these times; `before` they were the run's sum."""


class Task:
    """One step of one request: sink and meter of the step's request."""

    __slots__ = ("frame", "request", "run", "sequel", "step")

    def __init__(self, run: Run, frame: Frame, step: Step) -> None:
        self.run = run
        self.frame = frame
        self.step = step
        #: None as long as the step has not begun.
        self.request: InferRequest | None = None
        self.sequel = run.sequel

    def begin(self) -> None:
        """Its turn has come."""
        self.run.arrive(self, None, None, False)

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        self.run.arrive(self, response, None, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self.run.arrive(self, FINAL, error, True)

    def computed(self, compute: Compute, /) -> None:
        self.run.computed(compute)


#: Something that happened to a task: its turn has come (no response), a response, an error; and whether it is the end.
Event = tuple[Task, InferResponse | None, InferError | None, bool]


class Run:
    """Events may come on any thread; one thread at a time works on them, and takes over what comes meanwhile."""

    __slots__ = (
        "_busy", "_cast", "_error", "_flow", "_followed", "_held", "_inbox", "_lock", "_meter", "_owner", "_pace",
        "_route", "_running", "_sent", "_well", "request", "sequel", "started_ns",
    )  # fmt: skip

    def __init__(self, owner: Owner, cast: Cast, route: Route, request: InferRequest, now: int) -> None:
        self.request = request
        self.started_ns = now
        self.sequel = route.sequel
        self._owner = owner
        self._cast = cast
        self._route = route
        self._flow = Dataflow(route.course)
        #: Tasks that have begun and not ended.
        self._running: dict[Task, None] = {}
        #: Tasks that wait for their turn.
        self._held: dict[Task, None] = {}
        #: Made with the first decoupled step.
        self._pace: Pace | None = None
        self._error: InferError | None = None
        self._sent = False
        #: Whether the last answer was not an error.
        self._well = False
        #: Whether any response has said something of the sequence.
        self._followed = False
        self._meter = Meter()
        self._lock = threading.Lock()
        self._busy = True
        self._inbox: deque[Event] = deque()

    def begin(self) -> None:
        request, route = self.request, self._route
        values = [
            (tensor, Tensor(name, datatype, shape, data))
            for (name, datatype, shape, tensor), data in zip(route.given, request.data, strict=True)
        ]
        self._follow(self._flow.begin([*values, *route.missing] if route.missing else values))
        self._work_off()

    def take_over(self, done: Iterable[Step], step: Step, request: InferRequest, meter: Meter) -> Task:
        """Instead of `begin`: these steps are `done`, one after the other, and `step` runs, as `request`."""
        flow, given = self._flow, self._route.given
        ((frame, number),), _ = flow.begin([(tensor, MISSING) for *_, tensor in given])
        for each in done:
            for tensor in each.reads:
                frame.take(tensor)
            ((_, number),), _ = flow.feed(frame, number, [(put, MISSING) for put in each.outputs.values()], True)
        for tensor in step.reads:
            frame.take(tensor)
        task = Task(self, frame, step)
        task.request = request
        self._running[task] = None
        self._meter = meter
        self._busy = False
        return task

    def arrive(self, task: Task, response: InferResponse | None, error: InferError | None, final: bool) -> None:
        """Any thread."""
        with self._lock:
            if self._busy:
                self._inbox.append((task, response, error, final))
                return
            self._busy = True
        self._take(task, response, error, final)
        self._work_off()

    def computed(self, times: Compute) -> None:
        """A step has run; told after its answer, and so maybe after the ensemble's."""
        before = self._meter.add(times)
        if before is not None and self._well:
            self._owner.computed_late(self, times, before)

    def compute(self) -> Compute:
        """What the steps have spent; what is told later goes to `computed_late`."""
        return self._meter.close()

    def withdraw(self) -> None:
        """Nobody waits any more: what runs is told so, nothing else begins. On the loop's thread."""
        self._owner.hurry(list(self._held))
        for task in list(self._running):
            request = task.request
            if request is not None:
                request.form.withdraw(request)

    # From here on: one thread at a time.

    def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._inbox:
                    self._busy = False
                    return
                event = self._inbox.popleft()
            self._take(*event)

    def _take(self, task: Task, response: InferResponse | None, error: InferError | None, final: bool) -> None:
        values = None
        if response is None:
            del self._held[task]
            final = not self._begin(task)
        else:
            if final:
                del self._running[task]
                # It refers to the task: what it was given must not wait for the collector.
                task.request = None
                self._owner.leave(task)
            if isinstance(response, FailedResponse):
                error = response.error
            if error is not None:
                self._fail(error, task.step)
            if response is not FINAL and self._error is None:
                try:
                    values = self._values(task, response)
                except InferError as refusal:
                    self._fail(refusal, task.step)
        self._follow(self._flow.feed(task.frame, task.step.number, values, final))

    def _follow(self, turn: Turn) -> None:
        run, answers = turn
        for frame in answers:
            self._answer(frame, final=not self._flow.under_way and frame is answers[-1])
        for frame, number in run:
            task = Task(self, frame, self._cast.graph.steps[number])
            if self._error is None and not self._owner.enter(task):
                self._held[task] = None
                if self.request.cancelled:
                    # It may have been withdrawn just before.
                    self._owner.hurry((task,))
            elif self._error is not None or not self._begin(task):
                self._flow.feed(frame, number, None, True)
        if self._pace is not None:
            self._pace.look(self._flow.under_way)
        if not self._flow.under_way and not self._meter.over:
            self._end()

    def _begin(self, task: Task) -> bool:
        """Give a step that has entered to its model; False when that fails, and then it has left again."""
        step, parent = task.step, self.request
        values = [task.frame.take(tensor) for tensor in step.reads]
        if self._error is not None:
            self._owner.leave(task)
            return False
        try:
            if parent.cancelled:
                raise InferError(Code.CANCELLED, "")  # noqa: TRY301  told as any other failure of the step
            if self._followed:
                task.sequel = sequel_of(values, self.sequel, f"{id_prefix(parent.id)}step of '{step.model}'")
            prepared = self._route.prepared(step, values, task.sequel, parent.id)
            data = tuple([values[pick].data for pick in prepared.picks])
            request = task.request = InferRequest(prepared.form, parent.id, data, task, time.monotonic_ns())
            request.expires_ns = parent.expires_ns
            if step.opens:
                self._pace = self._pace or self._owner.pace(parent.flow)
                request.flow = self._pace.flow
            request.meter = task
            if parent.trace is not None:
                request.trace = parent.trace.child(request)
            self._running[task] = None
            prepared.form.submit(request)
        except Exception as raised:  # noqa: BLE001  whatever it is, the request is answered
            self._running.pop(task, None)
            task.request = None
            if not isinstance(raised, InferError):
                _log.exception("step %d of ensemble '%s'", step.number, self._cast.graph.name)
            self._fail(raised if isinstance(raised, InferError) else internal(repr(raised)), step)
            self._owner.leave(task)
            return False
        if parent.cancelled:
            # It may have been withdrawn while the step was on its way into the queue.
            request.cancelled = True
        return True

    def _values(self, task: Task, response: InferResponse) -> Iterable[tuple[int, Tensor]]:
        """What the step has written; outputs that its model left out count as given, and missing."""
        outputs = task.step.outputs
        values = [(outputs[tensor.name], tensor) for tensor in response.outputs if tensor.name in outputs]
        if len(values) != len(outputs):
            known = {number for number, _ in values}
            values += [(number, MISSING) for number in outputs.values() if number not in known]
        sequel = task.sequel
        if response.parameters and not SEQUEL.isdisjoint(response.parameters):
            sequel = next_sequel(sequel, response.parameters)
            self._followed = True
        if self._followed:
            return [(number, value if value is MISSING else FollowingTensor(value, sequel)) for number, value in values]
        return values

    def _answer(self, frame: Frame, *, final: bool) -> None:
        route, cast = self._route, self._cast
        parameters = route.parameters
        tensors = []
        for name, number in route.course.wanted:
            value = frame.take(number)
            if value is MISSING:
                continue
            if isinstance(value, FollowingTensor):
                parameters = sequel_parameters(value.sequel)
            tensors.append(shown(cast, name, number, value))
        self._sent = True
        if final:
            self._well = True
            self._owner.answered(self, None)
        self.request.sink.reply(self.request, InferResponse(tensors, parameters if tensors else None), final)

    def _fail(self, error: InferError, step: Step) -> None:
        """The first error is the request's; steps that still run are waited for."""
        if self._error is not None:
            return
        self._flow.stop()
        self._error = fault(self._cast, step, error)
        if self._held:
            self._owner.hurry(list(self._held))

    def _end(self) -> None:
        """Nothing runs, and the last answer has not gone out."""
        error = self._error
        if error is None and not self._sent and not self._cast.graph.decoupled:
            error = invalid(
                f"in ensemble '{self._cast.graph.name}', {id_prefix(self.request.id)}unexpected deadlock, at least "
                "one output is not set while no more ensemble steps can be made"
            )
        self._well = error is None
        self._owner.answered(self, error)
        if error is not None:
            self.request.sink.fail(self.request, error)
        else:
            self.request.sink.reply(self.request, FINAL, True)


def fault(cast: Cast, step: Step, error: InferError) -> InferError:
    """A step's error as the ensemble's; the hint says which step."""
    where = f"step {step.number}, model '{step.model}' version {cast.members[step.number].spec.version}"
    hint = f"{where}: {error.hint}" if error.hint else where
    return InferError(error.code, f"in ensemble '{cast.graph.name}', {error.message}", hint)
