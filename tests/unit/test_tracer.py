"""Who is traced, what is noted, and what the files hold."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.flag_values import FlagValueError
from conch.config.server import TraceOptions
from conch.config.trace_flags import trace_options
from conch.observe import trace_file, tracing
from conch.observe.stats import ModelStats, Reason
from conch.observe.trace import Source, Trace, Tracer
from conch.observe.trace_file import TraceFile, activities, tensor_text
from conch.types.dtype import BY_NAME, FP32
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestHead
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor, join_bytes
from support.requests import Recorder as Sink
from support.requests import make_form
from support.until import until

SPEC = ModelSpec("m", 1, 8, (TensorSpec("X", FP32, (-1,)),), (TensorSpec("Y", FP32, (-1,)),))
ON = TraceOptions(level=("TIMESTAMPS",), rate=1, file="f")
FAILED = internal("it failed")


class Kept:
    """A recorder that keeps what it gets."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.retired: list[Source] = []

    def put(self, trace: Trace) -> None:
        self.traces.append(trace)

    def retire(self, source: Source) -> None:
        self.retired.append(source)

    def close(self) -> None:
        """Nothing is open."""


class HttpSink(Sink):
    protocol = "HTTP"
    trace_context = ""


def request(model: str = "m", stats: ModelStats | None = None, sink: Any = None) -> InferRequest:
    form = make_form(head=RequestHead(model), model=SimpleNamespace(spec=SPEC, stats=stats or ModelStats()))
    data = np.array([1, 2], "<f4").tobytes()
    made = InferRequest(form, "r", (data,), sink or HttpSink(), received_ns=5)
    made.queued_ns = 6
    return made


def serve(tracer: Tracer, model: str = "m") -> InferRequest:
    """A request that is begun, answered and counted."""
    made = request(model)
    tracer.begin(made)
    made.sink.reply(made, InferResponse([Tensor("Y", FP32, (1, 2), made.data[0])]), True)
    made.form.model.stats.executed([made], 10, 20, 30, 40)
    return made


def traced(options: TraceOptions, count: int, *models: str) -> tuple[Tracer, list[int]]:
    """How many of `count` requests were traced before each, of one model after the other."""
    kept = Kept()
    tracer = Tracer(options, kept)
    for number in range(count):
        serve(tracer, models[number % len(models)] if models else "m")
    return tracer, [trace.id for trace in kept.traces]


def test_a_rate_of_n_traces_every_nth_request() -> None:
    """Every third of ten requests: three."""
    assert len(traced(TraceOptions(level=("TIMESTAMPS",), rate=3, file="f"), 10)[1]) == 3


def test_a_count_ends_tracing_and_is_told() -> None:
    """Two traces, and the setting says that none are left."""
    tracer, ids = traced(TraceOptions(level=("TIMESTAMPS",), rate=1, count=2, file="f"), 5)
    assert len(ids) == 2
    assert tracer.setting("m").count == 0


@given(rate=st.integers(1, 5), count=st.integers(-1, 5), requests=st.integers(0, 30))
def test_rate_and_count_bound_the_traces(rate: int, count: int, requests: int) -> None:
    """For any rate and count: one in `rate`, and never more than `count`."""
    options = TraceOptions(level=("TIMESTAMPS",), rate=rate, count=count, file="f")
    made = len(traced(options, requests)[1])
    assert made == (requests // rate if count < 0 else min(count, requests // rate))


def test_without_a_level_nothing_is_armed() -> None:
    """Requests of a server without tracing are not even looked at; a change arms it, OFF disarms it."""
    tracer = Tracer(TraceOptions(file="f"), Kept())
    assert not tracer.armed
    tracer.change("m", {"level": ("TIMESTAMPS",), "rate": 1})
    assert tracer.armed
    tracer.change("m", {"level": ()})
    assert not tracer.armed


def test_settings_fall_back_from_the_model_to_all_to_the_start() -> None:
    """A model has its own, else what was set for all, else the start-up's; None clears."""
    tracer = Tracer(ON, Kept())
    tracer.change("", {"rate": 7})
    tracer.change("m", {"count": 3})
    assert (tracer.setting("m").rate, tracer.setting("m").count) == (7, 3)
    assert (tracer.setting("other").rate, tracer.setting("other").count) == (7, -1)
    tracer.change("", {"rate": 9})
    assert tracer.setting("m").rate == 9
    tracer.change("m", {"rate": 2})
    tracer.change("", {"rate": None})
    assert (tracer.setting("m").rate, tracer.setting("").rate) == (2, 1)
    tracer.change("m", {"rate": None, "count": None})
    assert tracer.setting("m") == tracer.setting("")


def test_a_new_count_begins_anew_and_other_changes_do_not() -> None:
    """What is left stays unless the count itself is set."""
    tracer, _ = traced(TraceOptions(level=("TIMESTAMPS",), rate=1, count=2, file="f"), 3)
    assert tracer.change("", {"rate": 2}).count == 0
    assert tracer.change("", {"count": 2}).count == 2


def test_a_model_with_its_own_setting_counts_for_itself() -> None:
    """Its requests are not among those that the others are counted by."""
    kept = Kept()
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=2, file="f"), kept)
    tracer.change("own", {"rate": 1})
    for model in ("own", "a", "own", "b"):
        serve(tracer, model)
    assert [trace.model for trace in kept.traces] == ["own", "own", "b"]


@pytest.mark.parametrize(
    ("changes", "reason"), [({"rate": 0}, "sample rate must be non-zero"), ({"level": ("TENSORS",)}, "")]
)
def test_a_setting_that_cannot_work_is_refused_and_changes_nothing(changes: dict[str, Any], reason: str) -> None:
    """Triton's words; the setting in force stays."""
    tracer = Tracer(ON, Kept())
    if not reason:
        assert tracer.change("", changes).level == ("TENSORS",)
        return
    with pytest.raises(InferError, match=f"Attempting to set invalid trace setting :{reason}"):
        tracer.change("", changes)
    assert tracer.setting("").rate == 1


def test_tracing_without_a_file_is_refused() -> None:
    """Nobody can name a file while the server runs, so nothing can be traced."""
    tracer = Tracer(TraceOptions(), Kept())
    with pytest.raises(InferError, match="Attempting to set invalid trace setting :trace file name is not given"):
        tracer.change("", {"level": ("TIMESTAMPS",)})
    assert tracer.change("", {"rate": 0}).rate == 0


def test_what_is_noted_of_a_request() -> None:
    """The times of the transport, the queue and the model, in order."""
    kept = Kept()
    tracer = Tracer(ON, kept)
    made = serve(tracer)
    (trace,) = kept.traces
    assert made.trace is trace
    assert (trace.model, trace.version, trace.request_id, trace.transport) == ("m", 1, "r", "HTTP")
    times = dict(trace.times)
    assert [times[name] for name in ("HTTP_RECV_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END",
                                     "COMPUTE_OUTPUT_START", "COMPUTE_END")] == [5, 6, 10, 20, 30, 40]  # fmt: skip
    later = ("REQUEST_START", "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START", "HTTP_SEND_END", "REQUEST_END")
    assert sorted(later, key=times.__getitem__) == list(later)
    assert trace.tensors == []


def test_a_failed_request_is_traced_to_its_end() -> None:
    """Refused in the queue: it has no compute times, and an end."""
    kept = Kept()
    tracer = Tracer(ON, kept)
    stats = ModelStats()
    made = request(stats=stats)
    tracer.begin(made)
    made.sink.fail(made, FAILED)
    assert kept.traces == []
    stats.failed([made], Reason.REJECTED, 50)
    (trace,) = kept.traces
    assert {"REQUEST_END", "HTTP_SEND_END"} <= dict(trace.times).keys()
    assert "COMPUTE_START" not in dict(trace.times)


@pytest.mark.parametrize("counted", [True, False])
def test_a_request_that_is_not_taken_over_is_traced_to_its_end(counted: bool) -> None:
    """Whether the model counts it as refused or not; it is recorded once."""
    kept = Kept()
    stats = ModelStats()
    made = request(stats=stats)
    Tracer(ON, kept).begin(made)
    if counted:
        stats.failed([made], Reason.REJECTED, 50)
    made.trace.refused()
    made.trace.refused()
    (trace,) = kept.traces
    assert [name for name, _ in trace.times].count("REQUEST_END") == 1


def test_answers_from_other_threads_are_noted_on_the_loop() -> None:
    """Around the sending itself: what is posted before and after the answer."""
    posted: list[tuple[Any, ...]] = []
    kept = Kept()
    tracer = Tracer(ON, kept, on_loop=lambda: False, post=lambda *call: posted.append(call))
    made = request()
    tracer.begin(made)
    made.sink.reply(made, FINAL, True)
    made.form.model.stats.executed([made], 10, 20, 30, 40)
    assert kept.traces == []
    for call, *args in posted:
        call(*args)
    assert len(kept.traces) == 1


def test_every_response_of_a_decoupled_request_is_noted() -> None:
    """Several answers, one trace, put together at the last."""
    kept = Kept()
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS", "TENSORS"), rate=1, file="f"), kept)
    made = request()
    tracer.begin(made)
    for _ in range(3):
        made.sink.reply(made, InferResponse([Tensor("Y", FP32, (1, 2), bytes(8))]), False)
    made.sink.reply(made, FINAL, True)
    made.form.model.stats.executed([made], 10, 20, 30, 40)
    (trace,) = kept.traces
    names = [name for name, _ in trace.times]
    assert names.count("INFER_RESPONSE_COMPLETE") == 4
    assert [activity for activity, _ in trace.tensors].count("TENSOR_BACKEND_OUTPUT") == 3


def test_the_sink_stays_what_it_is_to_others() -> None:
    """Who asks the wrapped sink for something of its own gets it."""
    tracer = Tracer(ON, Kept())
    sink = HttpSink()
    made = request(sink=sink)
    tracer.begin(made)
    assert made.sink is not sink
    assert made.sink.replies is sink.replies  # type: ignore[attr-defined]


# ---- files


def entries(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def ids(path: Path) -> list[int]:
    return [each["id"] for each in entries(path) if "model_name" in each]


def test_the_file_is_one_json_array_that_grows(tmp_path: Path) -> None:
    """Header, times and tensors of each trace, by its id."""
    path = tmp_path / "t.json"
    options = TraceOptions(level=("TIMESTAMPS", "TENSORS"), rate=1, file=str(path))
    tracer = Tracer(options, TraceFile(str(path)))
    for _ in range(3):
        serve(tracer)
    tracer.close()
    assert ids(path) == [1, 2, 3]
    first = [each for each in entries(path) if each["id"] == 1]
    assert first[0] == {"id": 1, "model_name": "m", "model_version": 1, "request_id": "r"}
    assert {"id": 1, "timestamps": [{"name": "COMPUTE_START", "ns": 10}]} in first
    tensor = {"name": "X", "data": "1,2", "shape": "1,2", "dtype": "FP32"}
    assert {"id": 1, "activity": "TENSOR_QUEUE_INPUT", "tensor": tensor} in first
    assert {"id": 1, "activity": "TENSOR_BACKEND_OUTPUT", "tensor": {**tensor, "name": "Y"}} in first


def test_an_old_file_is_written_over(tmp_path: Path) -> None:
    """As Triton does: a server's traces are its own."""
    path = tmp_path / "t.json"
    path.write_text("old")
    tracer = Tracer(TraceOptions(level=("TENSORS",), rate=1, file=str(path)), TraceFile(str(path)))
    serve(tracer)
    tracer.close()
    assert ids(path) == [1]


def test_a_log_frequency_makes_a_file_of_every_n_traces(tmp_path: Path) -> None:
    """Two by two; the rest at the end."""
    path = tmp_path / "t.json"
    options = TraceOptions(level=("TIMESTAMPS",), rate=1, log_frequency=2, file=str(path))
    tracer = Tracer(options, TraceFile(str(path)))
    for _ in range(5):
        serve(tracer)
    tracer.close()
    assert [ids(tmp_path / f"t.json.{number}") for number in range(3)] == [[1, 2], [3, 4], [5]]
    assert not path.exists()


def test_a_late_writer_fills_its_files_too(tmp_path: Path) -> None:
    """Here all traces have ended before the first is written."""
    path = tmp_path / "t.json"
    recorder = TraceFile(str(path))
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=1, count=3, log_frequency=2, file=str(path)), recorder)
    with recorder._changed:
        for _ in range(4):
            serve(tracer)
    until((tmp_path / "t.json.1").exists)
    tracer.close()
    assert [ids(tmp_path / f"t.json.{number}") for number in range(2)] == [[1, 2], [3]]


def test_what_is_held_back_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may set any log frequency: a file comes sooner where the traces for it would fill the memory."""
    monkeypatch.setattr(trace_file, "_BACKLOG_BYTES", 5000)
    path = tmp_path / "t.json"
    options = TraceOptions(level=("TIMESTAMPS",), rate=1, log_frequency=1_000_000, file=str(path))
    tracer = Tracer(options, TraceFile(str(path)))
    for _ in range(3):
        serve(tracer)
    until((tmp_path / "t.json.0").exists)
    serve(tracer)
    tracer.close()
    assert [ids(tmp_path / f"t.json.{number}") for number in range(2)] == [[1, 2, 3], [4]]


def test_a_changed_setting_writes_what_it_held_back(tmp_path: Path) -> None:
    """The traces of the old setting are complete; those of the new one go on with the next file."""
    path = tmp_path / "t.json"
    options = TraceOptions(level=("TIMESTAMPS",), rate=1, log_frequency=10, file=str(path))
    tracer = Tracer(options, TraceFile(str(path)))
    serve(tracer)
    tracer.change("", {"log_frequency": 1})
    serve(tracer)
    tracer.close()
    assert [ids(tmp_path / f"t.json.{number}") for number in range(2)] == [[1], [2]]


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes on; the log has one line."""
    path = tmp_path / "gone" / "t.json"
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=1, file=str(path)), TraceFile(str(path)))
    for _ in range(2):
        serve(tracer)
    tracer.close()
    lost = [record.getMessage() for record in caplog.records if "traces are lost" in record.getMessage()]
    assert lost == [f"traces are lost: '{path}' cannot be written: No such file or directory"]


def written(path: Path, count: int) -> None:
    """Until the file is whole, and holds so many traces."""

    def whole() -> bool:
        try:
            return len(ids(path)) == count
        except (OSError, ValueError):
            return False

    until(whole)


@pytest.mark.parametrize("rotate", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_is_moved_or_emptied_begins_anew(tmp_path: Path, rotate: Callable[[Path], object]) -> None:
    """Whoever rotates the file loses no later traces."""
    path = tmp_path / "t.json"
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=1, file=str(path)), TraceFile(str(path)))
    serve(tracer)
    written(path, 1)
    rotate(path)
    serve(tracer)
    tracer.close()
    assert ids(path) == [2]


def test_a_disk_that_is_full_for_a_while_leaves_the_file_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written stays readable, what comes after the error is there, and a second time is told again."""
    path = tmp_path / "t.json"
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=1, file=str(path)), TraceFile(str(path)))
    serve(tracer)
    written(path, 1)
    for number in (1, 2):
        size = path.stat().st_size
        with small_files(size + 20):
            serve(tracer)
            until(lambda told=number: caplog.text.count("traces are lost") == told)
            until(lambda whole=size: path.stat().st_size == whole)
        assert len(ids(path)) == number
        serve(tracer)
        written(path, number + 1)
    tracer.close()


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_shown_does_not_end_tracing(tmp_path: Path) -> None:
    """Ids that are no Unicode and answers that are no tensors are written as far as they go."""
    path = tmp_path / "t.json"
    tracer = Tracer(TraceOptions(level=("TENSORS",), rate=1, file=str(path)), TraceFile(str(path)))
    for name, data in (("\ud800", b"abcd"), ("r", b"abc"), ("r", b"abcd")):
        made = request()
        made.id = name
        tracer.begin(made)
        made.sink.reply(made, InferResponse([Tensor("Y", FP32, (1,), data)]), True)
        made.form.model.stats.executed([made], 10, 20, 30, 40)
    tracer.close()
    found = entries(path)
    assert [each["request_id"] for each in found if "request_id" in each] == ["\ud800", "r", "r"]
    assert [each["tensor"]["data"] == "" for each in found if each.get("activity") == "TENSOR_BACKEND_OUTPUT"] == [
        False, True, False,
    ]  # fmt: skip


def test_changes_without_traces_leave_nothing(tmp_path: Path) -> None:
    """Whoever changes settings again and again does not fill the memory."""
    file = TraceFile(str(tmp_path / "t.json"))
    tracer = Tracer(TraceOptions(file="f"), file)
    for rate in range(1, 100):
        tracer.change("", {"rate": rate})
    assert not file._jobs
    tracer.close()


def test_traces_from_many_threads_are_all_there(tmp_path: Path) -> None:
    """Any thread may end a trace."""
    path = tmp_path / "t.json"
    tracer = Tracer(TraceOptions(level=("TIMESTAMPS",), rate=1, file=str(path)), TraceFile(str(path)))
    threads = [threading.Thread(target=lambda: [serve(tracer) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracer.close()
    assert sorted(ids(path)) == list(range(1, 201))


def test_spans_are_made_by_a_thread_that_may_be_late(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Traces that come faster than spans are made are lost and told of; those after the end hurt nobody."""
    otel = pytest.importorskip("conch.observe.otel")
    monkeypatch.setattr(otel, "_MOST", 3)
    options = TraceOptions(mode="opentelemetry", level=("TIMESTAMPS",), rate=1, url="http://127.0.0.1:1/v1/traces")
    exporter = otel.Exporter(options)
    go, made = threading.Event(), []

    def make(trace: Trace) -> None:
        assert go.wait(30)
        made.append(trace.id)
        if trace.id == 1:
            raise ValueError("a bug")

    monkeypatch.setattr(exporter, "_make", make)
    tracer = Tracer(options, exporter)
    for _ in range(5):
        serve(tracer)
    go.set()
    tracer.close()
    serve(tracer)
    assert made == [1, 2, 3]
    told = [record.getMessage() for record in caplog.records]
    assert told.count("a trace could not be made into spans") == 1
    assert len([text for text in told if text.startswith("traces are lost")]) == 1


@pytest.mark.parametrize("state", ["", "vendor=1,other=x:y"])
def test_spans_carry_on_what_came_with_the_request(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's trace, and its `tracestate` with it; steps of ensembles too."""
    otel = pytest.importorskip("conch.observe.otel")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    monkeypatch.setattr(otel, "OTLPSpanExporter", lambda endpoint: kept)
    options = TraceOptions(mode="opentelemetry", level=("TIMESTAMPS",), rate=1)
    tracer = Tracer(options, otel.Exporter(options))
    sink: Any = HttpSink()
    sink.trace_context, sink.trace_state = f"00-{'1' * 32}-{'2' * 16}-01", state
    made = request(sink=sink)
    tracer.begin(made)
    step = made.trace.child(request())
    step.ended()
    made.sink.reply(made, FINAL, True)
    made.form.model.stats.executed([made], 10, 20, 30, 40)
    tracer.close()
    spans = kept.get_finished_spans()
    assert len(spans) == 4
    assert {f"{span.context.trace_id:032x}" for span in spans} == {"1" * 32}
    assert {span.context.trace_state.to_header() for span in spans} == {state}


TEXTS = {
    "FP32": (np.array([0.1, 1e-7, 1e10, 3.14159265, np.nan, np.inf], "<f4"), "0.1,1e-07,1e+10,3.14159,nan,inf"),
    "FP16": (np.array([0.5, 2], "<f2"), "0.5,2"),
    "BF16": (np.array([0x3F80, 0xC000], "<u2"), "1,-2"),
    "INT8": (np.array([-1, 5], "i1"), "-1,5"),
    "UINT64": (np.array([2**64 - 1], "<u8"), "18446744073709551615"),
    "BOOL": (np.array([True, False]), "1,0"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_tensors_are_written_as_numbers(name: str) -> None:
    """As C++ prints them, with commas between them."""
    array, text = TEXTS[name]
    assert tensor_text(Tensor("x", BY_NAME[name], array.shape, array.tobytes())) == text


@given(st.lists(st.binary(max_size=8), max_size=4))
def test_any_strings_leave_the_file_json(strings: list[bytes]) -> None:
    """Quotes, line ends and bytes that are no text are escaped, which Triton forgets."""
    trace = Trace(1, request(), Source(Tracer(ON, Kept()).setting("")), Kept())
    trace.tensors.append(("A", Tensor("x", BY_NAME["BYTES"], (len(strings),), join_bytes(strings))))
    for each in activities(trace):
        assert json.loads(json.dumps(each, ensure_ascii=False)) == each


# ---- flags


def test_trace_flags_are_put_together() -> None:
    """`--trace-config` wins over the older flags."""
    config = [("", "level", "tensors"), ("", "level", "MIN"), ("", "rate", "5"), ("triton", "file", "f"),
              ("triton", "log-frequency", "2")]  # fmt: skip
    options = trace_options({"config": config, "rate": 9, "count": 4, "level": []}, {})
    assert options == TraceOptions(("TIMESTAMPS", "TENSORS"), 5, 4, 2, "f")


def test_off_anywhere_turns_tracing_off() -> None:
    """Whatever other levels are named."""
    config = [("", "level", "TIMESTAMPS"), ("", "level", "off")]
    assert trace_options({"config": config}, {}).level == ()


def test_opentelemetry_options_are_read() -> None:
    """Flags win over OpenTelemetry's variables."""
    config = [("", "mode", "opentelemetry"), ("opentelemetry", "url", "http://c"),
              ("opentelemetry", "resource", "a=b"), ("opentelemetry", "bsp_schedule_delay", "7")]  # fmt: skip
    environ = {"OTEL_BSP_SCHEDULE_DELAY": "9", "OTEL_BSP_MAX_QUEUE_SIZE": "8"}
    options = trace_options({"config": config}, environ)
    assert (options.url, options.resource) == ("http://c", {"a": "b"})
    assert (options.bsp_schedule_delay, options.bsp_max_queue_size) == (7, 8)


@pytest.mark.parametrize("setting", [("", "file", "f"), ("triton", "level", "OFF"), ("opentelemetry", "x", "1")])
def test_unknown_trace_settings_are_refused(setting: tuple[str, str, str]) -> None:
    """A setting without effect is a mistake."""
    with pytest.raises(FlagValueError, match="unknown trace setting"):
        trace_options({"config": [setting]}, {})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (TraceOptions(level=("TIMESTAMPS",)), "--trace-config: trace file name is not given"),
        (TraceOptions(level=("TIMESTAMPS",), file="f", rate=0), "--trace-config: sample rate must be non-zero"),
        (TraceOptions(level=("TIMESTAMPS",), file="/nowhere/f"),
         "--trace-config: '/nowhere/f' cannot be written: No such file or directory"),
        (TraceOptions(level=("TENSORS",), mode="opentelemetry"),
         "--trace-config: level TENSORS is not supported in mode opentelemetry"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_trace_as_asked_does_not_start(options: TraceOptions, text: str) -> None:
    """It says which flag and why."""
    with pytest.raises(OSError, match="--trace-config") as caught:
        tracing.check(options)
    assert str(caught.value) == text
