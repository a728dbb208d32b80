"""Functions of a program behind the backend's door: what becomes of their arrays, and of those that want to exit."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from conch.backend.api import Host
from conch.backend.program.batch import Calls
from conch.backend.program.call import Call
from conch.backend.program.instance import AsyncInstance
from conch.observe.stats import Execution, ModelStats
from conch.types.dtype import FP32, INT8, INT32, INT64, DataType
from conch.types.error import InferError
from conch.types.flow import Flow
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from support.python_models import array_of, form_for, make_spec, outcome, running_loop
from support.requests import Recorder

X = np.ones((1, 2), np.float32)


def request(spec: ModelSpec) -> InferRequest:
    return InferRequest(form_for(spec, X.shape), "", (X.tobytes(),), Recorder(), 0)


def replied(kind: DataType, array: np.ndarray[Any, Any]) -> Any:
    """The response to one request, with `array` as its output."""
    spec = dataclasses.replace(make_spec(), outputs=(TensorSpec("Y", kind, (-1,)),))
    one = request(spec)
    Call(one, spec, ModelStats(), Execution(0), lambda *_: None).reply({"Y": array})
    return outcome(one)


def test_an_answer_keeps_its_values() -> None:
    """A function that uses its array again changes no answer that is not written yet, be the array a part of it."""
    buffer = np.array([[1, 2, 3, 4]], np.float32)
    shown = buffer[:, :2]
    shown.flags.writeable = False
    answers = [replied(FP32, buffer), replied(FP32, shown)]
    buffer[:] = 7
    assert [array_of(each.outputs[0]).tolist() for each in answers] == [[[1, 2, 3, 4]], [[1, 2]]]


def test_what_cannot_change_is_not_copied() -> None:
    """An input that is given back is the request's own bytes."""
    raw = bytes(8)
    answer = replied(FP32, np.frombuffer(raw, np.float32).reshape(1, 2))
    assert np.shares_memory(array_of(answer.outputs[0]), np.frombuffer(raw, np.float32))


@pytest.mark.parametrize(
    ("kind", "array"), [(INT8, np.array([[100, -128]])), (INT32, np.array([[1, 2]])), (INT8, np.empty((1, 0), int))]
)
def test_a_narrower_type_that_holds_the_values(kind: DataType, array: np.ndarray[Any, Any]) -> None:
    """Python's whole numbers are INT64 in numpy: they fit, or they do not."""
    assert array_of(replied(kind, array).outputs[0]).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("kind", "array", "value"),
    [(INT8, np.array([[1, 300]]), 300), (INT64, np.array([[1 << 63]], np.uint64), 1 << 63)],
)
def test_a_narrower_type_that_does_not(kind: DataType, array: np.ndarray[Any, Any], value: int) -> None:
    """The value is named; it is not cut off."""
    with pytest.raises(InferError, match=f"with the value {value}, which {kind} cannot hold"):
        replied(kind, array)


class Exits:
    """Its first answer wants the process to end."""

    concurrency = 4

    def __init__(self) -> None:
        self.asked = 0

    async def answer(self, calls: Sequence[Call]) -> None:
        await asyncio.gather(*[asyncio.create_task(self._one(call)) for call in calls])

    async def _one(self, call: Call) -> None:
        self.asked += 1
        if self.asked == 1:
            sys.exit(3)
        call.reply({"Y": call.inputs["X"]})

    def close(self) -> None:
        """Nothing is open."""


def test_a_function_that_exits_fails_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    """sys.exit() ends asyncio's loops; this one goes on, later requests are answered, and closing ends it."""
    spec = make_spec()
    with running_loop() as loop:
        instance = AsyncInstance(Exits(), spec, ModelStats(), Host(loop, {}), "m_0")
        requests = [request(spec), request(spec)]
        for one in requests:
            loop.call_soon_threadsafe(instance.start, [one], lambda: None)
            assert isinstance(one.sink, Recorder)
            one.sink.wait(1)
        instance.close()
    first, second = map(outcome, requests)
    assert first.message == "SystemExit: 3"
    assert array_of(second.outputs[0]).tolist() == X.tolist()
    assert "raised SystemExit(3), it is served on" in caplog.text


@pytest.mark.parametrize("decoupled", [True, False])
def test_an_answer_that_comes_while_the_function_returns(decoupled: bool) -> None:
    """From a thread of its own, at the last moment: it is the answer, the request did not fail, nothing is raised."""
    spec = make_spec(decoupled=decoupled)
    one = InferRequest(form_for(spec, X.shape, decoupled=decoupled), "", (X.tobytes(),), Recorder(), 0)
    work = Calls(spec, [one], ModelStats(), lambda *_: None)
    (call,) = work.calls

    class Late:
        """Answers as soon as it was seen that there is no answer."""

        def __getattr__(self, name: str) -> Any:
            if name == "settled" and not call.settled:
                call.end() if decoupled else call.reply({"Y": X})
                return False
            return getattr(call, name)

    work.calls = [Late()]  # type: ignore[list-item]
    work.ended()
    assert isinstance(one.sink, Recorder)
    assert len(one.sink.finals()) == 1
    assert not one.sink.errors
    assert call.succeeded


def test_a_loop_that_is_gone_keeps_nobody_else_waiting() -> None:
    """Several requests wait for one reader: each hears of it, though one's own loop has been closed."""
    spec = make_spec(decoupled=True)
    flow, gone, here = Flow(), asyncio.new_event_loop(), asyncio.new_event_loop()
    flow.full = True

    async def wait() -> None:
        one = request(spec)
        one.flow = flow
        await Call(one, spec, ModelStats(), Execution(0), lambda call, *given: call(*given)).reader()

    left = gone.create_task(wait())
    gone.run_until_complete(asyncio.sleep(0))
    waiting = here.create_task(wait())
    here.run_until_complete(asyncio.sleep(0))
    left.cancel()
    gone.run_until_complete(asyncio.gather(left, return_exceptions=True))
    gone.close()
    flow.release()
    here.run_until_complete(asyncio.wait_for(waiting, 20))
    here.close()
