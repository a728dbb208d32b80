"""HTTP/1.1 framing: what is a request, what is refused, and that how bytes arrive changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.transport import bodies
from conch.types.dtype import FP32
from support.deliver import deliver
from support.http_plane import Plane, from_thread, give_back, identity_spec
from support.http_wire import Wire, get, infer, post, tensor

LIVE = get("/v2/health/live")
BINARY = infer("id_fp32", {"id": "a", "inputs": [tensor("INPUT0", "FP32", [2], size=8)]}, b"\0\0\x80?\0\0\0@")
CHUNKED = (
    b"POST /v2/models/id_fp32/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'1b;x=y\r\n{"inputs":[{"name":"INPUT0"\r\n'
    b'30 \r\n,"datatype":"FP32","shape":[1],"data":[1.5]}]}  \r\n'
    b"0\r\nTrailer: dropped\r\n\r\n"
)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.mark.parametrize("request_bytes", [LIVE, BINARY, CHUNKED, LIVE + BINARY + CHUNKED + LIVE])
def test_every_split_gives_the_same_answer(request_bytes: bytes) -> None:
    """A request cut in two at any byte, or into single bytes, is answered as when it comes in one piece."""
    whole = Wire().feed(request_bytes)
    assert whole.replies()
    assert {reply.status for reply in whole.replies()} == {200}
    for cut in range(1, len(request_bytes)):
        parts = Wire().feed(request_bytes[:cut], request_bytes[cut:])
        assert parts.transport.sent == whole.transport.sent, cut
    single = Wire().feed(*[request_bytes[i : i + 1] for i in range(len(request_bytes))])
    assert single.transport.sent == whole.transport.sent


def test_pipelined_requests_are_answered_in_order_with_one_write(wire: Wire) -> None:
    """Requests that arrive together are answered in order, in one write."""
    wire.feed(LIVE + get("/nope") + BINARY)
    assert [reply.status for reply in wire.replies()] == [200, 404, 200]
    assert wire.transport.writes == 1


MALFORMED = [
    (b"GET /v2 HTTP/1.1\nHost: a\n\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nA: b\nC: d\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nA: \0\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nA: a\rb\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nNo colon\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\n: b\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET  /v2 HTTP/1.1\r\n\r\n", 400),
    (b"GET /v2\r\n\r\n", 400),
    (b"GET /v2 HTTP/2.0\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.10\r\n\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"BREW /v2 HTTP/1.1\r\n\r\n", 405),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length:  5,5\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: 0x5\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length:\r\n\r\nhello", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
    (b"POST /v2 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
    (b"POST /v2 HTTP/1.1\r\nExpect: a-miracle\r\nContent-Length: 5\r\n\r\n", 417),
    (b"GET /v2 HTTP/1.1\r\nA: " + b"b" * 70_000, 431),
    (b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    (b"POST /v2 HTTP/1.1\r\nContent-Length: 70000000\r\n\r\n", 400),
]
_CHUNKED_HEAD = b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = [
    b"5\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"\r\nhello", b"5\r\nhelloX\r\n",
    b"5\r\nhello\n",
    b"-1\r\n", b"ffffffffffffffffff\r\n", b"g\r\n", b"5;" + b"a" * 5000, b"ffffffff\r\n", b"5 5\r\nhello\r\n",
    b"0\r\n" + b"A: b\r\n" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize(("request_bytes", "status"), MALFORMED + [(_CHUNKED_HEAD + bad, 0) for bad in BAD_CHUNKS])
def test_what_breaks_the_rules_is_refused_once(wire: Wire, request_bytes: bytes, status: int) -> None:
    """Whatever could be read in two ways gets one clear error, `Connection: close`, and nothing after it is served."""
    wire.feed(request_bytes, LIVE)
    (reply,) = wire.replies()
    assert reply.status == status or (not status and reply.status in {400, 413, 431})
    assert reply.headers["Connection"] == "close"
    assert reply.error
    assert wire.transport.ended
    assert wire.plane.requests == []


def test_too_many_chunks_are_refused_in_tritons_words(wire: Wire) -> None:
    """More than 65536 non-empty chunks end the request and the connection."""
    wire.feed(_CHUNKED_HEAD, b"1\r\na\r\n" * 65_537)
    (reply,) = wire.replies()
    assert reply.error == (
        "Chunked request body exceeds maximum of 65536 non-empty chunks. Send fewer or larger HTTP chunks."
    )


def test_continue_is_said_once_and_only_before_the_body(wire: Wire) -> None:
    """`Expect: 100-continue` gets its line when the body has not come yet, and none when it has."""
    request_bytes = BINARY.replace(b"Host: test\r\n", b"Host: test\r\nExpect: 100-continue\r\n")
    end = request_bytes.index(b"\r\n\r\n") + 4
    wire.feed(request_bytes[:end])
    assert wire.transport.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.feed(request_bytes[end : end + 5], request_bytes[end + 5 :])
    assert [reply.status for reply in wire.replies()] == [100, 200]
    assert [reply.status for reply in Wire().feed(request_bytes).replies()] == [200]


@pytest.mark.parametrize(
    ("version", "connection", "says", "stays"),
    [
        ("1.1", "", None, True),
        ("1.1", "close", "close", False),
        ("1.1", "Keep-Alive, Close", "close", False),
        ("1.0", "", "close", False),
        ("1.0", "keep-alive", "keep-alive", True),
    ],
)
def test_who_closes(wire: Wire, version: str, connection: str, says: str | None, stays: bool) -> None:
    """HTTP/1.1 keeps a connection unless told to close; HTTP/1.0 closes unless asked to keep it."""
    line = f"Connection: {connection}\r\n" if connection else ""
    wire.feed(f"GET /v2 HTTP/{version}\r\n{line}\r\n".encode())
    (reply,) = wire.replies()
    assert reply.headers.get("Connection") == says
    assert wire.transport.closed is not stays


def test_head_has_no_body(wire: Wire) -> None:
    """The answer to HEAD is that of an unsupported method, without its body."""
    wire.feed(get("/v2", "HEAD"))
    assert wire.transport.sent.endswith(b"Content-Length: 30\r\n\r\n")
    assert wire.transport.sent.startswith(b"HTTP/1.1 405 Not Allowed\r\n")


def test_empty_lines_between_requests_are_forgiven(wire: Wire) -> None:
    """An empty line before a request is skipped (RFC 9112 2.2)."""
    wire.feed(b"\r\n\r\n" + LIVE + b"\r\n" + LIVE)
    assert [reply.status for reply in wire.replies()] == [200, 200]


def test_a_large_body_grows_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body's memory follows the bytes received, not the length announced."""
    monkeypatch.setattr(bodies, "_FIRST", 1 << 20)
    wire = Wire()
    size = 6 << 20
    head = {"inputs": [tensor("INPUT0", "UINT8", [size], size=size)], "parameters": {"binary_data_output": True}}
    data = infer("large", head, bytes(range(256)) * (size // 256))
    body = wire.feed(data[:300]).connection._body
    assert len(body.room()) <= 1 << 20  # type: ignore[union-attr]
    wire.feed(*[data[i : i + 99_999] for i in range(300, len(data), 99_999)])
    (reply,) = wire.replies()
    assert reply.status == 200
    assert reply.body.endswith(bytes(range(256)) * (size // 256))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=20))
def test_a_large_body_is_whole_however_it_comes_and_what_follows_is_served(cuts: list[int]) -> None:
    wire = Wire()
    size = 300_000
    blob = bytes(range(250)) * (size // 250)
    head = {"inputs": [tensor("INPUT0", "UINT8", [size], size=size)], "parameters": {"binary_data_output": True}}
    data = infer("large", head, blob) + LIVE + infer("large", head, blob)
    at = 0
    for cut in [*cuts, len(data)]:
        wire.feed(data[at : at + cut])
        at += cut
    first, live, last = wire.replies()
    assert first.body.endswith(blob)
    assert live.status == 200
    assert last.body == first.body


def test_a_client_that_stops_within_a_large_body_is_told_so() -> None:
    wire = Wire()
    head = {"inputs": [tensor("INPUT0", "UINT8", [1 << 20], size=1 << 20)]}
    wire.feed(infer("large", head, bytes(1 << 20))[:500_000])
    wire.connection._quiet_since -= 100
    wire.connection.tick(60.0)
    wire.feed(bytes(200_000))
    (reply,) = wire.replies()
    assert reply.status == 408


def test_one_request_at_a_time_and_a_bound_on_the_rest() -> None:
    """While a request is being answered the next ones wait, and past a bound the socket is not read."""
    plane = Plane(keep=True)
    plane.add(identity_spec("held", FP32), lambda request, spec: None)
    wire = Wire(plane)
    held = infer("held", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]})
    wire.feed(held + held)
    assert len(plane.requests) == 1
    wire.feed(LIVE * 2000)
    assert wire.transport.reading
    wire.feed(LIVE * 8000)
    assert not wire.transport.reading
    request = plane.requests[0]
    give_back(request, request.form.model)
    wire.loop.end_tick()
    assert len(plane.requests) == 2
    give_back(plane.requests[1], request.form.model)
    wire.loop.end_tick()
    assert wire.transport.reading
    assert len(wire.replies()) == 10_002


def test_a_client_that_does_not_read_is_not_read(wire: Wire) -> None:
    """Write back-pressure stops reading and serving; both go on when the client reads again."""
    wire.connection.pause_writing()
    assert not wire.transport.reading
    wire.feed(LIVE)
    assert wire.transport.sent == b""
    wire.connection.resume_writing()
    assert wire.transport.reading
    assert [reply.status for reply in wire.replies()] == [200]


def test_slow_senders_are_cut(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head or a body that stalls gets 408 and the connection closes; an idle connection is left alone."""
    clock = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: clock[0])
    clock[0] += 1e6
    wire.connection.tick(60)
    assert wire.transport.sent == b""
    for part in (b"GET /v2 HT", BINARY[:-3], BINARY[:-3] + b""):
        wire.open()
        wire.feed(part)
        clock[0] += 59
        wire.connection.tick(60)
        assert wire.transport.sent == b""
        clock[0] += 2
        wire.connection.tick(60)
        (reply,) = wire.replies()
        assert (reply.status, wire.transport.ended) == (408, True)
        clock[0] += 3
        wire.connection.tick(60)
        assert wire.transport.aborted


def test_clients_that_never_read_are_cut(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes nothing of its answer for the whole time limit is disconnected; a slow one is not."""
    clock = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: clock[0])
    wire.transport.waiting = 100_000
    wire.connection.pause_writing()
    clock[0] += 61
    wire.transport.waiting = 90_000
    wire.connection.tick(60)
    assert not wire.transport.aborted
    clock[0] += 61
    wire.connection.tick(60)
    assert wire.transport.aborted


def test_a_last_answer_that_is_never_read_is_cut_too(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that shall close waits for its client to take the answer, and no longer than others do."""
    clock = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: clock[0])
    wire.transport.waiting = 100_000
    wire.feed(get("/v2/health/live", "GET", "Connection: close"))
    assert (wire.transport.closed, wire.server.inflight()) == (False, 1)
    clock[0] += 61
    wire.connection.tick(60)
    assert wire.transport.aborted


@pytest.mark.parametrize("stops", [False, True])
def test_a_connection_closes_when_its_last_answer_was_taken(wire: Wire, stops: bool) -> None:
    """Closed earlier, TLS would cut the answer off; a server that stops waits for it as well."""
    wire.transport.waiting = 100_000
    wire.feed(get("/v2/health/live", "GET", *([] if stops else ["Connection: close"])))
    if stops:
        wire.server.stop_accepting()
    assert (wire.transport.closed, wire.server.inflight()) == (False, 1)
    wire.transport.waiting = 0
    wire.connection.resume_writing()
    assert (wire.transport.closed, wire.transport.aborted, wire.server.inflight()) == (True, False, 0)


@pytest.mark.slow
def test_pipelined_requests_with_long_answers_are_answered_in_turns() -> None:
    """However many small requests come at once, few of their answers are held, and other calls come in between."""
    wire = Wire()
    for number in range(100):
        wire.plane.add(identity_spec(f"m{number}", FP32))
    deliver(lambda: wire.transport.protocol, get("/v2/models/stats") * 500)
    first = len(wire.transport.sent)
    (answer,) = Wire(wire.plane).feed(get("/v2/models/stats")).replies()
    assert 0 < first < 40 * (len(answer.body) + 200)
    wire.transport.waiting = first
    wire.connection.pause_writing()
    wire.loop.end_tick()
    assert len(wire.transport.sent) == first
    wire.connection.resume_writing()
    assert len(wire.replies()) == 500


def test_what_waits_is_bounded_however_often_the_client_reads() -> None:
    """A client that reads in pieces while one request is answered cannot have ever more of the next ones kept."""
    plane = Plane(keep=True)
    plane.add(identity_spec("held", FP32), lambda request, spec: None)
    wire = Wire(plane)
    wire.feed(infer("held", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}), LIVE * 10_000)
    for _ in range(3):
        wire.connection.pause_writing()
        wire.connection.resume_writing()
        assert not wire.transport.reading
    give_back(plane.requests[0], plane.requests[0].form.model)
    assert len(wire.replies()) == 10_001
    assert wire.transport.reading


def test_a_body_that_stalls_after_its_client_has_read_is_given_up(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading an answer is no excuse for never sending the rest of the next request."""
    clock = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: clock[0])
    wire.feed(LIVE + BINARY[:-3])
    wire.connection.pause_writing()
    wire.connection.resume_writing()
    clock[0] += 61
    wire.connection.tick(60)
    assert [reply.status for reply in wire.replies()] == [200, 408]


def test_a_refused_client_that_reads_late_is_cut_all_the_same(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refused client still sends is thrown away for a short time only, also when it has to catch up reading."""
    clock = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: clock[0])
    wire.feed(b"nonsense\r\n\r\n")
    wire.connection.pause_writing()
    wire.connection.resume_writing()
    clock[0] += 3
    wire.connection.tick(60)
    assert wire.transport.aborted


def test_a_refused_client_of_tls_is_cut_too(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be half closed, a client that does not close its side has no more time than others."""
    clock = [1000.0]
    monkeypatch.setattr("conch.transport.http1.now", lambda: clock[0])
    monkeypatch.setattr(wire.transport, "can_write_eof", lambda: False)
    wire.feed(b"nonsense\r\n\r\n")
    assert (wire.transport.closed, wire.transport.aborted) == (True, False)
    clock[0] += 3
    wire.connection.tick(60)
    assert wire.transport.aborted


def test_continue_comes_behind_the_answers_before_it(wire: Wire) -> None:
    """A request that waits for `100 Continue` does not overtake the one in front of it."""
    wire.feed(LIVE + b"POST /v2/models/id_fp32/infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
    sent = bytes(wire.transport.sent)
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")


def test_losing_the_client_cancels_its_request() -> None:
    """A lost connection marks the request cancelled, and a later answer goes nowhere."""
    plane = Plane(keep=True)
    plane.add(identity_spec("held", FP32), lambda request, spec: None)
    wire = Wire(plane)
    wire.feed(infer("held", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}))
    (request,) = plane.requests
    wire.transport.close()
    wire.connection.connection_lost(None)
    assert request.cancelled
    give_back(request, request.form.model)
    assert wire.transport.sent == b""
    assert wire.server.connections() == 0


def test_draining_closes_idle_connections_at_once_and_busy_ones_after_their_answer() -> None:
    """When the server stops, no idle connection holds it up, and no answer is lost."""
    plane = Plane(keep=True)
    plane.add(identity_spec("held", FP32), lambda request, spec: None)
    wire = Wire(plane)
    idle, idle_transport = wire.connection, wire.transport
    assert idle is not None
    wire.open()
    wire.feed(infer("held", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]}))
    wire.server.stop_accepting()
    assert idle_transport.closed
    assert not wire.transport.closed
    assert wire.server.inflight() == 1
    give_back(plane.requests[0], plane.requests[0].form.model)
    (reply,) = wire.replies()
    assert reply.headers["Connection"] == "close"
    assert wire.transport.closed


def test_answers_may_come_from_any_thread() -> None:
    """An answer given in another thread reaches the client through the event loop."""
    plane = Plane()
    plane.add(identity_spec("other", FP32), from_thread)
    wire = Wire(plane)
    wire.feed(infer("other", {"inputs": [tensor("INPUT0", "FP32", [1], [1.5])]}))

    wire.turn()
    assert wire.replies()[0].json()["outputs"][0]["data"] == [1.5]


GOLDEN = [
    (LIVE, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n\r\n"),
    (
        get("/v2/models/identity/"),
        b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{"error":"Not Found"}',
    ),
    (
        get("/v2/models/identity/infer"),
        (
            b"HTTP/1.1 405 Not Allowed\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n"
            b'{"error":"Method Not Allowed"}'
        ),
    ),
    (
        post("/v2/models/id_int32/infer", {"id": "x", "inputs": [tensor("INPUT0", "INT32", [2], [1, -2])]}),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 130\r\n\r\n"
            b'{"id":"x","model_name":"id_int32","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"INT32",'
            b'"shape":[2],"data":[1,-2]}]}'
        ),
    ),
    (
        infer(
            "id_int32",
            {"inputs": [tensor("INPUT0", "INT32", [1], size=4)], "parameters": {"binary_data_output": True}},
            b"\1\2\3\4",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: 143\r\n"
            b"Content-Length: 147\r\n\r\n"
            b'{"model_name":"id_int32","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"INT32","shape":[1],'
            b'"parameters":{"binary_data_size":4}}]}\1\2\3\4'
        ),
    ),
]


@pytest.mark.parametrize(("asked", "answer"), GOLDEN)
def test_answers_byte_for_byte(wire: Wire, asked: bytes, answer: bytes) -> None:
    """Status lines, headers in their order and bodies are those of Triton."""
    wire.feed(asked)
    assert bytes(wire.transport.sent) == answer
