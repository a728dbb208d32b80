"""Large JSON of HTTP infer is read and written beside the event loop: order, ends of all kinds, many at once."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from conch.types.dtype import FP32
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.http_plane import Plane
from support.http_wire import FakeTransport, Wire, post, tensor

PATH = "/v2/models/id_fp32/infer"
MANY = 700_000
SMALL = post(PATH, {"inputs": [tensor("INPUT0", "FP32", [1], [7.0])]})
BINARY = {"binary_data_output": True}


@cache
def large(*headers: str, binary: bool = False) -> bytes:
    inputs = [tensor("INPUT0", "FP32", [MANY], [1.25] * MANY)]
    return post(PATH, {"id": "x", "inputs": inputs, "parameters": BINARY if binary else {}}, *headers)


def done(wire: Wire) -> Wire:
    """The wire, once all that has come is answered."""
    wire.loop.end_tick()
    while wire.connection.busy:
        wire.turn()
    return wire


@contextmanager
def threads_held(wire: Wire) -> Iterator[None]:
    """Within, no thread has time for anything else."""
    go_on = threading.Event()
    for _ in range(2):
        wire.server._aside._threads.submit(go_on.wait)
    try:
        yield
    finally:
        go_on.set()


def test_a_large_request_is_read_and_its_answer_written_beside_the_loop() -> None:
    """The loop only decides; the client cannot tell."""
    wire = Wire()
    with threads_held(wire):
        wire.feed(large())
        assert wire.connection.busy
        assert wire.plane.requests == []
    (reply,) = done(wire).replies()
    assert reply.status == 200
    assert reply.json()["outputs"][0]["data"] == [1.25] * MANY
    assert reply.json()["id"] == "x"


def test_requests_behind_a_large_one_are_answered_behind_it() -> None:
    """One connection's answers keep the order of its requests."""
    wire = Wire().feed(SMALL + large() + SMALL)
    assert len(wire.replies()) == 1
    sizes = [len(each.json()["outputs"][0]["data"]) for each in done(wire).replies()]
    assert sizes == [1, MANY, 1]


def test_a_large_answer_may_be_compressed_too() -> None:
    """First written, then compressed, both beside the loop."""
    (reply,) = done(Wire().feed(large("Accept-Encoding: gzip"))).replies()
    assert reply.headers["Content-Encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(reply.body))["outputs"][0]["data"]) == MANY


def test_a_large_request_may_come_compressed_and_have_binary_answers() -> None:
    """Unpacked, then read."""
    body = json.dumps({"inputs": [tensor("INPUT0", "FP32", [MANY], [1.25] * MANY)], "parameters": BINARY}).encode()
    (reply,) = done(Wire().feed(post(PATH, gzip.compress(body), "Content-Encoding: gzip"))).replies()
    size = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.body[size:] == b"\0\0\xa0\x3f" * MANY


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b"1.25, x", b'1.25, "x"', b"1.25,, 1.25", b"1.25"])
def test_what_is_wrong_is_said_as_of_little_requests(piece: bytes) -> None:
    """Text that is no JSON, elements of another type, too few of them."""

    def refused(count: int) -> tuple[int, str]:
        text = json.dumps({"inputs": [tensor("INPUT0", "FP32", [count + 2], [1.25] * count)]}).encode()
        (reply,) = done(Wire().feed(post(PATH, text.replace(b"1.25]", piece + b"]")))).replies()
        return reply.status, reply.error.rpartition(" at ")[0] or reply.error

    assert refused(MANY) == refused(10)


def test_a_client_that_leaves_while_its_request_is_read_asks_nothing() -> None:
    """Nobody runs a model for a connection that is gone."""
    wire = Wire()
    with threads_held(wire):
        wire.feed(large())
        wire.transport.close()
        wire.connection.connection_lost(None)
    wire.turn()
    assert wire.plane.requests == []


def test_a_client_that_leaves_while_its_answer_is_written_gets_none() -> None:
    """What is left of it is not written."""
    wire = Wire(Plane(keep=True))
    held: list[InferRequest] = []
    wire.plane.answers["id_fp32"] = lambda request, spec: held.append(request)
    wire.feed(large())
    while not held:
        wire.turn()
    with threads_held(wire):
        answer = InferResponse([Tensor("OUTPUT0", FP32, (MANY,), held[0].data[0])])
        held[0].sink.reply(held[0], answer, True)
        wire.transport.close()
        wire.connection.connection_lost(None)
    wire.turn()
    assert bytes(wire.transport.sent) == b""


def test_a_server_that_stops_owes_the_answer_to_what_is_being_read() -> None:
    """It counts as in flight until it has been written, and the connection closes behind it."""
    wire = Wire()
    with threads_held(wire):
        wire.feed(large())
        wire.server.stop_accepting()
        assert wire.server.inflight() == 1
    (reply,) = done(wire).replies()
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert wire.transport.closed
    assert wire.server.inflight() == 0


@pytest.mark.slow
def test_a_hundred_large_requests_on_one_connection_hold_nobody_up() -> None:
    """One of them is read at a time; another client's request is answered at once, all are in the end."""
    wire = Wire()
    first, sent = wire.connection, wire.transport.sent
    with threads_held(wire):
        wire.feed(large(binary=True))
        wire.open()
        assert wire.ask(SMALL).status == 200
        assert not sent
    wire.connection, wire.transport = first, first._transport  # type: ignore[assignment]
    assert isinstance(wire.transport, FakeTransport)
    for _ in range(99):
        done(wire).feed(large(binary=True))
    assert [each.status for each in done(wire).replies()] == [200] * 100
