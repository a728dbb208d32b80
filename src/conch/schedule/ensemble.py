"""The scheduler of an ensemble: it has no instances; its requests are runs through the models of its steps."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from conch.observe.stats import Compute, ModelStats, Reason
from conch.schedule.api import Sequential
from conch.schedule.ensemble_chain import Chain, Pipeline, pipeline
from conch.schedule.ensemble_forms import Cast, Route
from conch.schedule.ensemble_pace import MOST, Pace, Post
from conch.schedule.ensemble_run import Passage, Run, Task
from conch.types.error import Code, InferError, unavailable
from conch.types.flow import Flow
from conch.types.request import InferRequest, RequestForm, id_prefix


class Way(Route):
    """A route that may be a pipeline."""

    def __init__(self, cast: Cast, form: RequestForm) -> None:
        super().__init__(cast, form)
        given = [(name, tensor) for name, _, _, tensor in self.given]
        self.pipeline: Pipeline | None = None if self.missing else pipeline(cast.graph, self.course, given)


class EnsembleScheduler:
    """`limit` is the config's `max_inflight_requests`: so many requests each step may have under way; 0 for any."""

    def __init__(
        self,
        cast: Cast,
        stats: ModelStats,
        post: Post,
        limit: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._cast = cast
        self._stats = stats
        self._post = post
        self._clock = clock
        self._most = limit + 1 if limit else MOST
        self._gates = [Gate(limit) for _ in cast.graph.steps] if limit else None
        #: Adding and removing are single steps of the interpreter: no lock.
        self._runs: dict[InferRequest, Passage] = {}
        self._stopped = False
        for member in cast.members:
            member.stats.metered = True
        self._sequential = [
            each.scheduler
            for each in cast.members
            if isinstance(each.scheduler, Sequential) and each.scheduler.sequential
        ]

    def submit(self, request: InferRequest, /) -> None:
        if self._stopped and not self.continues(request):
            raise unavailable(
                id_prefix(request.id)
                + "Server is stopping, scheduler for model has stopped accepting new inference requests"
            )
        now = self._clock()
        request.queued_ns = now
        if self._stats.latencies is not None:
            self._stats.latencies.watch(request)
        form = request.form
        route = form.memo.get(self)
        if route is None:
            route = form.memo[self] = Way(self._cast, form)
        if route.pipeline is not None and self._gates is None:
            chain = self._runs[request] = Chain(self, self._cast, route, route.pipeline, request, now)
            chain.begin()
        else:
            run = self._runs[request] = Run(self, self._cast, route, request, now)
            run.begin()

    def withdraw(self, request: InferRequest, /) -> None:
        request.cancelled = True
        run = self._runs.get(request)
        if run is not None:
            run.withdraw()

    @property
    def sequential(self) -> bool:
        """See `Sequential`: an ensemble's sequences are those of its members."""
        return bool(self._sequential)

    def continues(self, request: InferRequest, /) -> bool:
        return any(each.continues(request) for each in self._sequential)

    def sequences(self) -> int:
        return sum([each.sequences() for each in self._sequential])

    def pending(self) -> int:
        """Steps that wait for their turn count with their models; only those held back here count here."""
        return sum([gate.waiting() for gate in self._gates]) if self._gates else 0

    def inflight(self) -> int:
        return len(self._runs)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """Nothing is driven here."""
        self.stop()

    # For the runs.

    def enter(self, task: Task, /) -> bool:
        return self._gates is None or self._gates[task.step.number].enter(task)

    def hurry(self, tasks: Iterable[Task], /) -> None:
        if self._gates is not None:
            for task in tasks:
                self._gates[task.step.number].hurry(task)

    def leave(self, task: Task, /) -> None:
        if self._gates is not None:
            self._gates[task.step.number].leave()

    def pace(self, client: Flow | None, /) -> Pace:
        return Pace(client, self._most, self._post)

    def handed_over(self, chain: Chain, run: Run, /) -> None:
        self._runs[chain.request] = run

    def answered(self, run: Passage, error: InferError | None, /) -> None:
        request = run.request
        self._runs.pop(request, None)
        compute, now = run.compute(), self._clock()
        if error is None:
            self._stats.composed(request, run.started_ns, now, compute)
        else:
            reason = Reason.CANCELED if error.code is Code.CANCELLED else Reason.OTHER
            self._stats.failed((request,), reason, now)

    def computed_late(self, run: Passage, compute: Compute, before: Compute, /) -> None:
        self._stats.composed_more(run.request, compute, before)


class Gate:
    """Lets so many tasks of one step be under way at a time; the others wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._inside = 0
        self._waiting: OrderedDict[Task, None] = OrderedDict()
        self._letting = False

    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, task: Task) -> bool:
        """Whether the task may begin now; if not, it is begun later."""
        with self._lock:
            if self._inside < self._limit and not self._waiting:
                self._inside += 1
                return True
            self._waiting[task] = None
            return False

    def hurry(self, task: Task) -> None:
        """A task that waits begins, whoever is inside: it leaves at once, for it has nothing to run any more."""
        with self._lock:
            if task not in self._waiting:
                return
            del self._waiting[task]
            self._inside += 1
        task.begin()

    def leave(self) -> None:
        """One is done: who waits begins. Tasks that end while they are begun do not pile up on the stack."""
        with self._lock:
            self._inside -= 1
            if self._letting:
                return
            self._letting = True
        while True:
            with self._lock:
                if not self._waiting or self._inside >= self._limit:
                    self._letting = False
                    return
                self._inside += 1
                task, _ = self._waiting.popitem(last=False)
            task.begin()
