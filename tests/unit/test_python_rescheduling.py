"""Requests that a Python model releases to be run again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.types.request import InferRequest
from conch.types.response import FINAL
from support.python_models import Served, array_of, make_spec, model_source, outcome, served
from support.requests import Recorder

AGAIN = "pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE"
#: Runs each request as often as its value says.
COUNTING = f"""
    self.runs = getattr(self, "runs", {{}})
    responses = []
    for request in requests:
        runs = self.runs[request.request_id()] = self.runs.get(request.request_id(), 0) + 1
        if runs < request.inputs()[0].as_numpy()[0, 0]:
            request.set_release_flags({AGAIN})
            responses.append(None)
        else:
            responses.append(answer(np.array([float(runs)])))
    return responses
"""
STREAMING = f"""
    self.runs = getattr(self, "runs", {{}})
    for request in requests:
        runs = self.runs[request.request_id()] = self.runs.get(request.request_id(), 0) + 1
        sender = request.get_response_sender()
        if runs < request.inputs()[0].as_numpy()[0, 0]:
            request.set_release_flags({AGAIN})
            sender.send(answer(np.array([float(runs)])))
        else:
            sender.send(answer(np.array([float(runs)])), flags=1)
"""
TEXT = (
    "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
    "such a flag."
)


class Queue:
    """Runs what is given back in the instance's next batch."""

    def __init__(self) -> None:
        self.waiting: list[InferRequest] = []
        self.change = threading.Condition()

    def __call__(self, request: InferRequest, /) -> None:
        with self.change:
            self.waiting.append(request)

    def take(self) -> list[InferRequest]:
        with self.change:
            waiting, self.waiting = self.waiting, []
            return waiting


def run(model: Served, queue: Queue, *values: float) -> list[Recorder]:
    requests = []
    for number, value in enumerate(values):
        request = model.request(np.array([[value]]), id=str(number), reschedule=queue)
        requests.append(request)
    batch: list[InferRequest] = requests
    while batch:
        assert model.start(batch).wait(20)
        batch = queue.take()
    sinks: list[Any] = [request.sink for request in requests]
    for sink in sinks:
        sink.wait(1)
    return sinks


@pytest.mark.slow
def test_a_request_runs_until_it_is_answered(tmp_path: Path) -> None:
    """Those released come back in a later batch; each gets its one response from its last run."""
    with served(tmp_path, model_source(COUNTING), make_spec("FP64")) as model:
        sinks = run(model, Queue(), 3, 1, 2)
        assert [array_of(sink.replies[0][1].outputs[0]).tolist() for sink in sinks] == [[3.0], [1.0], [2.0]]
        assert [len(sink.finals()) for sink in sinks] == [1, 1, 1]
        assert model.stats.executions == 3
        assert model.stats.success.count == 3


def test_a_decoupled_request_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its responses of all runs arrive in order, the last one ends it."""
    with served(tmp_path, model_source(STREAMING), make_spec("FP64", decoupled=True)) as model:
        sinks = run(model, Queue(), 3, 1)
        for sink, count in zip(sinks, (3, 1), strict=True):
            assert [array_of(reply.outputs[0])[0] for _, reply, _ in sink.replies] == [n + 1 for n in range(count)]
            assert [final for *_, final in sink.replies] == [False] * (count - 1) + [True]
            assert FINAL not in [reply for _, reply, _ in sink.replies]


@pytest.mark.slow
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_model_that_is_not_iterative_cannot(tmp_path: Path, decoupled: bool) -> None:
    """Its request ends with Triton's words and counts as failed; the others of the batch are answered."""
    source = model_source(STREAMING if decoupled else COUNTING)
    with served(tmp_path, source, make_spec("FP64", decoupled=decoupled)) as model:
        released, plain = (model.request(np.array([[value]]), id=str(value)) for value in (2.0, 1.0))
        assert model.start([released, plain]).wait(20)
        for request in (released, plain):
            assert isinstance(request.sink, Recorder)
            request.sink.wait(1)
        assert released.sink.errors[0][1].message == TEXT
        assert len(plain.sink.replies) == 1
        assert (model.stats.success.count, model.stats.fail.count) == (1, 1)


def test_a_released_request_has_no_response_yet(tmp_path: Path) -> None:
    """One that has fails the batch, in Triton's words."""
    execute = f"""
        requests[0].set_release_flags({AGAIN})
        return [answer(np.ones(1)) for _ in requests]
    """
    with served(tmp_path, model_source(execute), make_spec("FP64")) as model:
        request = model.request(np.array([[1.0]]), reschedule=Queue())
        assert model.start([request]).wait(20)
        assert outcome(request).message.endswith(
            "Expected a None object in the execute function return list for reschduled request, found type "
            "'<class 'c_python_backend_utils.InferenceResponse'>'."
        )


def test_a_release_can_be_taken_back(tmp_path: Path) -> None:
    """The flags that were set last count; other flags are refused."""
    execute = f"""
        requests[0].set_release_flags({AGAIN})
        requests[0].set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_ALL)
        try:
            requests[0].set_release_flags(7)
        except TypeError:
            return [answer(np.ones(1)) for _ in requests]
    """
    with served(tmp_path, model_source(execute), make_spec("FP64")) as model:
        request = model.request(np.array([[1.0]]), reschedule=Queue())
        assert model.start([request]).wait(20)
        assert array_of(outcome(request).outputs[0]).tolist() == [1.0]
