"""RFC 9113's rules for what a client may send, each broken once."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.transport import http2_frames as h2
from conch.transport.http2_frames import ErrorCode as E
from conch.transport.http2_headers import literal
from conch.transport.http2_limits import Budget
from support.h2client import INFER, LIVE, Served, block, data, framed, headers, infer, infer_message


@pytest.fixture
def served():
    server = Served()
    yield server
    server.close()


def raw(length: int, kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return h2.HEAD.pack((length << 8) | kind, flags, stream) + payload


OPEN = headers(1)
WINDOW = struct.Struct(">I").pack

CONNECTION_FAULTS = {
    "data on stream 0": (data(0, b"x"), E.PROTOCOL_ERROR),
    "data on an idle stream": (data(5, b"x"), E.PROTOCOL_ERROR),
    "data padded beyond its end": (OPEN + h2.frame(h2.DATA, h2.PADDED, 1, b"\x05abc"), E.PROTOCOL_ERROR),
    "data padded without pad length": (OPEN + h2.frame(h2.DATA, h2.PADDED, 1) + b"\0" * 9, E.PROTOCOL_ERROR),
    "a frame larger than advertised": (OPEN + raw((1 << 20) + 1, h2.DATA, 0, 1), E.FRAME_SIZE_ERROR),
    "headers on stream 0": (headers(0), E.PROTOCOL_ERROR),
    "headers on an even stream": (headers(2), E.PROTOCOL_ERROR),
    "headers padded beyond their end": (h2.frame(h2.HEADERS, 0xC, 1, b"\x05abc"), E.PROTOCOL_ERROR),
    "headers too short for their priority": (h2.frame(h2.HEADERS, 0x24, 1, b"abc"), E.FRAME_SIZE_ERROR),
    "a broken header block": (headers(1, b"\xff\xff\xff\xff\xff\xff\xff"), E.COMPRESSION_ERROR),
    "an index beyond the table": (headers(1, b"\xfe"), E.COMPRESSION_ERROR),
    "a frame inside a header block": (
        h2.frame(h2.HEADERS, 0, 1, block()) + h2.frame(h2.PING, 0, 0, b"12345678"), E.PROTOCOL_ERROR),
    "a continuation of another stream": (
        h2.frame(h2.HEADERS, 0, 1, block()) + h2.frame(h2.CONTINUATION, 4, 3), E.PROTOCOL_ERROR),
    "a continuation of nothing": (h2.frame(h2.CONTINUATION, 4, 1, block()), E.PROTOCOL_ERROR),
    "too many continuations": (
        h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1) * 40, E.ENHANCE_YOUR_CALM),
    "a header block too large": (
        h2.frame(h2.HEADERS, 0, 1, b"x" * 16384) + h2.frame(h2.CONTINUATION, 0, 1, b"x" * 16384) * 2,
        E.ENHANCE_YOUR_CALM),
    "a header frame too large, seen by its head": (raw(1 << 19, h2.HEADERS, 4, 1), E.ENHANCE_YOUR_CALM),
    "an HPACK bomb": (
        headers(1, b"\x40\x01a" + b"\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 30), E.ENHANCE_YOUR_CALM),
    "priority on stream 0": (h2.frame(h2.PRIORITY, 0, 0, b"12345"), E.PROTOCOL_ERROR),
    "priority of the wrong size": (h2.frame(h2.PRIORITY, 0, 1, b"1234"), E.FRAME_SIZE_ERROR),
    "reset of the wrong size": (OPEN + h2.frame(h2.RST_STREAM, 0, 1, b"123"), E.FRAME_SIZE_ERROR),
    "reset on stream 0": (h2.frame(h2.RST_STREAM, 0, 0, b"1234"), E.PROTOCOL_ERROR),
    "reset of an idle stream": (h2.rst_stream(7, E.CANCEL), E.PROTOCOL_ERROR),
    "settings on a stream": (h2.frame(h2.SETTINGS, 0, 1), E.PROTOCOL_ERROR),
    "settings of the wrong size": (h2.frame(h2.SETTINGS, 0, 0, b"12345"), E.FRAME_SIZE_ERROR),
    "a settings ack with content": (h2.frame(h2.SETTINGS, 1, 0, b"123456"), E.FRAME_SIZE_ERROR),
    "push of 2": (h2.settings({h2.SETTINGS_ENABLE_PUSH: 2}), E.PROTOCOL_ERROR),
    "a window of 2^31": (h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 31}), E.FLOW_CONTROL_ERROR),
    "frames of 100 bytes": (h2.settings({h2.SETTINGS_MAX_FRAME_SIZE: 100}), E.PROTOCOL_ERROR),
    "frames of 2^24 bytes": (h2.settings({h2.SETTINGS_MAX_FRAME_SIZE: 1 << 24}), E.PROTOCOL_ERROR),
    "a settings frame too large, seen by its head": (raw(60000, h2.SETTINGS, 0, 0), E.FRAME_SIZE_ERROR),
    "a push promise": (h2.frame(h2.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), E.PROTOCOL_ERROR),
    "ping on a stream": (h2.frame(h2.PING, 0, 1, b"12345678"), E.PROTOCOL_ERROR),
    "ping of the wrong size": (h2.frame(h2.PING, 0, 0, b"1234567"), E.FRAME_SIZE_ERROR),
    "goaway on a stream": (h2.frame(h2.GOAWAY, 0, 1, b"12345678"), E.PROTOCOL_ERROR),
    "goaway too short": (h2.frame(h2.GOAWAY, 0, 0, b"1234"), E.FRAME_SIZE_ERROR),
    "window update of the wrong size": (h2.frame(h2.WINDOW_UPDATE, 0, 0, b"123"), E.FRAME_SIZE_ERROR),
    "window update of 0": (h2.window_update(0, 0), E.PROTOCOL_ERROR),
    "a connection window above 2^31-1": (h2.window_update(0, h2.MAX_31), E.FLOW_CONTROL_ERROR),
    "window update of an idle stream": (h2.window_update(9, 1), E.PROTOCOL_ERROR),
    "headers of an answered stream": (
        headers(1) + data(1, framed()) + headers(1), E.STREAM_CLOSED),
}  # fmt: skip


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_connection_fault(served: Served, name: str) -> None:
    """A rule of the connection that is broken ends it with GOAWAY and the right code."""
    sent, code = CONNECTION_FAULTS[name]
    served.feed(sent)
    assert served.goaway() == code
    assert served.wire.closed


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_connection_fault_byte_by_byte(name: str) -> None:
    """It makes no difference in how many reads the bytes arrive."""
    sent, code = CONNECTION_FAULTS[name]
    served = Served()
    for at in range(0, len(sent), max(1, len(sent) // 300)):
        served.feed(sent[at : at + max(1, len(sent) // 300)])
    assert served.goaway() == code
    served.close()


BASE = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", LIVE), (b"content-type", b"application/grpc"))
STREAM_FAULTS = {
    "an upper-case name": (headers(1, block(LIVE, (b"Foo", b"x"))), E.PROTOCOL_ERROR),
    "a path that ends with a space": (headers(1, block(LIVE + b" ")), E.PROTOCOL_ERROR),
    "a name with a space": (headers(1, block(LIVE, (b"fo o", b"x"))), E.PROTOCOL_ERROR),
    "an empty name": (headers(1, block(LIVE, (b"", b"x"))), E.PROTOCOL_ERROR),
    "a value with a line break": (headers(1, block(LIVE, (b"foo", b"a\r\nb"))), E.PROTOCOL_ERROR),
    "a value with a zero byte": (headers(1, block(LIVE, (b"foo", b"a\0b"))), E.PROTOCOL_ERROR),
    "connection": (headers(1, block(LIVE, (b"connection", b"close"))), E.PROTOCOL_ERROR),
    "transfer-encoding": (headers(1, block(LIVE, (b"transfer-encoding", b"chunked"))), E.PROTOCOL_ERROR),
    "te other than trailers": (headers(1, block(LIVE, (b"te", b"gzip"))), E.PROTOCOL_ERROR),
    "no path": (headers(1, block(base=BASE[:2] + BASE[3:])), E.PROTOCOL_ERROR),
    "an empty path": (headers(1, block(b"")), E.PROTOCOL_ERROR),
    "two methods": (headers(1, block(base=BASE[:1] + BASE)), E.PROTOCOL_ERROR),
    "an unknown pseudo-header": (headers(1, block(base=((b":foo", b"x"), *BASE))), E.PROTOCOL_ERROR),
    "a status": (headers(1, block(base=((b":status", b"200"), *BASE))), E.PROTOCOL_ERROR),
    "a pseudo-header after a field": (headers(1, block(base=(BASE[3], *BASE[:3]))), E.PROTOCOL_ERROR),
    "content-length below the data": (
        headers(1, block(LIVE, (b"content-length", b"4"))) + data(1, framed()), E.PROTOCOL_ERROR),
    "content-length above the data": (
        headers(1, block(LIVE, (b"content-length", b"6"))) + data(1, framed()), E.PROTOCOL_ERROR),
    "content-length without data": (headers(1, block(LIVE, (b"content-length", b"6")), end=True), E.PROTOCOL_ERROR),
    "content-length that is no number": (headers(1, block(LIVE, (b"content-length", b"-1"))), E.PROTOCOL_ERROR),
    "two lengths": (
        headers(1, block(LIVE, (b"content-length", b"5"), (b"content-length", b"6"))), E.PROTOCOL_ERROR),
    "trailers that do not end": (OPEN + headers(1), E.PROTOCOL_ERROR),
    "trailers with a pseudo-header": (OPEN + headers(1, literal(b":path", b"/"), end=True), E.PROTOCOL_ERROR),
    "window update of 0": (OPEN + h2.window_update(1, 0), E.PROTOCOL_ERROR),
    "a window above 2^31-1": (OPEN + h2.window_update(1, h2.MAX_31), E.FLOW_CONTROL_ERROR),
    "data of an answered stream": (
        headers(1) + data(1, framed()) + data(1, b"x"), E.STREAM_CLOSED),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_stream_fault(served: Served, name: str) -> None:
    """A rule of a stream that is broken resets it; the next stream is served, and nothing is left."""
    sent, code = STREAM_FAULTS[name]
    served.feed(sent)
    assert served.resets() == {1: code}
    served.feed(headers(3) + data(3, framed()))
    assert served.status(3) == (0, "")
    assert not served.connection.streams


def test_half_closed_stream_takes_no_data() -> None:
    """DATA after END_STREAM, while the answer is being made, resets the stream."""
    served = Served("hold")
    served.feed(infer(1) + data(1, b"x"))
    assert served.resets() == {1: E.STREAM_CLOSED}
    served.scheduler.release()
    served.turn()
    assert 1 not in served.messages
    served.close()


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", h2.PREFACE + headers(1)])
def test_greeting(greeting: bytes) -> None:
    """A connection starts with the preface and SETTINGS, or ends."""
    served = Served(greeting=greeting)
    assert served.wire.closed
    assert E.PROTOCOL_ERROR.to_bytes(4, "big") in bytes(served.wire.data[-80:])
    served.close()


FLOODS = {
    "rapid reset": lambda n: headers(2 * n + 1) + h2.rst_stream(2 * n + 1, E.CANCEL),
    "pings": lambda n: h2.frame(h2.PING, 0, 0, b"12345678"),
    "settings": lambda n: h2.settings({}),
    "empty data": lambda n: data(1, end=False) if n else headers(1),
    "window updates": lambda n: h2.window_update(0, 1),
    "priorities": lambda n: h2.frame(h2.PRIORITY, 0, 1, b"12345"),
    "unknown frames": lambda n: h2.frame(77, 0, 0, b"x"),
    "malformed requests": lambda n: headers(2 * n + 1, block(b"")),
    "late data": lambda n: data(1, b"x") if n else headers(1, block(LIVE, (b"connection", b"x"))),
}


@pytest.mark.parametrize("name", FLOODS)
def test_flood(served: Served, name: str) -> None:
    """Frames that lead nowhere are tolerated for a while and then end the connection."""
    make = FLOODS[name]
    for start in range(0, 4000, 100):
        served.feed(b"".join([make(n) for n in range(start, start + 100)]))
        if start == 500 and name != "pings":
            assert not served.wire.closed
    assert served.goaway() == E.ENHANCE_YOUR_CALM
    assert not served.connection.streams


def test_settings_cost_as_many_as_they_are() -> None:
    """Each may touch every stream: a frame full of them is not the price of one."""
    served = Served()
    many = h2.frame(h2.SETTINGS, 0, 0, struct.pack(">HI", h2.SETTINGS_INITIAL_WINDOW_SIZE, 1000) * 500)
    served.feed(many)
    assert not served.wire.closed
    served.feed(*[many] * 20)
    assert served.goaway() == E.ENHANCE_YOUR_CALM
    served.close()


def test_uploads_that_were_on_their_way_are_no_fault() -> None:
    """Frames of calls that were refused before all had come do not end the connection, within the streams' windows."""
    served = Served("hold")
    served.feed(infer(1))
    served.grpc.stop_accepting()
    served.turn()
    late = range(3, 13, 2)
    served.feed(*[headers(number, block(INFER)) for number in late])
    for number in late:
        served.feed(*[data(number, bytes(16_384), end=False)] * 1024)
    assert served.goaway() == E.NO_ERROR
    assert not served.wire.closed
    served.scheduler.release()
    served.turn()
    assert served.status(1) == (0, "")
    for number in late:
        served.feed(*[data(number, bytes(16_384), end=False)] * 1024)
    assert served.goaway() == E.ENHANCE_YOUR_CALM
    served.close()


def test_work_earns_patience(served: Served) -> None:
    """A client that pings and updates windows in proportion to its requests is never sent away."""
    extra = h2.window_update(0, 100) + h2.frame(h2.PING, 0, 0, b"12345678")
    for n in range(6000):
        served.connection.data_received(headers(2 * n + 1) + data(2 * n + 1, framed()) + extra)
    assert not served.wire.closed


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 4000), st.integers(0, 20_000)), max_size=30))
def test_budget_is_bounded(steps: list[tuple[float, int, int]]) -> None:
    """Whatever the pattern, no more is spent than the start, and what the time and the data sent earn."""
    now, sent, spent, budget = 0.0, 0, 0, Budget(0.0, start=500, rate=10.0)
    for pause, frames, answered in steps:
        now += pause
        sent += answered
        for _ in range(frames):
            budget.credit -= 1
            if budget.credit <= 0 and not budget.refill(now, sent):
                break
            spent += 1
    assert spent <= 500 + now * 10 + sent / 32 + 1


def test_concurrent_streams_are_limited() -> None:
    """A stream above the limit is refused, and its headers are still decoded for the table's sake."""
    served = Served("hold", max_concurrent_streams=2)
    served.feed(infer(1) + infer(3) + headers(5, b"\x40\x03foo\x03bar" + block(INFER)))
    assert served.resets() == {5: E.REFUSED_STREAM}
    served.scheduler.release()
    served.turn()
    served.feed(headers(7, block(INFER) + b"\xbe") + data(7, framed(infer_message().SerializeToString())))
    served.scheduler.release()
    served.turn()
    assert served.status(7) == (0, "")
    served.close()


def test_blocks_are_cached_only_while_the_table_stands(served: Served) -> None:
    """The same block means other headers after the table has changed."""

    def add(path: bytes) -> bytes:
        return b"\x44" + bytes([len(path)]) + path

    rest = block(base=[pair for pair in BASE if pair[0] not in (b":path", b":method", b":scheme")])
    start = b"\x83\x86"
    served.feed(headers(1, start + add(LIVE) + rest) + data(1, framed()))
    for stream in (3, 5):
        served.feed(headers(stream, start + b"\xbe" + rest) + data(stream, framed()))
        assert served.status(stream) == (0, "")
    served.feed(headers(7, start + add(b"/nowhere") + rest) + data(7, framed()))
    served.feed(headers(9, start + b"\xbe" + rest) + data(9, framed()))
    assert served.status(9) == (12, "there is no method /nowhere")
    served.feed(headers(11, start + b"\xbf" + rest) + data(11, framed()))
    assert served.status(11) == (0, "")


def test_oversized_metadata_is_refused(served: Served) -> None:
    """A header list above the advertised size fails the call, not the connection."""
    served.feed(headers(1, block(LIVE, (b"foo", b"x" * 17000))) + data(1, framed()))
    assert served.status(1)[0] == 8
    served.feed(headers(3) + data(3, framed()))
    assert served.status(3) == (0, "")


@pytest.mark.parametrize("pad", [0, 1, 255])
def test_padding_is_dropped(served: Served, pad: int) -> None:
    """Padding of DATA and HEADERS is no part of the message."""
    message = framed(infer_message("7").SerializeToString())
    fields = block(INFER)
    served.feed(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, bytes([pad]) + fields + b"\0" * pad))
    padded = h2.frame(h2.DATA, h2.PADDED | h2.END_STREAM, 1, bytes([pad]) + message + b"\0" * pad)
    served.feed(*[padded[at : at + 1] for at in range(len(padded))])
    assert served.status(1) == (0, "")
    assert pb.ModelInferResponse.FromString(served.messages[1][5:]).id == "7"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_pieces_make_no_difference(choice: st.DataObject) -> None:
    """However frames and reads cut a conversation, the answers are the same."""
    sent = b""
    for stream in (1, 3, 5):
        message = framed(infer_message(str(stream), range(stream * 10)).SerializeToString())
        fields = block(INFER)
        cut = choice.draw(st.integers(0, len(fields)))
        sent += h2.frame(h2.HEADERS, 0, stream, fields[:cut])
        sent += h2.frame(h2.CONTINUATION, h2.END_HEADERS, stream, fields[cut:])
        cuts = sorted(choice.draw(st.lists(st.integers(0, len(message)), max_size=4)))
        for start, stop in zip([0, *cuts], [*cuts, len(message)], strict=True):
            sent += data(stream, message[start:stop], end=False)
        sent += data(stream)
    cuts = sorted(choice.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    served = Served()
    served.feed(*[sent[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(sent)], strict=True)])
    for stream in (1, 3, 5):
        assert served.status(stream) == (0, "")
        answer = pb.ModelInferResponse.FromString(served.messages[stream][5:])
        assert (answer.id, list(answer.outputs[0].shape)) == (str(stream), [1, stream * 10])
    served.close()


FRAMES = st.one_of(
    st.builds(
        h2.frame,
        st.integers(0, 11), st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5, 7, h2.MAX_31]), st.binary(max_size=40),
    ),
    st.builds(lambda n, end: headers(n, end=end), st.sampled_from([1, 3, 5, 7, 9]), st.booleans()),
    st.builds(infer, st.sampled_from([1, 3, 5, 7, 9])),
    st.builds(data, st.sampled_from([1, 3, 5, 7]), st.binary(max_size=20), st.booleans()),
    st.binary(max_size=20),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAMES, max_size=12), st.sampled_from(["inline", "hold"]))
def test_any_frames_end_well(parts: list[bytes], mode: str) -> None:
    """Whatever arrives, nothing is raised, what is written is well-formed, and nothing stays when the peer leaves."""
    served = Served(mode)
    served.feed(*parts)
    served.scheduler.release()
    served.turn()
    served.frames()
    open_calls = list(served.connection.streams.values())
    assert served.connection.sender.pending == 0
    served.close()
    assert not served.connection.streams
    assert all(call.connection is None for call in open_calls)
