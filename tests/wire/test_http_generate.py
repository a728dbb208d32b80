"""Generate over HTTP/1.1, byte by byte: chunks, events, statuses, and clients that leave or do not read."""

from __future__ import annotations

import json

import pytest

from conch.config.server import HttpOptions
from conch.transport.generate import MAX_UNREAD
from conch.types.dtype import BYTES
from conch.types.error import InferError, unavailable
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor
from support.http_plane import Plane, strings
from support.http_wire import Reply, Wire, get, post, take_apart, take_chunked

ONE = '{"INPUT0":"a"}'
NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)


class Model:
    """A decoupled model that answers as the test says."""

    def __init__(self) -> None:
        self.plane = Plane(keep=True)
        tensors = (TensorSpec("INPUT0", BYTES, (1,)),), (TensorSpec("out", BYTES, (1,)),)
        self.plane.add(ModelSpec("talker", 1, 0, *tensors, decoupled=True), lambda request, spec: None)
        self.wire = Wire(self.plane, HttpOptions(max_input_size=1000))

    def ask(self, path: str = "generate_stream", *headers: str, body: str = ONE) -> Model:
        self.wire.feed(post(f"/v2/models/talker/{path}", body, *headers))
        return self

    @property
    def request(self) -> InferRequest:
        return self.plane.requests[-1]

    def say(self, text: str, final: bool = False) -> None:
        tensor = Tensor("out", BYTES, (1,), strings(text.encode()))
        self.request.sink.reply(self.request, InferResponse([tensor]), final)

    def end(self) -> None:
        self.request.sink.reply(self.request, FINAL, True)

    def fail(self, error: InferError) -> None:
        self.request.sink.fail(self.request, error)

    @property
    def sent(self) -> bytes:
        self.wire.loop.end_tick()
        return bytes(self.wire.transport.sent)

    def stream(self) -> tuple[Reply, list[bytes]]:
        return take_chunked(self.sent)

    def reply(self) -> Reply:
        (reply,) = take_apart(self.sent)
        return reply


def event(text: str) -> bytes:
    return b'data: {"model_name":"talker","model_version":"1","out":"%b"}\n\n' % text.encode()


def test_each_response_is_one_event_in_one_chunk() -> None:
    """Events go out as they come; the final that brings nothing adds nothing, and the connection lives on."""
    model = Model().ask()
    assert model.sent == b""
    model.say("x")
    reply, chunks = model.stream()
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    assert chunks == [event("x")]
    model.say("y")
    model.end()
    assert model.stream()[1] == [event("x"), event("y"), b""]
    before = len(model.sent)
    model.wire.feed(get("/v2/health/live"))
    assert take_apart(model.sent[before:])[0].status == 200


def test_a_last_response_may_be_the_final_one() -> None:
    """A response with the final flag is an event like the others."""
    model = Model().ask()
    model.say("x", final=True)
    assert model.stream()[1] == [event("x"), b""]


def test_events_of_one_tick_are_written_at_once() -> None:
    """A burst of responses costs one write."""
    model = Model().ask()
    for _ in range(10):
        model.say("x")
    assert len(model.stream()[1]) == 10
    assert model.wire.transport.writes == 1


def test_no_responses_are_an_empty_stream() -> None:
    """A model that says nothing is answered with 200 and no event."""
    model = Model().ask()
    model.end()
    reply, chunks = model.stream()
    assert (reply.status, chunks) == (200, [b""])


def test_an_error_first_decides_the_status() -> None:
    """The status is that of the first response, an event as any other."""
    model = Model().ask()
    model.fail(unavailable("no"))
    reply, chunks = model.stream()
    assert (reply.status, chunks) == (503, [b'data: {"error":"no"}\n\n', b""])


def test_an_error_later_is_an_event() -> None:
    """What has been said stays said."""
    model = Model().ask()
    model.say("x")
    model.fail(unavailable("no"))
    reply, chunks = model.stream()
    assert (reply.status, chunks) == (200, [event("x"), b'data: {"error":"no"}\n\n', b""])


def test_one_response_is_one_object() -> None:
    """/generate answers when the model has ended, with its one response."""
    model = Model().ask("generate")
    model.say("x")
    assert model.sent == b""
    model.end()
    reply = model.reply()
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.json() == {"model_name": "talker", "model_version": "1", "out": "x"}


@pytest.mark.parametrize("count", [0, 2, 5])
def test_generate_wants_exactly_one_response(count: int) -> None:
    """Any other number is an error, with the status of the first response."""
    model = Model().ask("generate")
    for _ in range(count):
        model.say("x")
    model.end()
    assert (model.reply().status, model.reply().error) == (200, NOT_ONE)


def test_models_that_answer_once_can_be_asked_too() -> None:
    """A model that is not decoupled streams its one answer."""
    wire = Wire()
    reply = wire.ask(post("/v2/models/id_bytes/generate", '{"INPUT0":["a","b"],"id":"7"}'))
    assert reply.body == b'{"OUTPUT0":["a","b"],"id":"7","model_name":"id_bytes","model_version":"1"}'
    assert wire.plane.requests[-1].form.parameters == {"id": "7"}
    before = len(wire.transport.sent)
    wire.feed(post("/v2/models/id_bytes/generate_stream", ONE))
    chunks = take_chunked(bytes(wire.transport.sent[before:]))[1]
    assert chunks == [b'data: {"OUTPUT0":"a","model_name":"id_bytes","model_version":"1"}\n\n', b""]


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("{", 500, "failed to parse the request JSON buffer: Missing a name for object member. at 1"),
        ("", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
        ('{"INPUT0":1}', 500, "Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
        ("{}", 400, "expected 1 inputs but got 0 inputs for model 'talker'."),
    ],
)
def test_what_is_wrong_with_a_request_is_no_event(path: str, body: str, status: int, text: str) -> None:
    """Errors before the model runs are plain JSON, whichever route was asked."""
    reply = Model().ask(path, body=body).reply()
    assert (reply.status, reply.error) == (status, text)


def test_only_post_is_allowed() -> None:
    """The routes are there for POST alone; unknown models are not found."""
    wire = Wire()
    assert wire.ask(get("/v2/models/dec/generate")).status == 405
    assert wire.ask(post("/v2/models/nope/generate_stream", "{")).error == (
        "Request for unknown model: 'nope' is not found"
    )


def test_old_clients_read_to_the_end_of_the_connection() -> None:
    """HTTP/1.0 knows no chunks: the events come as they are, and then the connection closes."""
    model = Model()
    model.wire.feed(post("/v2/models/talker/generate_stream", ONE).replace(b"HTTP/1.1", b"HTTP/1.0"))
    model.say("x")
    model.end()
    head, _, body = model.sent.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert body == event("x")
    assert model.wire.transport.closed


@pytest.mark.parametrize("says", [0, 1])
def test_a_connection_that_shall_close_closes_after_the_stream(says: int) -> None:
    """Connection: close is honoured when the stream has ended, not before."""
    model = Model().ask("generate_stream", "Connection: close")
    for _ in range(says):
        model.say("x")
    assert not model.wire.transport.closed
    model.end()
    assert len(model.stream()[1]) == says + 1
    assert model.wire.transport.closed


def test_a_server_that_stops_lets_streams_end() -> None:
    """Draining closes the connection after the stream's end."""
    model = Model().ask()
    model.say("x")
    model.wire.server.stop_accepting()
    assert not model.wire.transport.closed
    assert model.wire.server.inflight() == 1
    model.end()
    assert model.stream()[1] == [event("x"), b""]
    assert model.wire.transport.closed


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
def test_a_client_that_leaves_cancels_its_request(path: str) -> None:
    """In the queue and inside the model; what the model still says goes nowhere."""
    model = Model().ask(path)
    told: list[InferRequest] = []
    model.request.form.withdraw = told.append
    model.say("x")
    sent = model.sent
    model.wire.transport.close()
    model.wire.connection.connection_lost(None)
    assert model.request.cancelled
    assert told == [model.request]
    model.say("y")
    model.end()
    assert model.sent == sent


def test_the_next_request_waits_for_the_end_of_the_stream() -> None:
    """Requests behind a stream are answered after it, in order."""
    model = Model().ask()
    model.wire.feed(get("/v2/health/live"))
    model.say("x")
    assert model.stream()[1] == [event("x")]
    model.end()
    end = model.sent.index(b"\r\n0\r\n\r\n") + 7
    assert take_apart(model.sent[end:])[0].status == 200


def test_a_client_that_does_not_read_slows_its_model_down() -> None:
    """The flow of the stream is full while the socket is, and free again when it has been read."""
    model = Model().ask()
    flow = model.request.flow
    assert flow is not None
    model.say("x")
    woken: list[bool] = []
    model.wire.connection.pause_writing()
    assert flow.full
    flow.wait(lambda: woken.append(True))
    model.wire.connection.resume_writing()
    assert (flow.full, woken) == (False, [True])


def test_a_stream_behind_an_answer_that_is_not_read_waits_from_its_start() -> None:
    """A socket that was full before the stream began holds the model up as well."""
    model = Model().ask()
    model.wire.connection.pause_writing()
    flow = model.request.flow
    assert flow is not None
    model.say("x")
    assert flow.full
    model.wire.connection.resume_writing()
    assert not flow.full


def test_the_end_of_a_stream_sets_its_model_free() -> None:
    """A model that waits for a client to read is woken when there is nobody left to read."""
    model = Model().ask()
    flow = model.request.flow
    assert flow is not None
    model.say("x")
    model.wire.connection.pause_writing()
    woken: list[bool] = []
    flow.wait(lambda: woken.append(True))
    model.wire.connection.connection_lost(None)
    assert woken == [True]


def test_a_stream_nobody_reads_is_cut_before_it_fills_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """However much a model says, only so much waits for its client."""
    model = Model().ask()
    model.say("x")
    model.wire.transport.waiting = MAX_UNREAD + 1
    model.say("y")
    assert model.wire.transport.aborted
    assert model.request.cancelled
    assert "did not read" in caplog.text


def test_a_stream_may_have_a_deadline() -> None:
    """When the client's time is up the stream ends with an error and the model is told."""
    model = Model().ask("generate_stream", "Request-Timeout: 1.5")
    (timer,) = model.wire.loop.timers
    assert timer.seconds == 1.5
    assert model.request.expires_ns == model.request.received_ns + 1_500_000_000
    model.say("x")
    timer.fire()
    assert model.stream()[1] == [event("x"), b'data: {"error":"Request timeout expired"}\n\n', b""]
    assert model.request.cancelled


def test_an_answer_in_time_stops_the_clock() -> None:
    """Nothing is left to expire after the end."""
    model = Model().ask("generate", "Request-Timeout: 1.5")
    model.say("x", final=True)
    assert model.reply().status == 200
    assert model.wire.loop.timers == []


def test_what_cannot_be_encoded_is_an_error_not_silence() -> None:
    """A model's broken tensor is told of."""
    model = Model().ask()
    model.request.sink.reply(model.request, InferResponse([Tensor("out", BYTES, (1,), b"\1")]), True)
    ((line, end),) = [model.stream()[1]]
    assert line.startswith(b'data: {"error":"the response could not be encoded:')
    assert end == b""


def test_no_body_breaks_an_event() -> None:
    """Line breaks inside a tensor are escaped: one event is one line."""
    model = Model().ask()
    model.say("a\n\ndata: b\r\n")
    (line,) = model.stream()[1]
    assert line.count(b"\n") == 2
    assert json.loads(line.removeprefix(b"data: "))["out"] == "a\n\ndata: b\r\n"


def test_long_bodies_are_refused_before_they_are_read() -> None:
    """The largest input size holds for these routes too."""
    text = Model().ask(body='{"INPUT0":"%s"}' % ("x" * 2000)).reply().error
    assert text.endswith("exceeds the maximum allowed input size of 1000 bytes. Use --http-max-input-size to increase "
                         "the limit.")  # fmt: skip
