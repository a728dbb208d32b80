"""Compressed bodies, deadlines and forwarded headers of HTTP infer, byte by byte."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import partial

import pytest

from conch.config.server import HttpOptions
from conch.types.dtype import FP32
from conch.types.request import InferRequest
from support.http_plane import Plane, give_back, identity_spec
from support.http_wire import Wire, infer, post, take_apart, tensor

UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}
PACK = {"gzip": partial(gzip.compress, mtime=0), "deflate": zlib.compress}
ONE = {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}
PATH = "/v2/models/id_fp32/infer"
BINARY = {"inputs": [tensor("INPUT0", "FP32", [2], size=8)], "parameters": {"binary_data_output": True}}


def held(options: HttpOptions | None = None) -> Wire:
    """A server whose model `held` answers when the test says."""
    plane = Plane(keep=True)
    plane.add(identity_spec("held", FP32), lambda request, spec: None)
    return Wire(plane, options)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_json_is_read(coding: str) -> None:
    """A JSON body may come compressed; the answer is then what it is without."""
    plain = Wire().ask(post(PATH, json.dumps(ONE))).body
    reply = Wire().ask(post(PATH, PACK[coding](json.dumps(ONE).encode()), f"Content-Encoding: {coding}"))
    assert (reply.status, reply.body) == (200, plain)
    assert "Content-Encoding" not in reply.headers


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_binary_tensors_are_read_and_written(coding: str) -> None:
    """The header length counts uncompressed bytes, both ways."""
    whole = infer("id_fp32", BINARY, b"abcdefgh")
    size = whole.partition(b"Inference-Header-Content-Length: ")[2].partition(b"\r\n")[0].decode()
    body = whole.partition(b"\r\n\r\n")[2]
    reply = Wire().ask(
        post(
            PATH,
            PACK[coding](body),
            f"Inference-Header-Content-Length: {size}",
            f"Content-Encoding: {coding}",
            f"Accept-Encoding: {coding}",
        )
    )
    assert reply.headers["Content-Encoding"] == coding
    plain = UNPACK[coding](reply.body)
    assert plain == Wire().ask(whole).body
    text = plain[: int(reply.headers["Inference-Header-Content-Length"])]
    assert json.loads(text)["outputs"][0]["parameters"] == {"binary_data_size": 8}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", b'{"ready":true}'),
        ("/v2/models/id_fp32/generate", b'{"INPUT0":1}'),
        ("/v2/repository/models/two/load", b"{}"),
    ],
)
def test_any_body_may_be_compressed(path: str, body: bytes) -> None:
    """Not those of infer alone."""
    wire = Wire()
    wire.feed(post(path, PACK["gzip"](body), "Content-Encoding: gzip"))
    if "load" in path:
        wire.turn()
    (reply,) = wire.replies()
    assert reply.status == 200


def test_large_bodies_are_uncompressed_beside_the_loop() -> None:
    """The loop goes on meanwhile; the request is answered when it has been read."""
    count = 100_000
    body = json.dumps({"inputs": [tensor("INPUT0", "FP32", [count], [0.0] * count)]}).encode()
    wire = Wire()
    wire.feed(post(PATH, PACK["gzip"](body), "Content-Encoding: gzip", "Accept-Encoding: deflate"))
    assert wire.replies() == []
    while wire.connection.busy:
        wire.turn()
    (reply,) = wire.replies()
    assert len(json.loads(zlib.decompress(reply.body))["outputs"][0]["data"]) == count
    assert wire.ask(post(PATH, json.dumps(ONE))).status == 200


def test_a_client_that_leaves_while_its_body_is_uncompressed_asks_nothing() -> None:
    """Nobody runs a model for a connection that is gone."""
    body = PACK["gzip"](json.dumps(ONE).encode() + b" " * 1_000_000)
    wire = Wire()
    wire.feed(post(PATH, body, "Content-Encoding: gzip"))
    wire.transport.close()
    wire.connection.connection_lost(None)
    wire.turn()
    assert wire.plane.requests == []


TOO_LARGE = (
    "decompressed request size exceeds the maximum allowed input size of 50000 bytes. Use --http-max-input-size to "
    "increase the limit."
)
BAD_BODIES = [
    (b"{}", "gzip", 400, "failed to decompress the gzip request body: incorrect header check"),
    (b"{}", "deflate", 400, "failed to decompress the deflate request body: incorrect header check"),
    (PACK["gzip"](b"{}")[:-1], "gzip", 400, "failed to decompress the gzip request body: it is cut off"),
    (b"", "gzip", 400, "nothing to be decompressed"),
    (b"{}", "br", 501, "Unsupported compression type"),
    (PACK["gzip"](PACK["gzip"](b"{}")), "gzip, gzip", 501, "Unsupported compression type"),
    (
        PACK["gzip"](bytes(100_000)),
        "gzip",
        400,
        TOO_LARGE,
    ),
]


@pytest.mark.parametrize(("body", "coding", "status", "text"), BAD_BODIES)
def test_bodies_that_cannot_be_uncompressed_are_refused(body: bytes, coding: str, status: int, text: str) -> None:
    """With a clear reason, twice the same, and the connection goes on."""
    wire = Wire(options=HttpOptions(max_input_size=50_000))
    for _ in range(2):
        before = len(wire.transport.sent)
        wire.feed(post(PATH, body, f"Content-Encoding: {coding}"))
        if len(wire.transport.sent) == before:
            wire.turn()
        (reply,) = take_apart(bytes(wire.transport.sent[before:]))
        assert (reply.status, reply.error) == (status, text)
        assert reply.headers.get("Accept-Encoding") == ("gzip, deflate" if status == 501 else None)
    assert wire.ask(post(PATH, json.dumps(ONE))).status == 200


def test_compressed_bodies_are_limited_as_they_come() -> None:
    """More compressed bytes than may come out of them are not received, binary tensors or not."""
    wire = Wire(options=HttpOptions(max_input_size=100))
    head = f"POST {PATH} HTTP/1.1\r\nInference-Header-Content-Length: 5\r\nContent-Encoding: gzip\r\n"
    wire.feed(head.encode() + b"Content-Length: 1000\r\n\r\n")
    assert wire.replies()[0].status == 413


def test_errors_are_not_compressed() -> None:
    """Clients read the error's text, whatever they accept."""
    reply = Wire().ask(post(PATH, "{", "Accept-Encoding: gzip"))
    assert "error" in reply.json()


def test_a_request_has_as_long_as_its_client_waits() -> None:
    """When the time is up the client is answered, the request withdrawn, and a later answer goes nowhere."""
    wire = held()
    told: list[InferRequest] = []
    wire.feed(infer("held", ONE, b"", "Request-Timeout: 2.5"))
    (request,) = wire.plane.requests
    request.form.withdraw = told.append
    assert request.expires_ns == request.received_ns + 2_500_000_000
    (timer,) = wire.loop.timers
    assert timer.seconds == 2.5
    timer.fire()
    (reply,) = wire.replies()
    assert (reply.status, reply.error) == (503, "Request timeout expired")
    assert request.cancelled
    assert told == [request]
    give_back(request, request.form.model)
    assert len(wire.replies()) == 1
    assert wire.ask(post(PATH, json.dumps(ONE))).status == 200


def test_answers_errors_and_leaving_stop_the_clock() -> None:
    """No timer outlives its request."""
    wire = held()
    wire.feed(infer("held", ONE, b"", "Request-Timeout: 1"))
    give_back(wire.plane.requests[-1], wire.plane.requests[-1].form.model)
    wire.loop.end_tick()
    assert wire.replies()[0].status == 200
    wire.feed(infer("fail", {"inputs": [tensor("INPUT0", "INT32", [1], [1])]}, b"", "Request-Timeout: 1"))
    wire.feed(infer("held", ONE, b"", "Request-Timeout: 1"))
    wire.connection.connection_lost(None)
    assert wire.loop.timers == []


def test_requests_without_a_deadline_have_no_timer() -> None:
    """Only who asks for a deadline pays for one."""
    wire = held()
    wire.feed(infer("held", ONE))
    assert wire.loop.timers == []
    assert wire.plane.requests[0].expires_ns == 0


@pytest.mark.parametrize("value", ["100m", "0", "-1", "soon"])
def test_bad_deadlines_are_refused(value: str) -> None:
    """With what was expected."""
    reply = Wire().ask(infer("id_fp32", ONE, b"", f"Request-Timeout: {value}"))
    assert reply.status == 400
    assert reply.error == (
        "Unable to parse Request-Timeout, expected seconds as a decimal number greater than 0 such as 2.5, "
        f"got: {value}"
    )


FORWARD = HttpOptions(header_forward_pattern="my_")


def parameters(wire: Wire) -> object:
    return wire.plane.requests[-1].form.parameters


def test_headers_become_parameters() -> None:
    """Each request has the parameters of its own headers, however alike the bodies are."""
    wire = Wire(options=FORWARD)
    for body in (infer("id_fp32", ONE), infer("id_fp32", BINARY, b"abcdefgh")):
        for value in ("1", "2", "1"):
            line = f"My_Own: {value}\r\nOther: x\r\n\r\n".encode()
            assert wire.ask(body.replace(b"\r\n\r\n", b"\r\n" + line, 1)).status == 200
            assert parameters(wire) == {"My_Own": value}
        wire.ask(body)
        assert parameters(wire) is None


def test_headers_are_parameters_of_raw_requests_too() -> None:
    """They are no part of the body."""
    wire = Wire(options=FORWARD)
    wire.ask(post(PATH, bytes(8), "Inference-Header-Content-Length: 0", "my_x: 1"))
    assert parameters(wire) == {"my_x": "1"}


def test_a_header_wins_over_a_parameter_of_its_name() -> None:
    """As in Triton, where it is appended."""
    wire = Wire(options=FORWARD)
    wire.ask(infer("id_fp32", {**ONE, "parameters": {"my_x": "body", "y": 1}}, b"", "my_x: header"))
    assert parameters(wire) == {"my_x": "header", "y": 1}


def test_only_infer_forwards_headers() -> None:
    """Generate does not, nor does a server without the flag."""
    wire = Wire(options=FORWARD)
    wire.ask(post("/v2/models/id_fp32/generate", '{"INPUT0":1}', "my_x: 1"))
    assert parameters(wire) is None
    wire = Wire()
    wire.ask(infer("id_fp32", ONE, b"", "my_x: 1"))
    assert parameters(wire) is None


def test_reserved_headers_are_refused() -> None:
    """A pattern that takes them makes the request an error, before the model is asked."""
    wire = Wire(options=HttpOptions(header_forward_pattern="time|triton"))
    reply = wire.ask(infer("id_fp32", ONE, b"", "Timeout: 1"))
    assert (reply.status, reply.error) == (
        400,
        "Header 'Timeout' is reserved for Triton usage and cannot be forwarded.",
    )
    assert wire.plane.requests == []


def test_load_is_not_reported_where_nothing_reports_it(caplog: pytest.LogCaptureFixture) -> None:
    """The header is left out and the log says why."""
    body = '{"INPUT0":1}'
    reply = Wire().ask(post("/v2/models/id_fp32/generate", body, "endpoint-load-metrics-format: json"))
    assert reply.status == 200
    assert "endpoint-load-metrics" not in reply.headers
    assert "no model reports" in caplog.text
