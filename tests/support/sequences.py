"""A sequence scheduler with nothing real around it: a loop that the test turns, instances that the test finishes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf import text_format

from conch.config.normalize import normalize
from conch.config.sequence_tensors import SequenceTensors, sequence_tensors, with_hidden_tensors
from conch.config.spec import model_spec
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.runner import LoopRunner
from conch.schedule.sequence import SequenceScheduler
from conch.schedule.sequence_build import build_sequences
from conch.types.dtype import INT64
from conch.types.error import InferError
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import InferResponse
from conch.types.tensor import Tensor

MS = 1_000_000
CONTROLS = """
control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } }
control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } }
control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } }
"""
STATE = 'state { input_name: "STATE" output_name: "STATE_OUT" data_type: TYPE_INT64 dims: [ 1 ] }\n'


class Timer:
    def __init__(self, at: int, call: Callable[[], object]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Posted calls run in `settle`, timers when the test moves the clock."""

    def __init__(self) -> None:
        self.now = 1_000 * MS
        self.posted: list[Callable[[], object]] = []
        self.timers: list[Timer] = []

    def post(self, call: Callable[[], object]) -> None:
        self.posted.append(call)

    def later(self, seconds: float, call: Callable[[], object]) -> Timer:
        timer = Timer(self.now + max(0, round(seconds * 1e9)), call)
        self.timers.append(timer)
        return timer

    def settle(self) -> None:
        while self.posted:
            calls, self.posted = self.posted, []
            for call in calls:
                call()

    def advance(self, ns: int) -> None:
        """Each timer rings at its time."""
        end = self.now + ns
        self.settle()
        while True:
            self.timers = [timer for timer in self.timers if not timer.cancelled]
            due = min((timer for timer in self.timers if timer.at <= end), key=lambda t: t.at, default=None)
            if due is None:
                break
            self.timers.remove(due)
            self.now = max(self.now, due.at)
            due.call()
            self.settle()
        self.now = end
        self.settle()


class Row:
    """What an instance saw of one request."""

    def __init__(self, request: InferRequest, tensors: SequenceTensors) -> None:
        self.request = request
        form = request.form
        assert len(form.inputs) == len(form.shapes) == len(form.sizes) == len(request.data)
        self.value = struct.unpack("<q", request.data[0])[0]
        hidden = request.data[1:]
        self.controls = {}
        for control, data in zip(tensors.controls, hidden, strict=False):
            self.controls[control.name] = int.from_bytes(data, "little")
        states = hidden[len(tensors.controls) :]
        self.state = struct.unpack("<q", states[0])[0] if states else None


class Held:
    """A loop instance that keeps its batch until the test finishes it. It adds up, by its own memory and by state."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.batch: Sequence[InferRequest] = ()
        self.idle: Callable[[], None] | None = None
        self.sums: dict[int, int] = {}

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        assert self.idle is None
        self.batch, self.idle = batch, idle
        self.bench.batches.append([Row(request, self.bench.tensors) for request in batch])

    def rows(self) -> list[Row]:
        return [Row(request, self.bench.tensors) for request in self.batch]

    def finish(self, error: InferError | None = None) -> None:
        """Answers `OUT`, the sum by own memory, and by state where there is one."""
        idle, self.idle = self.idle, None
        assert idle is not None
        batch, self.batch = self.batch, ()
        for request in batch:
            row = Row(request, self.bench.tensors)
            if error is not None:
                # As a model that forgets at START, and then fails.
                if row.controls.get("START"):
                    self.sums[row.controls.get("CORRID", 0)] = 0
                request.sink.fail(request, error)
                continue
            outputs = []
            if row.controls.get("READY", 1):
                key = row.controls.get("CORRID", 0)
                before = 0 if row.controls.get("START") else self.sums.get(key, 0)
                self.sums[key] = before + row.value
                outputs.append(Tensor("OUT", INT64, (1,), struct.pack("<q", self.sums[key])))
                if row.state is not None:
                    outputs.append(Tensor("STATE_OUT", INT64, (1, 1), struct.pack("<q", row.state + row.value)))
            request.sink.reply(request, InferResponse(outputs), True)
        idle()

    def close(self) -> None:
        """Nothing is held."""


class Bench:
    """`inside` is the text of sequence_batching."""

    def __init__(self, inside: str, *, batch: int = 4, instances: int = 1, controls: bool = True) -> None:
        config = ModelConfig(name="m", backend="fake", max_batch_size=batch)
        config.input.add(name="IN", data_type=9, dims=[1])
        config.output.add(name="OUT", data_type=9, dims=[1])
        text_format.Parse(inside + (CONTROLS if controls else ""), config.sequence_batching)
        normalize(config)
        self.config = config
        self.tensors = sequence_tensors(config, Path("/nowhere"))
        self.spec = with_hidden_tensors(model_spec(config, 1), config)
        self.loop = Loop()
        self.stats = ModelStats()
        self.scheduler: SequenceScheduler = build_sequences(
            config, self.tensors, instances, self.stats, self.loop.post, self.loop.later, lambda: self.loop.now
        )
        self.batches: list[list[Row]] = []
        self.instances = [Held(self) for _ in range(instances)]
        for instance in self.instances:
            self.scheduler.attach(LoopRunner(instance, self.scheduler.take, self.loop.post))
        self._forms: dict[object, RequestForm] = {}
        self.sink = Answers()

    def form(self, id: int | str, flags: int, timeout_us: int = 0) -> RequestForm:
        key = (id, flags, timeout_us)
        shape = ((1, 1),) if self.config.max_batch_size else ((1,),)
        if key not in self._forms:
            self._forms[key] = RequestForm(
                RequestHead("m"), None, self.scheduler.submit, 1, 0, (0,), (0,), shape, shape, (8,), (1,), 1,
                None, None, timeout_us=timeout_us, correlation_id=id, flags=flags, withdraw=self.scheduler.withdraw,
            )  # fmt: skip
        return self._forms[key]

    def send(
        self, id: int | str, flags: int, value: int = 1, *, timeout_us: int = 0, expires_ns: int = 0
    ) -> InferRequest:
        """Raises InferError as the scheduler does. The loop is not turned."""
        form = self.form(id, flags, timeout_us)
        request = InferRequest(form, "", (struct.pack("<q", value),), self.sink, self.loop.now)
        request.expires_ns = expires_ns
        form.submit(request)
        return request

    def finish(self, lane: int = 0, error: InferError | None = None) -> None:
        self.instances[lane].finish(error)
        self.loop.settle()

    def drain(self) -> None:
        self.loop.settle()
        while busy := [instance for instance in self.instances if instance.idle is not None]:
            for instance in busy:
                instance.finish()
            self.loop.settle()


class Answers:
    """A sink that keeps what each request got: a sum, or an error. One answer each."""

    def __init__(self) -> None:
        self.of: dict[InferRequest, int | InferError] = {}
        self.names: dict[InferRequest, list[str]] = {}
        self.order: list[InferRequest] = []

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        assert final
        assert request not in self.of
        self.names[request] = [tensor.name for tensor in response.outputs]
        self.of[request] = struct.unpack("<q", response.outputs[0].data)[0]
        self.order.append(request)

    def fail(self, request: InferRequest, error: InferError) -> None:
        assert request not in self.of
        self.of[request] = error
        self.order.append(request)
