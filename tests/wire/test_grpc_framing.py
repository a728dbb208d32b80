"""gRPC's own rules over HTTP/2: content types, prefixes, encodings, deadlines, cancelling, draining."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import uvloop

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc_status import percent_encode
from conch.transport import http2_frames as h2
from conch.transport.grpc_deadline import Deadline
from conch.transport.grpc_headers import parse_timeout
from conch.transport.http2_frames import ErrorCode as E
from conch.types.error import Code, InferError
from conch.types.response import FINAL, InferResponse
from support.h2client import INFER, LIVE, Served, Wire, block, data, framed, headers, infer, infer_message

LOAD = b"/inference.GRPCInferenceService/RepositoryModelLoad"


@pytest.fixture
def served():
    server = Served()
    yield server
    server.close()


def call(served: Served, path: bytes, message: bytes = b"", *extra: tuple[bytes, bytes]) -> tuple[int, str]:
    served.feed(headers(1, block(path, *extra)) + data(1, framed(message)))
    return served.status(1)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (((b":method", b"GET"), (b":scheme", b"http"), (b":path", LIVE)), "405"),
        (((b":method", b"POST"), (b":scheme", b"http"), (b":path", LIVE)), "415"),
        (((b":method", b"POST"), (b":scheme", b"http"), (b":path", LIVE), (b"content-type", b"text/plain")), "415"),
    ],
)
def test_who_does_not_speak_grpc_gets_an_http_status(served: Served, fields: object, status: str) -> None:
    """Other methods are 405, other content types 415."""
    served.feed(headers(1, block(base=fields), end=True))
    served.frames()
    assert served.fields[1][":status"] == status


def test_a_refusal_waits_for_nothing(served: Served) -> None:
    """A streaming client that has sent only its headers hears at once that there is no such method."""
    served.feed(headers(1, block(b"/inference.GRPCInferenceService/ModelStreamNope")))
    served.turn()
    assert served.status(1)[0] == 12
    assert not served.connection.streams


def test_http_clients_may_finish_sending(served: Served) -> None:
    """Who does not speak gRPC is answered after the last byte, or after a megabyte."""
    base = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"))
    served.feed(headers(1, block(base=base)), data(1, bytes(1 << 19), end=False))
    assert not served.resets()
    served.feed(data(1, b"x"))
    assert not served.resets()
    assert served.fields[1][":status"] == "415"
    served.feed(headers(3, block(base=base)), *[data(3, bytes(1 << 19), end=False)] * 3)
    assert served.resets() == {3: E.NO_ERROR}


@pytest.mark.parametrize("kind", [b"application/grpc+proto", b"application/grpc;charset=utf-8"])
def test_content_type_may_name_the_codec(served: Served, kind: bytes) -> None:
    """application/grpc may have a suffix or parameters."""
    base = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", LIVE), (b"content-type", kind))
    served.feed(headers(1, block(base=base)) + data(1, framed()))
    assert served.status(1) == (0, "")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 13, "the call has ended with no message"),
        (b"\0\0", 13, "the call has ended with only a part of its message"),
        (b"\0\0\0\0\5abc", 13, "the call has ended with only a part of its message"),
        (framed() + b"x", 13, "the call takes one message, but more was sent"),
        (framed() + framed(), 13, "the call takes one message, but more was sent"),
        (b"\1\0\0\0\0", 13, "the message is marked as compressed, but grpc-encoding names no compression"),
        (b"\7\0\0\0\0", 13, "the message's first byte is 7, expected 0 or 1"),
        (framed(b"\x0a\xff"), 13, "Unable to parse request"),
    ],
)
def test_broken_bodies(served: Served, body: bytes, status: int, text: str) -> None:
    """A body that is not exactly one readable message is answered with the reason."""
    served.feed(headers(1, block(INFER)), data(1, body))
    assert served.status(1) == (status, text)
    assert not served.connection.streams


@pytest.mark.parametrize(
    ("path", "extra", "status", "text"),
    [
        (b"/inference.GRPCInferenceService/Nope", (), 12, "there is no method /inference.GRPCInferenceService/Nope"),
        (LIVE, ((b"grpc-encoding", b"br"),), 12,
         "the message encoding 'br' is not supported, send it uncompressed"),
        (LIVE, ((b"grpc-encoding", b"gzip"),), 0, ""),
        (LIVE, ((b"grpc-encoding", b"identity"),), 0, ""),
        (LIVE, ((b"grpc-timeout", b"5x"),), 13,
         "malformed grpc-timeout b'5x', expected up to 8 digits and a unit"),
        (LIVE, ((b"grpc-timeout", b"5S"),), 0, ""),
    ],
)  # fmt: skip
def test_headers_decide(served: Served, path: bytes, extra: tuple, status: int, text: str) -> None:
    """Unknown methods, encodings and malformed deadlines are told apart by status and text."""
    assert call(served, path, b"", *extra) == (status, text)
    if text.startswith("the message encoding"):
        assert served.fields[1]["grpc-accept-encoding"] == "identity,deflate,gzip"


def test_a_deadline_cancels() -> None:
    """When the client's time is over it gets DEADLINE_EXCEEDED, and the request is marked as cancelled."""
    served = Served("hold")
    served.feed(infer(1, None, (b"grpc-timeout", b"1H")))
    (request,) = served.scheduler.held
    assert not request.cancelled
    served.skip(3601)
    assert request.cancelled
    assert served.status(1) == (4, "Deadline Exceeded")
    served.scheduler.release()
    served.turn()
    assert 1 not in served.messages
    served.close()


@pytest.mark.parametrize("kind", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("seconds", [0.0, 1e-9, 4e-4, 5.0, 99_999_999 * 3600.0])
def test_deadlines_of_any_length(kind: Callable[[], asyncio.AbstractEventLoop], seconds: float) -> None:
    """The time at which nobody waits any more is known, whatever the loop makes of so short or so long a time."""
    with closing(kind()) as loop:
        before = time.monotonic_ns()
        deadline = Deadline(loop, seconds, loop.stop)
        assert before <= deadline.expires_ns - int(seconds * 1e9) <= time.monotonic_ns()
        if seconds < 1:
            loop.run_forever()
        deadline.cancel()


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_who_leaves_is_not_computed_for(how: str) -> None:
    """RST_STREAM or a lost connection marks the request as cancelled, and a late answer is swallowed."""
    served = Served("hold")
    served.feed(infer(1))
    (request,) = served.scheduler.held
    if how == "reset":
        served.feed(h2.rst_stream(1, E.CANCEL))
    else:
        served.connection.connection_lost(None)
    assert request.cancelled
    served.scheduler.release()
    served.turn()
    assert 1 not in served.messages
    assert not served.connection.streams
    served.loop.close()


def test_an_answered_request_is_not_cancelled() -> None:
    """`cancelled` stays false on requests that were answered."""
    served = Served("hold")
    served.feed(infer(1))
    (request,) = served.scheduler.held
    served.scheduler.release()
    served.turn()
    assert served.status(1) == (0, "")
    assert not request.cancelled
    served.close()


def test_errors_of_the_model() -> None:
    """An InferError becomes its gRPC status, its message percent-encoded, in trailers only."""
    served = Served()
    served.scheduler.error = InferError(Code.UNAVAILABLE, "50 % süß\n")
    served.feed(infer(1))
    assert served.status(1) == (14, "50 %25 s%C3%BC%C3%9F%0A")
    assert 1 not in served.messages
    served.close()


def test_no_answer() -> None:
    """A model that ends without a response gets its caller an error, as one that answers twice."""
    served = Served("hold")
    served.feed(infer(1))
    (request,) = served.scheduler.held
    request.sink.reply(request, FINAL, final=True)
    served.turn()
    assert served.status(1) == (13, "expected a single response, got 0")
    served.close()


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"n": -(2**63) - 1}, "the response's parameter 'n' cannot be sent over gRPC: "),
        ({"n": 2**64}, "the response's parameter 'n' cannot be sent over gRPC: "),
        ({"s": "\ud800"}, "the response's parameter 's' cannot be sent over gRPC: "),
        ({"n": ()}, "the server failed to write the response: TypeError"),
    ],
)
def test_an_answer_that_cannot_be_written_is_an_error(parameters: dict[str, Any], text: str) -> None:
    """The client hears of it, on a stream too; it does not wait for ever."""
    served = Served("hold")
    served.feed(infer(1), headers(3, block(b"/inference.GRPCInferenceService/ModelStreamInfer")))
    served.feed(data(3, framed(infer_message().SerializeToString()), end=False))
    for request in served.scheduler.held:
        request.sink.reply(request, InferResponse((), parameters), final=True)
    served.turn()
    status, message = served.status(1)
    assert (status, message[: len(text)]) == (13, text)
    answer = pb.ModelStreamInferResponse.FromString(served.messages[3][5:])
    assert answer.error_message.startswith(text)
    served.close()


def test_large_numbers_of_a_response() -> None:
    """A parameter between 2^63 and 2^64 is an unsigned one."""
    served = Served("hold")
    served.feed(infer(1))
    (request,) = served.scheduler.held
    request.sink.reply(request, InferResponse((), {"n": 2**64 - 1, "m": 2**63 - 1}), final=True)
    served.turn()
    served.frames()
    answer = pb.ModelInferResponse.FromString(served.messages[1][5:])
    assert (answer.parameters["n"].uint64_param, answer.parameters["m"].int64_param) == (2**64 - 1, 2**63 - 1)
    served.close()


def test_more_than_one_answer() -> None:
    """A model that answers twice gets its caller an error."""
    served = Served("hold")
    served.feed(infer(1))
    (request,) = served.scheduler.held
    request.sink.reply(request, None, final=False)
    served.scheduler.release()
    served.turn()
    assert served.status(1) == (13, "expected a single response, got 2")
    served.close()


def test_draining() -> None:
    """After stop_accepting new calls fail, also on known headers; health is answered, calls in flight end well."""
    served = Served("hold")
    served.feed(infer(1))
    served.grpc.stop_accepting()
    served.turn()
    assert served.goaway() == E.NO_ERROR
    text = "GRPC server is shutting down and has stopped accepting new requests."
    served.feed(infer(3), headers(5) + data(5, framed()))
    assert served.status(3) == (14, text)
    assert served.status(5) == (0, "")
    assert served.grpc.inflight() == 1
    served.scheduler.release()
    served.turn()
    assert served.status(1) == (0, "")
    assert (served.grpc.inflight(), served.grpc.connections()) == (0, 1)
    served.close()
    assert served.grpc.connections() == 0


def test_a_connection_that_cannot_be_looked_after_is_hung_up_on() -> None:
    """A fault in the care for one connection does not end that for the others."""
    served = Served()
    served.connection.upkeep = None
    others = [served.grpc.connection() for _ in range(8)]
    wires = [Wire() for _ in others]
    for other, wire in zip(others, wires, strict=True):
        other.connection_made(wire)
        other.pause_writing()
        other._stalled_at = -100.0
    served.grpc._sweep()
    assert served.wire.aborted
    assert all(wire.aborted for wire in wires)
    served.grpc._sweeper.cancel()
    for other in others:
        other.connection_lost(None)
    served.close()


def test_answers_are_headers_message_trailers(served: Served) -> None:
    """Every answer, first or later, is HEADERS, DATA with the prefix, and HEADERS that end the stream."""
    for stream in (1, 3, 5):
        served.feed(infer(stream, infer_message("é" * stream)))
        kinds = [(kind, flags) for kind, flags, number, _ in served.frames() if number == stream]
        assert kinds == [(h2.HEADERS, 4), (h2.DATA, 0), (h2.HEADERS, 5)]
        assert served.fields[stream] == {
            ":status": "200", "content-type": "application/grpc", "grpc-status": "0",
        }  # fmt: skip
        raw = served.messages[stream]
        assert struct.unpack(">BI", raw[:5]) == (0, len(raw) - 5)
        assert pb.ModelInferResponse.FromString(raw[5:]).id == "é" * stream


PARAMETER = pb.ModelRepositoryParameter
LOADS = {
    "config": ({"config": PARAMETER(string_param="{}")}, (0, "")),
    "file": ({"file:1/a": PARAMETER(bytes_param=b"x")}, (0, "")),
    "unknown": ({"foo": PARAMETER(string_param="x")}, (3, "unrecognized load parameter 'foo'.")),
    "config kind": (
        {"config": PARAMETER(bytes_param=b"x")},
        (3, "invalid value type for load parameter 'config', expected string_param."),
    ),
    "file kind": (
        {"file:1/a": PARAMETER(string_param="x")},
        (3, "invalid value type for load parameter 'file:1/a', expected bytes_param."),
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_load_parameters(served: Served, name: str) -> None:
    """`config` is a string, `file:` raw bytes, anything else is refused in Triton's words."""
    parameters, expected = LOADS[name]
    request = pb.RepositoryModelLoadRequest(model_name="identity", parameters=parameters)
    assert call(served, LOAD, request.SerializeToString()) == expected
    assert bool(served.control.calls) == (expected[0] == 0)


def test_a_load_that_fails(served: Served) -> None:
    """The load's own error is the call's."""
    request = pb.RepositoryModelLoadRequest(model_name="broken")
    assert call(served, LOAD, request.SerializeToString()) == (3, "load failed for model 'broken': it is")


def test_repository_names_are_refused(served: Served) -> None:
    """There is one repository name space, as in Triton."""
    request = pb.RepositoryModelLoadRequest(repository_name="x", model_name="identity")
    assert call(served, LOAD, request.SerializeToString()) == (
        12, "'repository_name' specification is not supported",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wire"), [("plain", b"plain"), ("a%b", b"a%25b"), ("ä\n", b"%C3%A4%0A"), ("\ud800", b"?")]
)
def test_percent_encoding(text: str, wire: bytes) -> None:
    """Everything but printable ASCII and the percent sign is escaped."""
    assert percent_encode(text) == wire


def test_long_messages_are_cut() -> None:
    """grpc-message stays within what clients take as trailers."""
    assert len(percent_encode("x" * 100_000)) == 4099


@pytest.mark.parametrize("text", ["中" * 4000, "\n" * 4000, "%" * 4096, "é" * 2000 + "x" * 96])
def test_what_is_long_once_it_is_escaped_is_cut(text: str) -> None:
    """An escape takes three bytes: what travels counts, and no character is cut in two."""
    wire = percent_encode(text)
    assert len(wire) <= 7168
    cut = unquote_to_bytes(wire).decode()
    assert cut.endswith("...")
    assert text.startswith(cut[:-3])


@pytest.mark.parametrize(
    ("wire", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"123456789S", None),
     (b"S", None), (b"", None), (b"1s", None), (b"-1S", None)],
)  # fmt: skip
def test_timeouts(wire: bytes, seconds: float | None) -> None:
    """One to eight digits and a unit."""
    assert parse_timeout(wire) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("streams", [False, True])
def test_a_trace_context_comes_with_the_call(streams: bool) -> None:
    """Both fields of W3C are there for who traces the request; a `tracestate` in pieces is one list."""
    served = Served("hold")
    extra = ((b"traceparent", b"00-1"), (b"tracestate", b"a=1"), (b"tracestate", b"b=2"))
    path = INFER if not streams else b"/inference.GRPCInferenceService/ModelStreamInfer"
    for stream, more in ((1, extra), (3, ())):
        served.feed(headers(stream, block(path, *more)), data(stream, framed(infer_message().SerializeToString())))
    sinks: list[Any] = [request.sink for request in served.scheduler.held]
    assert [(each.protocol, each.trace_context, each.trace_state) for each in sinks] == [
        ("GRPC", "00-1", "a=1,b=2"),
        ("GRPC", "", ""),
    ]
    served.close()
