"""Whoever waits in a worker or for one is woken: by answers that come early, late, broken or not at all."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conch.backend.python import channel
from conch.backend.python.asks import Asks, write_file
from conch.backend.python.bls import Caller
from conch.backend.python.called import Inbox, Later, ResponseIterator
from conch.backend.python.calling import Call, Calling
from conch.backend.python.calls import Calls
from conch.backend.python.channel import ASK_HEAD, CALL_ENTRY, INLINE, LAST, RESULT_ENTRY, RESULTS, WINDOW
from conch.backend.python.coroutines import Coroutines
from conch.backend.python.door import Door
from conch.backend.python.request import InferenceRequest
from conch.backend.python.tensor import Tensor
from conch.backend.python.voice import Voice
from conch.types.flow import Flow
from conch.types.response import FINAL
from support.fake_calls import FakeModels, number
from support.until import until

NUMBER = json.dumps({"outputs": []}).encode()


class Link:
    """A worker's asks and a socket that stands for the server."""

    def __init__(self) -> None:
        self.server, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asks = Asks(self.worker)
        self.caller = Caller(self.asks)
        self.caller.open = True

    def answer(self, number: int, meta: bytes = NUMBER, *, last: bool = True) -> None:
        entry = RESULT_ENTRY.pack(number, LAST if last else 0, len(meta), 0)
        self.server.send(ASK_HEAD.pack(RESULTS, 0, 0) + entry + meta)


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.server.close()
    made.worker.close()


def own_request(**changes: Any) -> InferenceRequest:
    given: dict[str, Any] = {
        "inputs": [Tensor("X", np.zeros(1))],
        "requested_output_names": ["Y"],
        "model_name": "other",
    }
    return InferenceRequest(**(given | changes))


# ---- in the worker


def test_the_last_response_is_known_by_itself(link: Link) -> None:
    """A thread that takes the last response while the one that reads is still bringing it waits for no other."""

    class Slow(deque[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            taken.append(next(responses))
            assert next(responses, None) is None

    taken: list[Any] = []
    inbox = Inbox()
    inbox.items = Slow()
    inbox.number = 1
    responses = ResponseIterator._over(inbox, link.caller)
    link.asks.wait = pytest.fail  # type: ignore[assignment]
    inbox.take(NUMBER, b"", 0, 0, True, None)
    assert len(taken) == 1


def test_no_wake_up_is_lost_between_two_waits(link: Link) -> None:
    """A waiter that comes while an earlier one is being woken is woken too."""
    inbox = Inbox()
    woken: list[str] = []

    class Home:
        def call_soon_threadsafe(self, wake: Callable[[], None]) -> None:
            wake()
            if len(woken) == 1:
                # Its responses have been taken, and it waits again, before the one that brings looks up.
                inbox.wakers.append((self, lambda: woken.append("second")))  # type: ignore[arg-type]
                inbox.take(NUMBER, b"", 0, 0, False, None)

    inbox.wakers.append((Home(), lambda: woken.append("first")))  # type: ignore[arg-type]
    inbox.take(NUMBER, b"", 0, 0, False, None)
    assert woken == ["first", "second"]


def test_a_response_that_cannot_be_decoded_ends_the_wait(link: Link) -> None:
    """Whoever awaits it gets the error, and not nothing at all."""

    async def wait() -> None:
        later = Later(asyncio.get_running_loop(), link.caller)
        later.take(b"{", b"", 0, 0, True, asyncio.get_running_loop())
        with pytest.raises(ValueError, match="Expecting"):
            await asyncio.wait_for(later.future, 20)

    asyncio.run(wait())


@pytest.mark.parametrize("descriptor", [True, False])
def test_contents_that_cannot_be_reached_are_an_error(link: Link, descriptor: bool) -> None:
    """A file that did not arrive, as no number was left for it, or cannot be mapped, is told to who waits."""
    waiter = Inbox()
    number = link.asks.number(waiter)
    packet = ASK_HEAD.pack(RESULTS, channel.IN_FILE, 0) + RESULT_ENTRY.pack(number, LAST, len(NUMBER), 50_000) + NUMBER
    if descriptor:
        empty = write_file([])
        socket.send_fds(link.server, [packet], [empty])
        os.close(empty)
    else:
        link.server.send(packet)
    link.asks.wait(waiter.ready)
    assert "cannot be read" in json.loads(waiter.items[0][0])["error"][1]


def test_a_reader_that_is_called_off_is_followed_by_another(link: Link) -> None:
    """A handler of a signal that raises in the thread that reads leaves nobody without a reader."""
    first, second = Inbox(), Inbox()
    reading = threading.Event()
    real = link.asks._await

    def fail() -> Any:
        link.asks._await = real  # type: ignore[method-assign]
        reading.set()
        until(lambda: bool(link.asks._change._waiters))  # type: ignore[attr-defined]
        raise TimeoutError

    link.asks._await = fail  # type: ignore[method-assign]
    numbers = [link.asks.number(each) for each in (first, second)]

    def follow() -> None:
        reading.wait(20)
        link.asks.wait(second.ready)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    with pytest.raises(TimeoutError):
        link.asks.wait(first.ready)
    link.answer(numbers[1])
    follower.join(20)
    assert not follower.is_alive()


def test_a_call_that_could_not_be_made_tells_nothing(link: Link) -> None:
    """Its form is told by the next call of that kind, and its number is nobody else's."""
    for wrong in (own_request(parameters={"p": "x" * INLINE}), own_request(request_id="\ud800")):
        for _ in range(2):
            with pytest.raises(Exception, match=r"names, shapes|surrogates"):
                link.caller._entry(wrong, 1, decoupled=False)
    entry, _ = link.caller._entry(own_request(), 1, decoupled=False)
    _, form, _, size, _ = CALL_ENTRY.unpack_from(entry)
    assert "form" in json.loads(entry[CALL_ENTRY.size : CALL_ENTRY.size + size])
    entry, _ = link.caller._entry(own_request(model_name="another"), 2, decoupled=False)
    assert CALL_ENTRY.unpack_from(entry)[1] != form


def test_a_call_given_up_at_once_is_called_off_all_the_same(link: Link) -> None:
    """The server hears of the call first, and then that it is not wanted."""

    async def leave() -> None:
        link.caller.call_later(own_request()).cancel()
        await asyncio.sleep(0)

    asyncio.run(leave())
    kinds = [link.server.recv(channel.PACKET)[0] for _ in range(2)]
    assert kinds == [channel.CALLS, channel.QUIT]


def test_what_the_kernel_does_not_take_is_sent_again() -> None:
    """No room for a packet, or too many files on their way, is no server that is gone."""
    troubles = [errno.ETOOMANYREFS, errno.ENOBUFS]

    class Busy:
        def send(self, packet: bytes) -> int:
            if troubles:
                raise OSError(troubles.pop(), "busy")
            sent.append(packet)
            return len(packet)

    sent: list[bytes] = []
    channel.send(Busy(), b"x")  # type: ignore[arg-type]
    assert sent == [b"x"]


def test_a_loop_that_a_task_has_ended_runs_on() -> None:
    """A task of the model's that exits, left behind by a batch, does not take the loop of further batches with it."""
    coroutines = Coroutines(0)
    gone = threading.Event()

    async def exit_later() -> None:
        try:
            await asyncio.sleep(0.01)
            raise SystemExit
        finally:
            gone.set()

    async def leave_behind() -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(exit_later()))
        raise ValueError("and this one fails")

    async def batch() -> str:
        await asyncio.sleep(0.05)
        return "fine"

    self = SimpleNamespace(tasks=[])
    with pytest.raises(ValueError, match="this one"):
        coroutines.finish(leave_behind())
    assert gone.wait(20), "what a batch left behind goes on, though the batch failed"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(coroutines.finish(batch())), daemon=True)
    thread.start()
    thread.join(20)
    assert found == ["fine"]
    assert isinstance(self.tasks[0].exception(), SystemExit)


def test_log_lines_fit_into_a_packet() -> None:
    """However many bytes their characters take, and whether they are text at all."""
    server, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, worker:
        for text in ("\u4e2d" * 8192, "\U0001f600" * 8192, "\ud800", "x" * 100_000):
            Calls(worker).log(0, "f" * 5000, 1, text)
            packet = server.recv(1 << 20)
            assert len(packet) <= channel.PACKET
            json.loads(packet[channel.CALL_HEAD.size :])[2].encode()


# ---- in the server


@contextmanager
def door(models: FakeModels | None = None, *, opened: bool = True) -> Iterator[tuple[Door, socket.socket, Any]]:
    """A door whose loop is the caller's, and the worker's end."""
    server, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.setblocking(False)
    worker.settimeout(20)
    loop = asyncio.new_event_loop()
    made = Door(server, models, None, "m_0")
    if opened:
        made.open(loop, Nobody())
    try:
        yield made, worker, loop
    finally:
        made.detach()
        made.close()
        turn(loop)
        worker.close()
        loop.close()


class Nobody:
    def parents(self, sequence: int) -> Any:
        return ()

    def parent(self, sequence: int, index: int) -> None:
        return None


def turn(loop: asyncio.AbstractEventLoop) -> bool:
    """Lets the loop look round; never true, so that it can stand in a condition."""
    loop.run_until_complete(asyncio.sleep(0.001))
    return False


def call_packet(number: int = 1, flags: int = 0, **changes: Any) -> bytes:
    caller = Caller(SimpleNamespace(number=lambda _: number))  # type: ignore[arg-type]
    entry, _ = caller._entry(own_request(**changes), number, decoupled=False)
    return ASK_HEAD.pack(channel.CALLS, flags, 0) + entry


def results(worker: socket.socket) -> list[tuple[int, Any]]:
    """Numbers and metas of one packet."""
    packet = worker.recv(1 << 20)
    assert packet[0] == RESULTS
    found, position = [], ASK_HEAD.size
    while position < len(packet):
        number, _, meta, size = RESULT_ENTRY.unpack_from(packet, position)
        position += RESULT_ENTRY.size
        found.append((number, json.loads(packet[position : position + meta])))
        position += meta + size
    return found


def test_a_form_outlives_a_call_that_fails() -> None:
    """Whatever went wrong with one call, the form that came with it is known for the next."""
    models = FakeModels()

    def broken(request: object) -> None:
        raise MemoryError

    with door(models) as (made, worker, loop):
        infer, models.infer = models.infer, broken  # type: ignore[method-assign, assignment]
        caller = Caller(SimpleNamespace(number=lambda _: 1))  # type: ignore[arg-type]
        first, second = (caller._entry(own_request(), number, decoupled=False)[0] for number in (1, 2))
        worker.send(ASK_HEAD.pack(channel.CALLS, 0, 0) + first)
        made.heed()
        models.infer = infer  # type: ignore[method-assign]
        worker.send(ASK_HEAD.pack(channel.CALLS, 0, 0) + second)
        made.heed()
        until(lambda: turn(loop) or bool(models.requests))
        assert len(models.requests) == 1


def test_calls_before_the_loop_listens_are_made_when_it_does() -> None:
    """A thread that the model has started in `initialize` may call at once."""
    models = FakeModels()
    with door(models, opened=False) as (made, worker, loop):
        worker.send(call_packet())
        made.heed()
        assert not models.requests
        made.open(loop, Nobody())
        turn(loop)
        assert len(models.requests) == 1
        assert [each for each, _ in results(worker)] == [1]


@pytest.mark.parametrize(
    ("models", "detached", "text"),
    [(FakeModels(), True, "the model that calls is being unloaded"), (None, False, "no other models are served here")],
)
def test_calls_that_nobody_can_make_are_refused(models: FakeModels | None, detached: bool, text: str) -> None:
    """A thread of a model that is being unloaded, and calls, is told: `finalize` may wait for it."""
    with door(models) as (made, worker, loop):
        if detached:
            made.detach()
        worker.send(call_packet(1) + call_packet(2)[ASK_HEAD.size :])
        made.heed()
        turn(loop)
        assert [(each, meta["error"][1]) for each, meta in results(worker)] == [
            (each, f"Error when running inference: {text}") for each in (1, 2)
        ]


def test_a_call_that_cannot_be_read_is_answered_as_those_beside_it() -> None:
    """Forms nobody has told, inputs that did not arrive, failures inside: each gets an error, the next is made."""
    models = FakeModels()
    with door(models) as (_, worker, loop):
        unknown = ASK_HEAD.pack(channel.CALLS, 0, 0) + CALL_ENTRY.pack(1, 77, 0, 0, 8) + bytes(8)
        worker.send(unknown + call_packet(2)[ASK_HEAD.size :])
        turn(loop)
        found = dict(results(worker) + results(worker))
        assert "the request cannot be read: KeyError(77)" in found[1]["error"][1]
        assert "outputs" in found[2]
        packet = call_packet(3, channel.IN_FILE)
        worker.send(packet[: len(packet) - 8])
        turn(loop)
        assert "Too many open files" in dict(results(worker))[3]["error"][1]
        models.answer = explode
        worker.send(call_packet(4))
        turn(loop)
        assert dict(results(worker))[4]["error"][1] == (
            "Model other - Error when running inference: the request cannot be read: ZeroDivisionError('oh')"
        )


def explode(_: Any) -> None:
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    "question",
    [b"{", b'{"ask": "metric", "buckets": ["a"]}', b'{"ask": "load", "name": "x", "files": [["a", 5]]}', b""],
)
def test_every_question_is_answered(question: bytes) -> None:
    """Also what cannot be read, and what fails in a way that nobody thought of."""
    models = FakeModels()
    models.failure = RuntimeError("x" * 300_000)
    with door(models) as (_, worker, loop):
        worker.send(ASK_HEAD.pack(channel.QUESTION, 0, 7) + question)
        turn(loop)
        packet = worker.recv(1 << 20)
        assert len(packet) <= channel.PACKET
        assert "error" in json.loads(packet[ASK_HEAD.size :])


def test_long_errors_reach_the_caller() -> None:
    """They are cut to what a packet holds."""
    models = FakeModels()
    with door(models) as (_, worker, loop):
        models.ready = lambda *_: False  # type: ignore[method-assign]
        worker.send(call_packet(2, model_name="\u4e2d" * 8000))
        turn(loop)
        assert dict(results(worker))[2]["error"][1].endswith("characters in all)")


def test_room_found_and_lost_at_once_is_waited_for() -> None:
    """A thread that finds no room while the loop has just written everything is not forgotten."""
    with door(FakeModels()) as (made, worker, loop):

        class Full:
            """A socket that takes nothing until it is told to."""

            full = True

            def __init__(self, real: socket.socket) -> None:
                self.real = real

            def fileno(self) -> int:
                return self.real.fileno()

            def close(self) -> None:
                self.real.close()

            def send(self, packet: bytes) -> int:
                if self.full:
                    raise BlockingIOError
                return self.real.send(packet)

        full = made._outgoing._socket = Full(made._socket)  # type: ignore[assignment]
        made._reply(1, {"value": 1})
        turn(loop)
        assert made._outgoing._writing
        real, begun = loop.remove_writer, threading.Event()
        threads: list[threading.Thread] = []

        def late() -> None:
            begun.set()
            made._reply(2, {"value": 2})

        def remove(descriptor: int) -> bool:
            # The loop has seen that nothing is left; now another thread has something, and finds no room.
            full.full = True
            threads.append(threading.Thread(target=late, daemon=True))
            threads[0].start()
            begun.wait(20)
            threads[0].join(0.05)
            loop.remove_writer = real
            return bool(real(descriptor))

        loop.remove_writer = remove
        full.full = False
        until(lambda: turn(loop) or bool(threads))
        threads[0].join(20)
        full.full = False
        until(lambda: turn(loop) or not made._outgoing._unsent)
        assert [worker.recv(100)[4] for _ in range(2)] == [1, 2]


def test_a_busy_kernel_is_asked_again_by_the_server() -> None:
    """A packet that it has no memory for is not lost."""
    troubles = [errno.ENOBUFS]
    with door(FakeModels()) as (made, worker, loop):
        real = made._socket

        class Busy:
            fileno, close = real.fileno, real.close

            def send(self, packet: bytes) -> int:
                if troubles:
                    raise OSError(troubles.pop(), "busy")
                return real.send(packet)

        made._outgoing._socket = Busy()  # type: ignore[assignment]
        made._reply(1, {"value": 1})
        until(lambda: turn(loop) or not made._outgoing._unsent)
        assert worker.recv(100)[4] == 1


def test_a_stream_that_is_taken_while_it_is_told_to_wait_goes_on() -> None:
    """The caller takes all there is between the decision that it is too much and the word of it."""
    loop = asyncio.new_event_loop()
    calling = Calling(FakeModels(), loop, Nobody(), lambda *_: None)
    call = Call(calling, 1, 0, stream=True)

    class Taken(Flow):
        """Everything is taken at the very moment that the flow is held up."""

        @property
        def full(self) -> bool:
            return self.held

        @full.setter
        def full(self, value: bool) -> None:
            if value:
                calling.taken(1, call.unread)
            self.held = value

    flow = Taken()
    request = call.request = SimpleNamespace(flow=flow)  # type: ignore[assignment]
    calling._open[1] = call
    call.unread = WINDOW
    woken: list[int] = []
    flow.wait(lambda: woken.append(1))
    calling.answer(call, request, number(1), final=False)  # type: ignore[arg-type]
    turn(loop)
    loop.close()
    assert woken == [1]
    assert not flow.full


def test_who_waits_for_a_reader_hears_that_the_call_is_called_off() -> None:
    """A stream that is held up for its caller, which cancels it, goes on to see that."""
    models = FakeModels(lambda _: None)
    with door(models) as (made, _, loop):
        calling = made._calling
        assert calling is not None
        packet = call_packet(1, model_name="stream")
        packet = packet.replace(b'"decoupled": false', b'"decoupled": true ')
        made._packet(packet, -1)
        (request,) = models.requests
        assert request.flow is not None
        request.flow.full = True
        woken: list[int] = []
        request.flow.wait(lambda: woken.append(1))
        calling.quit(1, forget=False)
        assert woken == [1]
        assert request.cancelled
        request.sink.reply(request, FINAL, True)
        turn(loop)


def test_what_must_be_said_is_said_when_the_worker_listens() -> None:
    """ "Is it cancelled?" has an answer, however little room there was for it; one timer is enough for all."""
    server, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.setblocking(False)
    loop = asyncio.new_event_loop()
    again: list[int] = []
    voice = Voice(server, loop, lambda: again.append(1))
    with server, worker:
        count = 0
        while voice.offer(b"r"):
            count += 1
        for _ in range(3):
            assert not voice.offer(b"r")
            voice.tell(b"t")
        for _ in range(count):
            worker.recv(1)
        until(lambda: turn(loop) or bool(again))
        assert [worker.recv(1) for _ in range(3)] == [b"t"] * 3
        assert len(again) == 1
        voice.close()
    loop.close()
