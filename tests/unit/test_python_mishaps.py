"""One mishap of a Python model, or of the machine, costs what it must and nothing beyond: real workers."""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.python.channel import Area
from conch.backend.python.process import WorkerProcess
from conch.observe.custom import Families
from conch.types.error import InferError
from support.fake_calls import FakeModels
from support.python_models import Served, array_of, make_spec, model_source, served
from support.requests import Recorder
from support.until import until

CALL = """
    def call(**more):
        given = {"inputs": [pb_utils.Tensor("X", np.ones(1))], "requested_output_names": [], "model_name": "other"}
        return pb_utils.InferenceRequest(**{**given, **more}).exec()
"""


def texts(model: Served) -> Any:
    """What the model says of itself: the one error text it answers with."""
    outcome = model.echo()
    return outcome.message if isinstance(outcome, InferError) else array_of(outcome.outputs[0]).tolist()


def test_odd_log_lines_spoil_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of many bytes, and such as are no text, are logged as far as they can be; the batch is answered."""
    execute = """
        for line in ("\\u4e2d" * 8192, "\\ud800", "plain"):
            pb_utils.Logger.log_info(line)
        raise ValueError("after the lines")
    """
    more = """
    def initialize(self, args):
        pb_utils.Logger.log_info("\\U0001f600" * 8192)
    """
    with caplog.at_level(logging.INFO, "conch.model"), served(tmp_path, model_source(execute, more)) as model:
        assert "after the lines" in texts(model)
    lines = [record.getMessage() for record in caplog.records if record.name == "conch.model"]
    assert [lines[0][0], lines[1][0], *lines[2:4]] == ["\U0001f600", "\u4e2d", "?", "plain"]


def test_an_element_without_bytes_fails_one_batch(tmp_path: Path) -> None:
    """A text that cannot be encoded in a new layout does not make the next answers of that layout unreadable."""
    spec = make_spec("BYTES")
    execute = """
        text = requests[0].inputs()[0].as_numpy()[0, 0].decode()
        return [answer(np.array([["\\ud800" if text == "bad" else text]], dtype=object)) for _ in requests]
    """
    with served(tmp_path, model_source(execute), spec) as model:
        for text in (b"bad", b"good", b"bad", b"good"):
            (outcome,) = model.ask(model.request(np.array([[text]], dtype=object)))
            if text == b"bad":
                assert "surrogates not allowed" in outcome.message
            else:
                assert array_of(outcome.outputs[0]).tolist() == [[text]]


@pytest.mark.slow
def test_an_exception_of_any_kind_is_the_batchs(tmp_path: Path) -> None:
    """Being cancelled, or an exception that is no `Exception`, fails the batch, and the worker lives on."""
    for number, raised in enumerate(
        ("asyncio.CancelledError('x')", "KeyboardInterrupt('x')", "type('E', (BaseException,), {})('x')")
    ):
        source = model_source(f"import asyncio\nraise {raised}")
        if number == 0:
            source = source.replace("def execute", "async def execute")
        folder = tmp_path / str(number)
        with served(folder, source) as model:
            pid = model.pid
            assert texts(model).startswith("Failed to process the request(s) for model instance 'm_0_0', message: ")
            assert model.pid == pid


def test_a_call_that_cannot_be_made_spoils_no_other(tmp_path: Path) -> None:
    """Too much said of a request, or what is no text, raises each time; calls of that kind and others are fine."""
    execute = (
        CALL
        + """
    found = []
    for more in ({"parameters": {"p": "x" * 40_000}}, {"request_id": "\\ud800"}, {"model_name": "\\ud800"}):
        for _ in range(2):
            try:
                call(**more)
            except Exception as error:
                found.append(type(error).__name__)
    found += [call(**more).has_error() for more in ({}, {"request_id": "a"}, {"model_name": "another"})]
    return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(found))) for _ in requests]
    """
    )
    models = FakeModels()
    with served(tmp_path, model_source(execute), models=models) as model:
        odd, no_text = "'TritonModelException', " * 2, "'UnicodeEncodeError', " * 4
        assert texts(model) == f"[{odd}{no_text}False, False, False]"
    assert [request.form.head.model_name for request in models.requests] == ["other", "other", "another"]


def test_metrics_with_odd_values_are_answered(tmp_path: Path) -> None:
    """A last bucket of infinity is the one that there is anyway; what cannot be is refused, and a value may be any."""
    execute = """
        inf, nan, make = float("inf"), float("nan"), pb_utils.MetricFamily
        times = make("own_ms", "", make.HISTOGRAM)
        metric = times.Metric(buckets=[1.0, inf])
        metric.observe(5)
        found = []
        for buckets, label in (([nan], ""), (["a"], ""), ([1.0, nan, 2.0], ""), ([1], "\\ud800")):
            try:
                times.Metric(buckets=buckets, labels={"a": label})
            except Exception as error:
                found.append(type(error).__name__)
        levels = make("own_level", "", make.GAUGE)
        level = levels.Metric()
        for value in (inf, -inf, nan):
            level.set(value)
            found.append(str(level.value()))
        return [pb_utils.InferenceResponse([], pb_utils.TritonError("|".join(found))) for _ in requests]
    """
    families = Families()
    with served(tmp_path, model_source(execute), metrics=families) as model:
        error = "TritonModelException"
        assert texts(model).split("|") == [error, error, error, "UnicodeEncodeError", "inf", "-inf", "nan"]


def test_a_batch_that_is_not_sent_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for it, or for the packet, it fails; its form is told with the next batch."""
    with served(tmp_path, model_source()) as model:
        real = Area.reserve

        def scarce(area: Area, size: int) -> memoryview:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Area, "reserve", scarce)
        (error,) = model.ask(model.request(np.ones((1, 50_000), np.float32)))
        assert "No space left" in error.message
        monkeypatch.setattr(Area, "reserve", real)
        pid = model.pid
        for trouble in (BlockingIOError(), OSError(errno.ENOBUFS, "No buffer space")):
            worker = model.instance._worker
            assert worker is not None
            main = worker.main
            worker.main = Failing(main, trouble)  # type: ignore[assignment]
            assert isinstance(texts(model), str)
            worker.main = main
        for size in (2, 50_000):
            (response,) = model.ask(model.request(np.full((1, size), 3, np.float32)))
            assert array_of(response.outputs[0])[0, -1] == 3
        assert model.pid == pid


class Failing:
    def __init__(self, real: Any, trouble: OSError) -> None:
        self._trouble = trouble
        self.fileno, self.recv, self.close = real.fileno, real.recv, real.close

    def send(self, packet: bytes) -> int:
        raise self._trouble


@pytest.mark.slow
def test_memory_for_inputs_that_does_not_arrive_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next batch would be read where nothing was written: better a worker that is started anew than zeros."""
    execute = """
        array = requests[0].inputs()[0].as_numpy()
        self.__dict__.setdefault("kept", []).append(array)
        return [answer(array[:, -1:])]
    """
    with served(tmp_path, model_source(execute)) as model:
        pid = model.pid

        def lost(descriptor: int, growth: int) -> Area:
            os.close(descriptor)
            raise OSError(errno.EMFILE, "Too many open files")

        real = Area.received
        monkeypatch.setattr(Area, "received", lost)
        model.ask(model.request(np.full((1, 50_000), 5, np.float32)))
        monkeypatch.setattr(Area, "received", real)
        until(lambda: model.pid != pid)
        for value in (6, 7):
            (response,) = model.ask(model.request(np.full((1, 50_000), value, np.float32)))
            assert array_of(response.outputs[0]).tolist() == [[value]]


def test_areas_cannot_be_cut_off() -> None:
    """Neither by a worker, nor one that a worker has made in another way."""
    area = Area.make(4096, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(area.descriptor, 0)
    assert len(area.reserve(9000)) == 12_288
    area.close()
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    with pytest.raises(OSError, match="not sealed"):
        Area.received(loose, 4096)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(loose)
    with pytest.raises(OSError, match="Too many open files"):
        Area.received(-1, 4096)


def test_a_worker_that_never_stops_complaining_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes to its stderr is passed on piece by piece, however fast it writes."""
    passed: list[int] = []
    monkeypatch.setattr(os, "write", lambda _, chunk: passed.append(len(chunk)))
    worker = WorkerProcess.__new__(WorkerProcess)
    worker.last_lines, worker._partial = deque(), b""
    worker.stderr = os.open("/dev/zero", os.O_RDONLY)
    try:
        assert worker.read_stderr(), "there is more"
    finally:
        os.close(worker.stderr)
    assert 0 < sum(passed) <= 1 << 20


def test_a_call_joins_the_trace_of_its_own_request(tmp_path: Path) -> None:
    """Also where requests of the batch before it have been answered already."""
    execute = """
        from concurrent.futures import ThreadPoolExecutor
        requests[0].get_response_sender().send(flags=1)
        trace = requests[1].trace()
        call = pb_utils.InferenceRequest(model_name="other", requested_output_names=[], trace=trace,
                                         inputs=[pb_utils.Tensor("X", np.ones(1))])
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(call.exec).result().has_error()
        requests[1].get_response_sender().send(flags=1)
    """
    models = FakeModels()
    with served(tmp_path, model_source(execute), make_spec(decoupled=True), models=models) as model:
        batch = [model.request(np.ones((1, 2), np.float32)) for _ in range(3)]
        for number, each in enumerate(batch[1:], 1):
            each.trace = type("Trace", (), {"context": f"trace {number}", "state": "", "executed": lambda *_: None})()
        model.start(batch)
        models.wait(lambda: len(models.requests) == 1)
        sink = batch[1].sink
        assert isinstance(sink, Recorder)
        sink.wait(1)
        assert models.requests[0].sink.trace_context == "trace 1"  # type: ignore[attr-defined]
        model.instance.close()
