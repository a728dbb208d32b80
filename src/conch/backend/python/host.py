"""An instance of a Python model in the server: one batch at a time goes to its worker process, and back."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from conch.backend.batch import drop_cancelled
from conch.backend.python import channel
from conch.backend.python.calling import Call as Called
from conch.backend.python.channel import BUSY, DONE_HEAD, Area
from conch.backend.python.message import Messages
from conch.backend.python.process import Call, Launch, WorkerProcess, verbose
from conch.backend.python.reply import Again, Failure, Outcome, Replies
from conch.backend.python.rescheduling import reschedule
from conch.backend.python.responders import Responders
from conch.backend.python.restarts import Restarts
from conch.backend.python.vigil import vigil_of
from conch.backend.python.voice import Voice
from conch.observe.stats import Execution, ModelStats, Reason
from conch.types.error import InferError, internal, unavailable
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.response import InferResponse

_LOG = logging.getLogger("conch.backend")
_now = time.monotonic_ns
#: How long `finalize` may take, and an answer to `is_ready`, and a worker that has hung up to exit; seconds.
FINALIZE, READY, EXIT = 10.0, 5.0, 1.0
#: How long the loop may take to let go of a worker, in seconds.
LOOP = 10.0
#: So many messages of a worker are read before the loop looks at its other work.
_CALLS = 64


class PythonInstance:
    """Drives one worker from the event loop; everything but `close` happens on the loop's thread.

    When the worker dies, the batch it had fails and a thread starts a new one. Until that is up, the instance takes no
    batch; when restarts keep failing, it takes batches and refuses them, so that no request waits for ever.

    The requests of a decoupled model stay open beyond their batch, in `_responders` (None for other models).
    """

    def __init__(self, spec: ModelSpec, stats: ModelStats, loop: asyncio.AbstractEventLoop, launch: Launch) -> None:
        """Starts the worker and waits until it is ready. Raises InferError."""
        self._spec = spec
        self._stats = stats
        self._loop = loop
        self._launch = launch
        self._vigil = vigil_of(loop)
        self._restarts = Restarts(
            launch, lambda worker: self._post(self._adopt, worker), lambda error: self._post(self._give_up, error)
        )
        self._closed = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._batch: Sequence[InferRequest] | None = None
        self._idle: Callable[[], None] | None = None
        self._begun_ns = 0
        self._sequence = 0
        #: Answered requests of the batch, by index, where they are not all answered at once.
        self._outcomes: dict[int, Outcome] = {}
        #: Times of the DONE message that has come while answers from response senders are awaited.
        self._times: tuple[int, int] | None = None
        self._trouble: InferError | None = None
        self._responders: Responders | None = None
        self._execution: Execution | None = None
        self._voice: Voice | None = None
        #: What the model said of itself last, and when it was asked (0: it is not being asked).
        self._says_ready = True
        self._asked = 0.0
        first = self._restarts.first()
        self._has_ready = first.has_ready
        if spec.decoupled or first.overlap:
            self._responders = Responders(spec.name, stats, self._tell, counting=spec.decoupled)
        self._alive = True
        self._pid = first.worker.pid
        self._post(self._adopt, first.worker)

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        self._begun_ns = _now()
        for request in batch:
            if request.cancelled:
                batch = drop_cancelled(batch, self._stats)
                break
        if not batch:
            idle()
            return
        self._batch = batch
        self._idle = idle
        worker = self._worker
        if worker is not None:
            self._send(worker, batch)
        elif self._trouble is not None:
            self._fail(self._trouble)
            self._rest()

    def open(self) -> int:
        """Requests of earlier batches that the model has not finished answering. Any thread."""
        if self._responders is None:
            return 0
        batch = self._batch
        # Those of a batch that executes may be answered already.
        return max(0, len(self._responders) - len(batch)) if batch is not None else len(self._responders)

    def ready(self) -> bool:
        """Whether a worker is up and, where the model has `is_ready`, what it answered last. Any thread."""
        if not self._alive:
            return False
        if self._has_ready:
            self._post(self._probe)
        return self._says_ready

    @property
    def process(self) -> int:
        """The worker that runs now; 0 while there is none. Any thread."""
        return self._pid

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._restarts.closed

    def close(self) -> None:
        with self._closed:
            self._restarts.close()
            handed: Future[WorkerProcess | None] = Future()
            self._post(self._hand_over, handed)
            # A loop that has been stopped will not answer, and then nothing else uses the worker either.
            wait([handed], LOOP if self._loop.is_running() else 0.0)
            worker = self._detach() if handed.cancel() else handed.result()
            if worker is not None:
                worker.stop(FINALIZE)
            self._post(self._abandon)

    # ---- the batch

    def _send(self, worker: WorkerProcess, batch: Sequence[InferRequest]) -> None:
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        try:
            flags = self._replies.outputs.number << channel.OUTPUTS_SHIFT
            if verbose():
                flags |= channel.VERBOSE
            if self._vigil.kept and self._launch.spin_ns:
                flags |= channel.AWAKE
                # Only what belongs to a call makes the vigil longer: others' batches would keep it up for ever.
                if any(isinstance(request.sink, Called) for request in batch):
                    self._vigil.step(self._launch.spin_ns)
            packet = self._messages.batch(batch, sequence, flags)
        except Exception as error:  # noqa: BLE001  memory may run out; whatever it is, the requests must be answered
            self._unsent(worker, error)
            return
        if self._responders is not None:
            self._execution = self._responders.begin(batch, sequence, self._begun_ns)
        try:
            worker.main.send(packet)
        except OSError as error:
            # Of anything else the worker is dying: its end will be noticed, and the batch fails then.
            if isinstance(error, BlockingIOError) or error.errno in BUSY:
                self._unsent(worker, error)

    def _unsent(self, worker: WorkerProcess, error: Exception) -> None:
        """The worker does not get the batch."""
        # Nor does it hear of forms that are new with it: it is told of all of them anew.
        self._messages = Messages(self._spec, worker.inputs)
        self._fail(internal(f"Failed to pass the request(s) to model instance '{self._launch.instance}': {error}"))
        self._rest()

    def _readable(self) -> None:
        worker = self._worker
        if worker is None:
            return
        packet = worker.read_main()
        if packet is None:
            return
        if not packet:
            self._loop.remove_reader(worker.main.fileno())
            self._loop.call_later(EXIT, self._put_down, worker)
        elif packet[0] == channel.DONE:
            self._done(packet)
        elif packet[0] == channel.STATE:
            self._asked = 0.0
            self._says_ready = packet[1] == 1

    def _done(self, packet: bytes) -> None:
        head = DONE_HEAD.unpack_from(packet)
        batch = self._batch
        if batch is None or head[2] != self._sequence:
            return
        if self._responders is not None:
            self._executed(packet, head, batch)
            return
        if head[1] & channel.KEPT:
            self._called()
        try:
            outcomes = self._replies.settle(packet, head, batch)
        except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
            self._called()
            error = self._failure(failure)
            self._settle_rest(batch, [error] * len(batch), head[7], head[8])
            return
        if outcomes is None:
            self._stats.executed(batch, self._begun_ns, head[7], head[8], _now())
            self._rest()
        else:
            self._called()
            self._settle_rest(batch, outcomes, head[7], head[8])

    def _executed(self, packet: bytes, head: Sequence[int], batch: Sequence[InferRequest]) -> None:
        """A decoupled model has returned from `execute`: its requests stay open, and the next batch may come."""
        responders, execution = self._responders, self._execution
        assert responders is not None
        assert execution is not None
        # What was sent before counts, if all fails now.
        self._called()
        self._stats.ran(batch, execution, head[7], head[8], _now())
        try:
            again = self._replies.check(packet, head)
        except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
            responders.fail(self._failure(failure), self._sequence)
        else:
            for index in again:
                request = responders.release(self._sequence, index)
                error = None if request is None else reschedule(request)
                if request is not None and error is not None:
                    request.sink.fail(request, error)
                    self._stats.failed((request,), Reason.BACKEND, _now())
        self._rest()

    def _failure(self, failure: Exception) -> InferError:
        if self._spec.decoupled and isinstance(failure, Failure):
            # Triton adds nothing to the worker's text for decoupled models.
            return internal(str(failure))
        text = str(failure) if isinstance(failure, Failure) else f"its answer cannot be read: {failure!r}"
        name = self._launch.instance
        return internal(f"Failed to process the request(s) for model instance '{name}', message: {text}")

    def _settle_rest(
        self, batch: Sequence[InferRequest], outcomes: Sequence[Outcome], input_end: int, output_start: int
    ) -> None:
        self._times = (input_end, output_start)
        for index, outcome in enumerate(outcomes):
            if outcome is not None and index not in self._outcomes:
                self._answer(batch[index], index, outcome)
        self._finish(batch)

    def _answer(self, request: InferRequest, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        if isinstance(outcome, InferResponse):
            request.sink.reply(request, outcome, True)
        elif isinstance(outcome, Again):
            error = reschedule(request)
            if error is not None:
                self._answer(request, index, error)
        elif outcome is not None:
            request.sink.fail(request, outcome)

    def _finish(self, batch: Sequence[InferRequest]) -> None:
        """Ends the batch if the model is done with it and every request is answered."""
        if self._times is None or len(self._outcomes) < len(batch):
            return
        fine = [request for index, request in enumerate(batch) if isinstance(self._outcomes[index], InferResponse)]
        failed = [request for index, request in enumerate(batch) if isinstance(self._outcomes[index], InferError)]
        self._stats.executed(fine, self._begun_ns, *self._times, _now(), failed)
        self._rest()

    def _fail(self, error: InferError) -> None:
        """The batch, as far as it is not answered, fails."""
        batch = self._batch
        if batch is None:
            return
        if self._execution is not None and self._responders is not None:
            self._responders.fail(error, self._sequence)
            self._forget_batch()
            return
        now = _now()
        for index, request in enumerate(batch):
            if index not in self._outcomes:
                self._answer(request, index, error)
        fine = [request for index, request in enumerate(batch) if isinstance(self._outcomes[index], InferResponse)]
        failed = [request for index, request in enumerate(batch) if isinstance(self._outcomes[index], InferError)]
        times = self._times or (now, now)
        self._stats.executed(fine, self._begun_ns, *times, now, failed)
        self._forget_batch()

    def _forget_batch(self) -> None:
        self._batch = None
        self._times = None
        self._execution = None
        if self._outcomes:
            self._outcomes = {}

    def _rest(self) -> None:
        """Ready for the next batch."""
        self._forget_batch()
        idle, self._idle = self._idle, None
        if idle is not None:
            idle()

    # ---- what the worker says on its own

    def _called(self, most: int = sys.maxsize) -> None:
        worker = self._worker
        if worker is None:
            return
        for call in worker.read_calls(most):
            self._heed(worker, call)
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._responders is not None:
            self._responders.acknowledge()

    def _tell(self, packet: bytes) -> bool:
        """Whether the worker has taken `packet`; if not, it is acknowledged again soon."""
        return self._voice is None or self._voice.offer(packet)

    def _heed(self, worker: WorkerProcess, call: Call) -> None:
        batch = self._batch
        current = batch is not None and call.sequence == self._sequence and call.index < len(batch)
        if call.kind == channel.AREA:
            self._renew(worker, call.descriptor)
        elif call.kind == channel.RESPONSES and self._responders is not None:
            try:
                packet = self._replies.lines(call.meta, call.data)
            except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
                self._responders.spoil(self._failure(failure))
            else:
                self._responders.deliver(packet)
        elif call.kind == channel.CANCELLED:
            if self._responders is not None:
                gone = self._responders.cancelled(call.sequence, call.index)
            else:
                gone = not current or batch is None or batch[call.index].cancelled
            if self._voice is not None:
                self._voice.tell(bytes((channel.TOLD, gone)))
        elif call.kind == channel.ANSWER and current and batch is not None and call.index not in self._outcomes:
            try:
                outcome = self._replies.entry(call.meta, call.data)
            except Exception as failure:  # noqa: BLE001  the model has a say in what is decoded here
                outcome = internal(
                    f"The response of model instance '{self._launch.instance}' cannot be read: {failure!r}"
                )
            self._answer(batch[call.index], call.index, outcome)
            self._finish(batch)

    def _renew(self, worker: WorkerProcess, descriptor: int) -> None:
        """The model keeps what lies in the area for inputs: those of the next batch go to another."""
        try:
            area = Area.received(descriptor, self._launch.settings.shm_growth)
        except OSError as error:
            # It would read inputs where there are none.
            _LOG.error("model instance '%s' is ended: its inputs cannot be shared: %s", self._launch.instance, error)
            worker.kill()
            return
        worker.inputs.close()
        worker.inputs = self._messages.area = area

    def parents(self, sequence: int) -> Sequence[InferRequest]:
        """See `calling.Parents`."""
        if self._responders is not None:
            return self._responders.of(sequence)
        return self._batch if self._batch is not None and sequence == self._sequence else ()

    def parent(self, sequence: int, index: int) -> InferRequest | None:
        """See `calling.Parents`."""
        if self._responders is not None:
            return self._responders.find(sequence, index)
        batch = self.parents(sequence)
        return batch[index] if index < len(batch) else None

    def _probe(self) -> None:
        """Ask the model's `is_ready`. A model that executes keeps the answer it gave before."""
        worker = self._worker
        now = time.monotonic()
        if worker is None:
            return
        if self._asked:
            if now - self._asked > READY and self._batch is None:
                self._says_ready = False
            return
        self._asked = now
        try:
            worker.main.send(bytes((channel.PROBE,)))
        except OSError:
            """The worker is dying."""

    # ---- life and death of workers

    def _adopt(self, worker: WorkerProcess) -> None:
        """A worker is up: the loop listens to it, and a batch that waited goes out."""
        self._messages = Messages(self._spec, worker.inputs)
        self._replies = Replies(self._spec, worker.outputs)
        self._worker = worker
        self._pid = worker.pid
        self._trouble = None
        self._alive = True
        self._asked = 0.0
        self._voice = Voice(worker.calls, self._loop, self._acknowledge)
        add = self._loop.add_reader
        add(worker.main.fileno(), self._readable)
        add(worker.calls.fileno(), self._called, _CALLS)
        worker.door.open(self._loop, self)
        add(worker.stderr, self._complained, worker)
        add(worker.pidfd, self._died, worker)
        if self._has_ready:
            self._probe()
        if self._batch is not None:
            self._send(worker, self._batch)
        else:
            self._rest()

    def _complained(self, worker: WorkerProcess) -> None:
        if not worker.read_stderr():
            self._loop.remove_reader(worker.stderr)

    def _put_down(self, worker: WorkerProcess) -> None:
        if self._worker is worker:
            worker.kill()

    def _died(self, worker: WorkerProcess) -> None:
        if self._worker is not worker:
            return
        # What it said before it died counts.
        for _ in range(2):
            self._readable()
        self._called()
        self._alive = False
        self._detach()
        error = internal(worker.bury())
        self._fail(error)
        if self._responders is not None:
            self._responders.forget(error)
        self._restarts.died()

    def _give_up(self, error: InferError) -> None:
        """Restarts keep failing: whoever waits, and who comes now, gets an error."""
        self._trouble = internal(
            f"Stub process '{self._launch.instance}' is not healthy. Its worker process cannot be restarted: "
            f"{error.message}",
            error.hint,
        )
        if self._worker is None:
            self._fail(self._trouble)
            self._rest()

    def _abandon(self) -> None:
        """Closed: whoever still waits, or comes, is refused."""
        self._alive = False
        self._trouble = unavailable(f"model instance '{self._launch.instance}' is closed")
        self._fail(self._trouble)
        if self._responders is not None:
            self._responders.forget(self._trouble)
        self._rest()

    def _hand_over(self, handed: Future[WorkerProcess | None]) -> None:
        if handed.set_running_or_notify_cancel():
            handed.set_result(self._detach())

    def _detach(self) -> WorkerProcess | None:
        """The loop listens to the worker no longer."""
        worker, self._worker = self._worker, None
        self._pid = 0
        voice, self._voice = self._voice, None
        if voice is not None:
            voice.close()
        if worker is not None:
            worker.door.detach()
            for descriptor in (worker.main.fileno(), worker.calls.fileno(), worker.stderr, worker.pidfd):
                self._loop.remove_reader(descriptor)
        return worker

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            """The loop is closed: the server is going down."""
