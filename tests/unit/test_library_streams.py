"""Who waits for a model's answers inside a program: several threads, several event loops, nobody any more."""

from __future__ import annotations

import asyncio
import gc
import http.client
import os
import signal
import threading
import weakref
from collections.abc import Iterator

import pytest

import conch
from conch.library import server
from conch.library.waiting import Many
from conch.types.dtype import FP32
from conch.types.error import Code, InferError
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.gate import Gate
from support.requests import make_request
from support.until import until

pytestmark = pytest.mark.slow


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def executed(model: conch.Model) -> int:
    return model.statistics().model_stats[0].inference_count


def test_closing_a_stream_lets_another_thread_go(gate: Gate) -> None:
    """Though the model is busy with the request, and looks at nothing before it has ended."""
    with conch.Server(functions=[gate.slow()]) as server:
        stream = server.model("slow").stream({"x": 1.0})
        reader = threading.Thread(target=lambda: list(stream), daemon=True)
        reader.start()
        assert gate.entered.wait(60)
        stream.close()
        until(lambda: not reader.is_alive())
        gate.open.set()


def test_a_stream_may_be_read_by_one_event_loop_after_another(gate: Gate) -> None:
    """The one that waits is told, whichever loop has read before."""
    with conch.Server(functions=[gate.three()]) as server:
        stream = server.model("three").stream_async({"x": 1.0})
        assert gate.entered.wait(60)

        async def following() -> float:
            asyncio.get_running_loop().call_later(0.05, gate.open.set)
            return (await asyncio.wait_for(anext(stream), 20))["output"].item()

        async def first() -> float:
            return (await anext(stream))["output"].item()

        assert asyncio.run(first()) == 1.0
        assert asyncio.run(first()) == 2.0
        assert asyncio.run(following()) == 3.0


def test_nothing_is_kept_for_nobody() -> None:
    """What comes after the reader has left is thrown away, and holds the maker up no more."""
    sink = Many(lambda call: call())
    for _ in range(100):
        sink.fail(None, InferError(Code.INTERNAL, "x"))  # type: ignore[arg-type]
    assert sink.flow.full
    sink.leave()
    for _ in range(100):
        sink.fail(None, InferError(Code.INTERNAL, "x"))  # type: ignore[arg-type]
    assert not sink.flow.full
    assert sink.take() is None
    assert sink.wait(0) is None


def test_cancelling_a_future_withdraws_its_request(gate: Gate) -> None:
    """What waits for an instance never runs."""
    with conch.Server(functions=[gate.slow()]) as server:
        model = server.model("slow")
        first = model.submit({"x": 1.0})
        assert gate.entered.wait(60)
        assert model.submit({"x": 2.0}).cancel()
        gate.open.set()
        assert first.result(20)["output"].item() == 1.0
        assert model.infer({"x": 3.0})["output"].item() == 3.0
        # A function's thread counts when it has answered.
        until(lambda: executed(model) == 2)


def test_the_servers_own_thread_does_not_wait_for_itself(gate: Gate) -> None:
    """Callbacks of futures may run there: whoever blocks in them hears so, and the server goes on."""
    said: list[str] = []
    with conch.Server(functions=[gate.slow()]) as server:
        gate.open.set()
        model = server.model("slow")
        stream = model.stream({"x": 1.0})
        home = server._place()
        done = threading.Event()

        def block() -> None:
            for call in (server.metrics, server.stop, lambda: model.infer({"x": 1.0}), lambda: next(stream)):
                try:
                    call()
                except RuntimeError as error:
                    said.append(str(error))
            done.set()

        home.post(block)
        assert done.wait(20)
        assert len(said) == 4
        assert all("must not wait for the server" in each for each in said)
        assert model.infer({"x": 4.0})["output"].item() == 4.0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_leaves_the_server_alone(gate: Gate) -> None:
    """It has none of the server's threads: it is told so, its end removes nothing, and to stop there does nothing."""
    with conch.Server(functions=[gate.slow()]) as server:
        gate.open.set()
        model = server.model("slow")
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            # Whatever happens, it must not go on as a second process that runs the tests.
            try:
                signal.alarm(60)
                for call in (lambda: model.infer({"x": 1.0}), server.metrics, lambda: model.submit({"x": 1.0})):
                    try:
                        call()
                    except InferError as error:
                        os.write(writer, b"." if "forked" in error.message else b"!")
                server.stop()
                server._programs.close()
                os.write(writer, b"live" if server.live() else b"end")
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.read(reader, 100) == b"...end"
        os.close(reader)
        os.close(writer)
        server.load("slow")
        assert model.infer({"x": 2.0})["output"].item() == 2.0


def test_only_one_of_two_threads_starts_a_server(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """However close they come: the other one is refused, and no second server is left behind."""
    together = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(server, "check", lambda options: together.wait())
    made = conch.Server(functions=[gate.slow()])
    errors: list[str] = []

    def start() -> None:
        try:
            made.start()
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert errors == ["the server was started already"]
    assert sum([thread.name == "conch" for thread in threading.enumerate()]) == 1
    made.stop()


def test_a_function_is_not_added_to_a_server_that_has_ended(gate: Gate) -> None:
    """Its folder is gone, and stays gone."""
    made = conch.Server().start()
    folder = made._programs.repository
    made.stop()
    with pytest.raises(RuntimeError, match="was stopped, no function can be added"):
        made.add(gate.slow())
    assert not folder.exists()


def test_a_server_that_is_forgotten_goes_on(gate: Gate) -> None:
    """Its ports answer, and its models can still be loaded anew."""

    def begin() -> tuple[int, conch.Model, weakref.ref[conch.Server]]:
        made = conch.Server(functions=[gate.slow()], http_port=0).start()
        return made.http_port, made.model("slow"), weakref.ref(made)

    port, model, forgotten = begin()

    def gone() -> bool:
        gc.collect()
        return forgotten() is None

    until(gone)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/v2/repository/models/slow/load")
    assert connection.getresponse().status == 200
    connection.close()
    gate.open.set()
    assert model.infer({"x": 1.0})["output"].item() == 1.0
    home = model._home
    home.run(model._app.end)
    home.end(clean=True)


def test_functions_of_a_server_that_has_ended_are_not_kept(gate: Gate) -> None:
    """What was not under `@conch.model` nobody remembers."""
    from conch.functions.declare import declared

    before = len(declared)
    with conch.Server(functions=[gate.slow()]):
        pass
    assert len(declared) == before


def test_keywords_without_effect_are_named(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Flags that Triton has and this server does nothing with."""
    with conch.Server(functions=[gate.slow()], http_thread_count=4):
        assert "--http-thread-count is accepted but has no effect yet" in caplog.text


def test_a_response_that_cannot_be_read_is_an_error_of_its_stream() -> None:
    """Whoever answers hears nothing of it."""
    many, response = Many(lambda call: None), InferResponse([Tensor("Y", FP32, (2,), bytes(4))])
    many.reply(make_request(), response, True)
    found = many.wait(0)
    assert isinstance(found, InferError)
    assert found.code is Code.INTERNAL
