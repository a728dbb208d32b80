"""Traces of requests: who is traced, what is noted of them, and where it goes (spec: operations 5).

A server without tracing pays for one look at `Tracer.armed` per request.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from conch.config.server import TraceOptions
from conch.types.error import InferError, invalid
from conch.types.request import InferRequest, ResponseSink
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor


@dataclass(frozen=True, slots=True)
class TraceSetting:
    """What is traced of a model, or of all that have no setting of their own. Fields as in `TraceOptions`."""

    level: tuple[str, ...]
    rate: int
    #: Traces still to make.
    count: int
    log_frequency: int
    #: What cannot be changed while the server runs.
    options: TraceOptions

    def fault(self) -> str:
        """Why nothing can be traced like this, in Triton's words; empty when it can."""
        if not self.level:
            return ""
        triton = self.options.mode == "triton"
        if self.rate == 0 and triton:
            return "sample rate must be non-zero"
        return "trace file name is not given" if triton and not self.options.file else ""


class Recorder(Protocol):
    """Where finished traces go. Any thread; nothing blocks."""

    def put(self, trace: Trace) -> None: ...

    def retire(self, source: Source) -> None:
        """No more traces of this source: what is kept back may be written."""

    def close(self) -> None:
        """Write everything; may block for a moment."""


class Source:
    """One setting in force, and how far it has come."""

    __slots__ = ("created", "held", "held_bytes", "left", "seen", "setting", "taken")

    def __init__(self, setting: TraceSetting) -> None:
        self.setting = setting
        self.left = setting.count
        self.seen = 0
        self.created = 0
        #: For the recorder: traces that it has taken, or had to drop.
        self.taken = 0
        #: For the recorder: traces that wait for more, and about how much memory they take.
        self.held: list[Trace] = []
        self.held_bytes = 0


class Trace:
    """What is noted of one request. Times are monotonic nanoseconds; several threads add to it, one after another."""

    __slots__ = (
        "_lock", "_number", "_open", "_recorder", "context", "id", "model", "parent_id", "request_id", "source",
        "state", "tensors", "times", "transport", "version",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        request: InferRequest,
        source: Source,
        recorder: Recorder,
        number: Callable[[], int] = lambda: 0,
    ) -> None:
        """`number` gives the ids of the traces below this one."""
        self.id = id
        #: The trace of the request that this one is a part of; 0 for requests of clients.
        self.parent_id = 0
        self._number = number
        self.model = request.form.head.model_name
        self.version = request.form.version
        self.request_id = request.id
        self.source = source
        #: What the transport's activities begin with: HTTP or GRPC; empty for calls from within the process.
        self.transport: str = getattr(request.sink, "protocol", "")
        #: The W3C trace context that the client sent.
        self.context: str = getattr(request.sink, "trace_context", "")
        #: What other tracing systems have added to it.
        self.state: str = getattr(request.sink, "trace_state", "")
        self.times: list[tuple[str, int]] = []
        self.tensors: list[tuple[str, Tensor]] = []
        self._recorder = recorder
        self._lock = threading.Lock()
        #: Who has still something to note: the answer's way, and the model.
        self._open = 2

    def child(self, request: InferRequest) -> Trace:
        """The trace of a request made for this one: a step of an ensemble."""
        trace = Trace(self._number(), request, self.source, self._recorder, self._number)
        trace.parent_id, trace.context, trace.state = self.id, self.context, self.state
        # No transport answers it.
        trace._open = 1
        self.source.created += 1
        trace.at("REQUEST_START", time.monotonic_ns())
        request.form.model.stats.traced = True
        return trace

    def at(self, name: str, ns: int) -> None:
        if "TIMESTAMPS" in self.source.setting.level:
            self.times.append((name, ns))

    def tensor(self, activity: str, tensors: Sequence[Tensor]) -> None:
        """The bytes are copied: those who own them use them again."""
        if "TENSORS" in self.source.setting.level:
            self.tensors += [
                (activity, Tensor(each.name, each.datatype, each.shape, bytes(each.data))) for each in tensors
            ]

    def executed(self, queued_ns: int, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int) -> None:
        """The model has run; called by the statistics, once a request."""
        self.at("QUEUE_START", queued_ns)
        self.at("COMPUTE_START", start_ns)
        self.at("COMPUTE_INPUT_END", input_end_ns)
        self.at("COMPUTE_OUTPUT_START", output_start_ns)
        self.at("COMPUTE_END", end_ns)
        self.ended()

    def composed(self, queued_ns: int) -> None:
        """The ensemble has answered; its own computing is that of its steps."""
        self.at("QUEUE_START", queued_ns)
        self.ended()

    def ended(self) -> None:
        """The model has done with the request, or never began."""
        self.at("REQUEST_END", time.monotonic_ns())
        self._close()

    def answered(self) -> None:
        self._close()

    def refused(self) -> None:
        """The request was not even taken over: nobody has anything more to note."""
        if self._open == 2:
            self.at("REQUEST_END", time.monotonic_ns())
        with self._lock:
            self._open = min(self._open, 1)
        self._close()

    def _close(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open:
                return
        self._recorder.put(self)


class Tracer:
    """Decides which requests are traced. Any thread.

    `on_loop` and `post` are the transports' bridge to the loop: what is posted before and after an answer runs right
    before and after it is sent.
    """

    def __init__(
        self,
        options: TraceOptions,
        recorder: Recorder,
        on_loop: Callable[[], bool] = lambda: True,
        post: Callable[..., object] = lambda call, *args: call(*args),
    ) -> None:
        """Raises InferError when `options` cannot be followed."""
        self._options = options
        self._recorder = recorder
        self._on_loop = on_loop
        self._post = post
        self._lock = threading.Lock()
        self._ids = 0
        #: What clients have set, for "" (all models) and for single models.
        self._changes: dict[str, dict[str, Any]] = {"": {}}
        self._sources: dict[str, Source] = {"": Source(self._resolve("", self._changes))}
        self._check(self._sources[""].setting)
        #: Whether any request may have to be traced.
        self.armed = bool(options.level)

    def setting(self, model: str) -> TraceSetting:
        """As it is now, with the count that is left."""
        with self._lock:
            source = self._sources.get(model) or self._sources[""]
            return dataclasses.replace(source.setting, count=source.left)

    def change(self, model: str, changes: Mapping[str, Any]) -> TraceSetting:
        """`changes`: fields of `TraceSetting`, None to clear one. Raises InferError, and changes nothing then."""
        with self._lock:
            every = dict(self._changes)
            own = every[model] = {**every.get(model, {}), **changes}
            for name in [name for name, value in own.items() if value is None]:
                del own[name]
            if model and not own:
                del every[model]
            self._check(self._resolve(model, every))
            self._changes = every
            for name in {*every, *self._sources}:
                self._renew(name, restart="count" in changes and name == model)
            self.armed = any(source.setting.level for source in self._sources.values())
        return self.setting(model)

    def begin(self, request: InferRequest) -> None:
        """Trace the request if it is one of those: sets `request.trace` and wraps its sink."""
        name = request.form.head.model_name
        forced = self._options.mode == "opentelemetry" and bool(getattr(request.sink, "trace_context", ""))
        with self._lock:
            source = self._sources.get(name) or self._sources[""]
            if not self._sample(source, forced=forced):
                return
            self._ids += 1
            number = self._ids
        trace = request.trace = Trace(number, request, source, self._recorder, self._number)
        if trace.transport == "GRPC":
            names = ("GRPC_WAITREAD_START", "GRPC_WAITREAD_END")
        else:
            names = (f"{trace.transport}_RECV_START", f"{trace.transport}_RECV_END")
        if trace.transport:
            # A request is timed from where all of it has come.
            for each in names:
                trace.at(each, request.received_ns)
        trace.at("REQUEST_START", time.monotonic_ns())
        form = request.form
        specs = form.model.spec.inputs
        trace.tensor(
            "TENSOR_QUEUE_INPUT",
            [
                Tensor(specs[position].name, specs[position].datatype, shape, data)
                for position, shape, data in zip(form.inputs, form.shapes, request.data, strict=True)
            ],
        )
        request.sink = TracedSink(request.sink, trace, self._on_loop, self._post)
        form.model.stats.traced = True

    def close(self) -> None:
        for source in list(self._sources.values()):
            self._recorder.retire(source)
        self._recorder.close()

    def _number(self) -> int:
        with self._lock:
            self._ids += 1
            return self._ids

    def _sample(self, source: Source, *, forced: bool) -> bool:
        setting = source.setting
        if not setting.level:
            return False
        if not forced:
            source.seen += 1
            if setting.rate == 0 or source.seen % setting.rate or source.left == 0:
                return False
            if source.left > 0:
                source.left -= 1
        source.created += 1
        return True

    def _resolve(self, model: str, changes: Mapping[str, Mapping[str, Any]]) -> TraceSetting:
        """The model's own, else everybody's, else the start-up's."""
        options = self._options
        fields = {
            "level": options.level,
            "rate": options.rate,
            "count": options.count,
            "log_frequency": options.log_frequency,
            **changes.get("", {}),
            **changes.get(model, {}),
        }
        return TraceSetting(**fields, options=options)

    def _renew(self, model: str, *, restart: bool) -> None:
        old = self._sources.get(model)
        if model and model not in self._changes:
            self._sources.pop(model, None)
        else:
            setting = self._resolve(model, self._changes)
            if old is not None and old.setting == setting and not restart:
                return
            source = self._sources[model] = Source(setting)
            if old is not None and not restart and old.setting.count == setting.count:
                source.left = old.left
        if old is not None:
            self._recorder.retire(old)

    def _check(self, setting: TraceSetting) -> None:
        fault = setting.fault()
        if fault:
            raise invalid(f"Attempting to set invalid trace setting :{fault}")


class TracedSink:
    """Notes when answers come and when they are sent; everything else is the sink's that it stands for."""

    __slots__ = ("_inner", "_on_loop", "_post", "_trace")

    def __init__(
        self, inner: ResponseSink, trace: Trace, on_loop: Callable[[], bool], post: Callable[..., object]
    ) -> None:
        self._inner = inner
        self._trace = trace
        self._on_loop = on_loop
        self._post = post

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if response is not FINAL:
            self._trace.tensor("TENSOR_BACKEND_OUTPUT", response.outputs)
        self._send(lambda: self._inner.reply(request, response, final), final=final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._send(lambda: self._inner.fail(request, error), final=True)

    def _send(self, send: Callable[[], None], *, final: bool) -> None:
        self._trace.at("INFER_RESPONSE_COMPLETE", time.monotonic_ns())
        if self._on_loop():
            self._note("SEND_START", ended=False)
            send()
            self._note("SEND_END", ended=final)
        else:
            self._post(self._note, "SEND_START", False)
            send()
            self._post(self._note, "SEND_END", final)

    def _note(self, name: str, ended: bool) -> None:
        trace = self._trace
        if trace.transport:
            trace.at(f"{trace.transport}_{name}", time.monotonic_ns())
        if ended:
            trace.answered()
