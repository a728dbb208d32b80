"""Backends of packages that do not keep their promises: an error for their own requests, and for nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conch.backend.api import (
    Host,
    Housed,
    Instance,
    LoopInstance,
    ModelFiles,
    Placement,
    StreamingInstance,
    ThreadInstance,
)
from conch.backend.foreign import ForeignBackend
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError, unavailable
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from support.requests import Recorder, make_form, make_request

ABOUT = "backend 'odd' (odd:Odd)"
PLACEMENT = Placement("m_0", "CPU")


class Model:
    def __init__(self, instance: Any, ready: Callable[[], Any] = lambda: True) -> None:
        self.made = instance
        self.ready = ready

    def instance(self, placement: Placement) -> Any:
        return self.made

    def close(self) -> None: ...


class Odd:
    name = "odd"

    def __init__(self, model: Any) -> None:
        self.model = model

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None: ...

    def load(self, *_: object) -> Any:
        return self.model


class Thread:
    def __init__(self, run: Callable[[Sequence[InferRequest]], None]) -> None:
        self.run = run

    def close(self) -> None: ...


class Loop:
    def __init__(self, start: Callable[[Sequence[InferRequest], Callable[[], None]], None]) -> None:
        self.start = start

    def close(self) -> None: ...


class Stream(Loop):
    def open(self) -> int:
        return 7


def load(model: Any) -> Any:
    host = Host(asyncio.new_event_loop())
    backend = ForeignBackend("odd", Odd(model), ABOUT)
    spec = ModelSpec("m", 1, 0, (), ())
    try:
        return backend.load(ModelConfig(name="m"), spec, ModelFiles(Path("/m"), 1), host, ModelStats())
    finally:
        host.loop.close()


def instance(made: Any) -> Instance:
    return load(Model(made)).instance(PLACEMENT)


def texts(sink: Recorder) -> list[str]:
    return [error.message for _, error in sink.errors]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (None, f"the model that {ABOUT} made for 'm' has no method 'instance'"),
        (object(), f"the model that {ABOUT} made for 'm' has no method 'instance'"),
    ],
)
def test_a_model_has_to_be_one(model: object, text: str) -> None:
    """What `load` returns is looked at."""
    with pytest.raises(InferError) as caught:
        load(model)
    assert caught.value.message == text
    assert "docs/backends.md" in caught.value.hint


@pytest.mark.parametrize(("made", "text"), [(None, "no method 'close'"), (Model(None), "neither 'run' nor 'start'")])
def test_an_instance_has_to_be_one(made: object, text: str) -> None:
    """What `instance` returns is looked at."""
    with pytest.raises(InferError, match=text):
        instance(made)


def test_the_kind_of_an_instance_stays() -> None:
    """Who drives it asks which of the three protocols it has."""
    thread, loop, stream = (instance(made) for made in (Thread(print), Loop(print), Stream(print)))
    assert isinstance(thread, ThreadInstance)
    assert not isinstance(thread, LoopInstance)
    assert isinstance(loop, LoopInstance)
    assert not isinstance(loop, StreamingInstance)
    assert isinstance(stream, StreamingInstance)
    assert stream.open() == 7


def _raise(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "text"),
    [
        (_raise(KeyError("x")), Code.INTERNAL, f"{ABOUT}, model 'm' failed: KeyError: 'x'"),
        (_raise(SystemExit(1)), Code.INTERNAL, f"{ABOUT}, model 'm' failed: SystemExit: 1"),
        (_raise(unavailable("not now")), Code.UNAVAILABLE, "not now"),
        (lambda batch: None, Code.INTERNAL, f"{ABOUT}, model 'm' returned without an answer to the request"),
        (
            lambda batch: [each.sink.reply(each, "hello", True) for each in batch],
            Code.INTERNAL,
            f"{ABOUT}, model 'm' answered with 'str', expected 'InferResponse'",
        ),
        (
            lambda batch: [each.sink.reply(each, InferResponse(()), False) for each in batch],
            Code.INTERNAL,
            f"{ABOUT}, model 'm' is not decoupled and gave a response that is not final",
        ),
        (
            lambda batch: [each.sink.fail(each, ValueError("odd")) for each in batch],
            Code.INTERNAL,
            f"{ABOUT}, model 'm' failed: ValueError: odd",
        ),
    ],
)
def test_every_request_of_a_thread_gets_one_answer(run: Any, code: Code, text: str) -> None:
    """Whatever `run` does, it returns, and each request has had exactly one final call."""
    sink = Recorder()
    requests = [make_request(sink=sink) for _ in range(3)]
    made = instance(Thread(run))
    assert isinstance(made, ThreadInstance)
    made.run(requests)
    assert texts(sink) == [text] * 3
    assert {error.code for _, error in sink.errors} == {code}


def test_what_was_answered_before_an_exception_stays() -> None:
    """Only the others fail."""
    sink = Recorder()
    requests = [make_request(sink=sink, id=str(number)) for number in range(3)]

    def run(batch: Sequence[InferRequest]) -> None:
        batch[0].sink.reply(batch[0], InferResponse(()), True)
        raise RuntimeError("late")

    made = instance(Thread(run))
    assert isinstance(made, ThreadInstance)
    made.run(requests)
    assert [request.id for request, _, _ in sink.replies] == ["0"]
    assert [request.id for request, _ in sink.errors] == ["1", "2"]


def test_a_second_final_answer_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """And told, once for the request."""
    sink = Recorder()

    def run(batch: Sequence[InferRequest]) -> None:
        for _ in range(3):
            batch[0].sink.reply(batch[0], InferResponse(()), True)

    made = instance(Thread(run))
    assert isinstance(made, ThreadInstance)
    made.run([make_request(sink=sink)])
    assert len(sink.finals()) == 1
    assert len([line for line in caplog.messages if "answered a request again" in line]) == 1


def test_an_exception_of_start_does_not_reach_the_loop() -> None:
    """The batch fails and the instance is idle."""
    sink, idle = Recorder(), []
    made = instance(Loop(_raise(OSError("gone"))))
    assert isinstance(made, LoopInstance)
    made.start([make_request(sink=sink)], lambda: idle.append(1))
    assert texts(sink) == [f"{ABOUT}, model 'm' failed: OSError: gone"]
    assert idle == [1]


def test_idle_counts_once_and_needs_answers() -> None:
    """A second `idle` is nothing; a request without an answer at the first one fails."""
    sink, idle = Recorder(), []

    def start(batch: Sequence[InferRequest], done: Callable[[], None]) -> None:
        done()
        done()

    made = instance(Loop(start))
    assert isinstance(made, LoopInstance)
    made.start([make_request(sink=sink)], lambda: idle.append(1))
    assert texts(sink) == [f"{ABOUT}, model 'm' is done without an answer to the request"]
    assert idle == [1]


def test_a_stream_may_answer_after_its_batch() -> None:
    """Its requests stay open when it is idle."""
    sink, idle = Recorder(), []
    made = instance(Stream(lambda batch, done: done()))
    assert isinstance(made, LoopInstance)
    request = make_request(make_form(decoupled=True), sink=sink)
    made.start([request], lambda: idle.append(1))
    assert not sink.finals()
    request.sink.reply(request, InferResponse(()), False)
    request.sink.reply(request, FINAL, True)
    assert len(sink.replies) == 2
    assert idle == [1]


def test_idle_comes_home() -> None:
    """Called from another thread, it happens on the loop's."""

    async def go() -> tuple[int, int]:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        backend = ForeignBackend("odd", Odd(Model(Loop(start))), ABOUT)
        host = Host(asyncio.get_running_loop())
        spec = ModelSpec("m", 1, 0, (), ())
        loaded = backend.load(ModelConfig(name="m"), spec, ModelFiles(Path("/m"), 1), host, ModelStats())
        made = loaded.instance(PLACEMENT)
        assert isinstance(made, LoopInstance)
        made.start([make_request()], lambda: told.set_result(threading.get_ident()))
        return await told, threading.get_ident()

    def start(batch: Sequence[InferRequest], done: Callable[[], None]) -> None:
        def work() -> None:
            batch[0].sink.reply(batch[0], InferResponse(()), True)
            done()

        thread = threading.Thread(target=work)
        thread.start()

    told, home = asyncio.run(go())
    assert told == home


def test_ready_that_fails_is_not_ready() -> None:
    """A health check does not fail with it."""
    assert load(Model(None, _raise(OSError("no")))).ready() is False


def test_questions_that_fail_are_answered_by_the_guard(caplog: pytest.LogCaptureFixture) -> None:
    """The threads that ask serve all models."""

    class Housing(Model):
        processes = _raise(KeyError("p"))

    class Broken(Stream):
        def open(self) -> int:
            raise KeyError("o")

    class Able:
        on_gpus = _raise(KeyError("g"))

    housed = load(Housing(None))
    assert isinstance(housed, Housed)
    assert list(housed.processes()) == []
    broken = instance(Broken(print))
    assert isinstance(broken, StreamingInstance)
    assert broken.open() == 0
    assert ForeignBackend("b", Able(), ABOUT).on_gpus() is False  # type: ignore[arg-type]
    assert [record.getMessage().split(" of ")[0] for record in caplog.records] == ["'processes'", "'open'", "'on_gpus'"]
