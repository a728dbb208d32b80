"""Keepalive, age, forwarded metadata, health that is watched and reflection, on the wire."""

from __future__ import annotations

import struct

import pytest

from conch.pb import grpc_service_pb2, health_pb2, reflection_pb2
from conch.protocol.v2.reflection import reflect
from conch.transport import http2_frames as h2
from conch.transport.http2_frames import ErrorCode as E
from conch.types.error import InferError
from support.h2client import INFER, Served, block, data, framed, headers, infer, infer_message

PING = h2.frame(h2.PING, 0, 0, b"12345678")
WATCH = b"/grpc.health.v1.Health/Watch"
REFLECT = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


# -- keepalive


def test_too_many_pings_end_the_connection() -> None:
    """The first ping is free, then two strikes, then GOAWAY in gRPC's words."""
    served = Served()
    served.feed(PING, PING, PING)
    assert not served.wire.closed
    served.feed(PING)
    goaway = [payload for kind, _, _, payload in served.frames() if kind == h2.GOAWAY]
    assert goaway[0][4:] == E.ENHANCE_YOUR_CALM.to_bytes(4, "big") + b"too_many_pings"
    assert served.wire.closed
    served.close()


@pytest.mark.parametrize("options", [{"max_ping_strikes": 0}, {"min_recv_ping_interval_ms": 0}])
def test_pings_may_be_allowed(options: dict[str, int]) -> None:
    """Without a limit of strikes, or of the interval while there are calls, pings are only answered."""
    served = Served("hold", **options)
    served.feed(infer(1), *[PING] * 20)
    assert not served.wire.closed
    assert len([1 for kind, flags, _, _ in served.frames() if kind == h2.PING and flags & h2.ACK]) == 20
    served.close()


def test_pings_between_answers_are_no_strikes() -> None:
    """A client that measures its bandwidth pings after what it receives."""
    served = Served()
    for stream in range(1, 41, 2):
        served.feed(infer(stream) + PING)
    assert not served.wire.closed
    served.close()


def test_pings_about_a_burst_of_answers_are_no_strikes() -> None:
    """A client that reads a burst piece by piece pings for each piece, with nothing from us in between."""
    served = Served()
    served.feed(*[infer(stream) for stream in range(1, 41, 2)], *[PING] * 20)
    assert not served.wire.closed
    served.close()


def test_we_ping_and_give_up() -> None:
    """With --grpc-keepalive-time a silent client with calls is pinged; without an answer it is hung up on."""
    served = Served("hold", keepalive_time_ms=1000, keepalive_timeout_ms=500)
    served.feed(infer(1))
    request = served.scheduler.held[0]
    start = served.loop.time()
    served.connection.check(start)
    served.frames()
    served.connection.check(start + 1.1)
    pings = [payload for kind, flags, _, payload in served.frames() if kind == h2.PING and not flags]
    assert len(pings) == 1
    served.feed(h2.frame(h2.PING, h2.ACK, 0, pings[0]))
    served.connection.check(start + 1.7)
    assert not served.wire.aborted
    served.connection.check(start + 2.8)
    served.connection.check(start + 3.4)
    assert served.wire.aborted
    served.close()
    assert request.cancelled


def test_an_old_connection_leaves_with_grace() -> None:
    """--grpc-max-connection-age: GOAWAY first, the end when the calls are done, or when the grace is over."""
    for grace in (0, 5000):
        served = Served("hold", max_connection_age_ms=10_000, max_connection_age_grace_ms=grace)
        served.feed(infer(1))
        start = served.loop.time()
        served.connection.check(start + 5)
        assert served.goaway() is None
        served.connection.check(start + 12)
        assert served.goaway() == E.NO_ERROR
        assert not served.wire.closed
        if grace:
            served.connection.check(start + 18)
            assert served.scheduler.held[0].cancelled
        else:
            served.scheduler.release()
            served.turn()
            assert served.status(1) == (0, "")
            served.connection.check(start + 18)
        assert served.wire.closed
        served.close()


# -- forwarded metadata


def forwarding(pattern: str = "x-|^user-agent$|^priority$|^triton_y$") -> Served:
    return Served("hold", header_forward_pattern=pattern)


def test_metadata_become_parameters() -> None:
    """Names are searched for the pattern whatever their case; what the request says itself is kept beside them."""
    served = forwarding("^X-")
    message = infer_message("a")
    message.parameters["own"].int64_param = 3
    message.parameters["x-b"].string_param = "its own"
    extra = ((b"x-a", b"1"), (b"x-b", b"\xc3\xa9"), (b"other", b"2"), (b"grpc-x-", b"no"))
    for stream in (1, 3, 5):
        served.feed(infer(stream, message, *extra))
    served.feed(infer(7, message))
    forms = [request.form for request in served.scheduler.held]
    assert forms[0].parameters == {"own": 3, "x-a": "1", "x-b": "é"}
    assert forms[0] is forms[1] is forms[2]
    assert forms[3].parameters == {"own": 3, "x-b": "its own"}
    served.close()


def test_forwarded_metadata_on_a_stream() -> None:
    """The metadata of a stream belong to all its requests."""
    served = forwarding()
    served.feed(headers(1, block(b"/inference.GRPCInferenceService/ModelStreamInfer", (b"x-a", b"1"))))
    served.feed(data(1, framed(infer_message().SerializeToString()) * 2, end=False))
    assert [request.form.parameters for request in served.scheduler.held] == [{"x-a": "1"}] * 2
    served.close()


@pytest.mark.parametrize("name", [b"priority", b"triton_y"])
def test_reserved_names_are_not_forwarded(name: bytes) -> None:
    """A name that steers the server is refused when the pattern takes it, and is nobody's business else."""
    served = forwarding()
    served.feed(infer(1, None, (name, b"1")))
    text = f"Header '{name.decode()}' is reserved for Triton usage and cannot be forwarded."
    assert served.status(1) == (3, text)
    served.close()
    served = Served(header_forward_pattern="^x-")
    served.feed(infer(1, None, (name, b"1")))
    assert served.status(1) == (0, "")
    served.close()


# -- health


def watched(served: Served, stream: int = 1) -> list[int]:
    served.frames()
    raw, found, at = served.messages.get(stream, b""), [], 0
    while at < len(raw):
        size = struct.unpack_from(">BI", raw, at)[1]
        found.append(health_pb2.HealthCheckResponse.FromString(raw[at + 5 : at + 5 + size]).status)
        at += 5 + size
    return found


def test_health_is_watched() -> None:
    """The state comes at once and whenever it changes, until the client leaves."""
    served = Served()
    served.feed(headers(1, block(WATCH)) + data(1, framed()))
    assert watched(served) == [1]
    for ready, states in ((False, [1, 2]), (True, [1, 2, 1])):
        served.registry.is_ready = ready
        served.skip(1)
        assert watched(served) == states
    served.feed(h2.rst_stream(1, E.CANCEL))
    assert not served.connection.streams
    served.feed(headers(3, block(WATCH)) + data(3, framed()))
    served.grpc.stop_accepting()
    served.turn()
    assert served.status(3)[0] == 14
    served.close()


@pytest.mark.parametrize("body", [b"", framed() + framed(), framed(b"\x0a\xff")])
def test_a_watch_takes_one_message(body: bytes) -> None:
    """No message, two, or what is none, end the call."""
    served = Served()
    served.feed(headers(1, block(WATCH)) + data(1, body))
    assert served.status(1)[0] == 13
    served.close()


# -- reflection


def ask(**question: object) -> reflection_pb2.ServerReflectionResponse:
    raw = reflection_pb2.ServerReflectionRequest(host="h", **question).SerializeToString()
    return reflection_pb2.ServerReflectionResponse.FromString(reflect(raw))


def test_reflection_lists_the_services() -> None:
    """All services, each with a method."""
    names = [each.name for each in ask(list_services="*").list_services_response.service]
    assert names == [
        "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "grpc_service.proto"},
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_containing_symbol": "inference.GRPCInferenceService.ModelInfer"},
        {"file_containing_symbol": "inference.ModelInferRequest"},
    ],
)
def test_reflection_describes_files(question: dict[str, str]) -> None:
    """The file comes first, then those that it needs."""
    files = ask(**question).file_descriptor_response.file_descriptor_proto
    assert files[0] == grpc_service_pb2.DESCRIPTOR.serialized_pb
    assert len(files) == 2


def test_reflection_says_what_it_does_not_know() -> None:
    """Unknown names are NOT_FOUND, an empty question INVALID_ARGUMENT, garbage an error of the call."""
    for question in (
        {"file_by_filename": "no.proto"},
        {"file_containing_symbol": "no.Such"},
        {"all_extension_numbers_of_type": "no.Such"},
        {"file_containing_extension": {"containing_type": "inference.ModelInferRequest", "extension_number": 1}},
    ):
        answer = ask(**question)
        assert answer.error_response.error_code == 5
        assert answer.valid_host == "h"
    assert ask().error_response.error_code == 3
    numbers = ask(all_extension_numbers_of_type="inference.ModelInferRequest").all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == ("inference.ModelInferRequest", [])
    with pytest.raises(InferError):
        reflect(b"\x3a\xff")
    served = Served()
    served.feed(headers(1, block(REFLECT)) + data(1, framed(b"\x3a\xff")))
    assert served.status(1) == (13, "Unable to parse request")
    served.close()


def test_codecs_for_metadata_are_bounded() -> None:
    """More distinct metadata than codecs are kept for still come to the right requests."""
    served = forwarding("^x-")
    for number in range(40):
        served.feed(headers(2 * number + 1, block(INFER, (b"x-n", b"%d" % number))))
        served.feed(data(2 * number + 1, framed(infer_message().SerializeToString())))
    assert [request.form.parameters for request in served.scheduler.held] == [{"x-n": str(n)} for n in range(40)]
    served.close()
