"""Flow control both ways, back-pressure and time-outs."""

from __future__ import annotations

import gc
import struct
import weakref
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.transport import http2_frames as h2
from conch.transport.http2_frames import ErrorCode as E
from conch.transport.http2_limits import Limits
from support.h2client import INFER, Served, Wire, block, data, framed, headers, infer, infer_message


def greeting(**values: int) -> bytes:
    return h2.PREFACE + h2.settings({getattr(h2, f"SETTINGS_{name}"): value for name, value in values.items()})


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3000), st.integers(100, 9000), st.lists(st.tuples(st.booleans(), st.integers(1, 4000)), max_size=40)
)
def test_windows_are_never_exceeded(window: int, size: int, updates: list[tuple[bool, int]]) -> None:
    """No more DATA leaves than the peer's windows allow, frames keep to its size, and in the end all arrives."""
    served = Served(greeting=greeting(INITIAL_WINDOW_SIZE=window))
    values = range(size // 4)
    served.feed(infer(1, infer_message("x", values)))
    allowed, sent = {0: 65_535, 1: window}, 0

    def look() -> None:
        nonlocal sent
        for kind, _, _, payload in served.frames():
            if kind == h2.DATA:
                assert len(payload) <= 16_384
                sent += len(payload)
        assert sent <= min(allowed.values())

    look()
    for whole, increment in [*updates, (False, 50_000)]:
        if 1 not in served.connection.streams:
            break
        number = 0 if whole else 1
        allowed[number] += increment
        served.feed(h2.window_update(number, increment))
        look()
    assert served.status(1) == (0, "")
    answer = pb.ModelInferResponse.FromString(served.messages[1][5:])
    assert answer.raw_output_contents[0] == struct.pack(f"<{len(values)}f", *values)
    assert served.connection.sender.pending == 0
    served.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300_000), max_size=12), st.integers(30_000, 400_000))
def test_a_large_message_is_whole_however_it_comes(cuts: list[int], frame: int) -> None:
    """The rest of a large frame is received where it belongs, and the next frame is read as ever."""
    served = Served()
    values = range(100_000)
    raw = framed(infer_message("big", values).SerializeToString())
    ends = range(frame, len(raw) + frame, frame)
    whole = b"".join(
        [headers(1, block(INFER)), *[data(1, raw[end - frame : end], end=end >= len(raw)) for end in ends], infer(3)]
    )
    at = 0
    for cut in [*cuts, len(whole)]:
        served.feed(whole[at : at + cut])
        at += cut
    served.feed(h2.window_update(0, 1 << 20), h2.window_update(1, 1 << 20))
    assert served.status(1) == (0, "")
    answer = pb.ModelInferResponse.FromString(served.messages[1][5:])
    assert answer.raw_output_contents[0] == struct.pack(f"<{len(values)}f", *values)
    assert served.status(3) == (0, "")
    served.close()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300_000), st.sampled_from(["reset", "too long", "message and more"]))
def test_a_stream_that_ends_within_a_large_frame_harms_no_other(cut: int, how: str) -> None:
    served = Served(max_message_size=2_000_000)
    raw = framed(infer_message("big", range(100_000)).SerializeToString())
    if how == "message and more":
        raw += bytes(200_000)
    elif how == "too long":
        raw = struct.pack(">BI", 0, 3_000_000) + raw[5:]
    whole = headers(1, block(INFER)) + data(1, raw)
    served.feed(whole[:cut])
    if how == "reset" and 1 in served.connection.streams:
        served.connection.reset(served.connection.streams[1], E.CANCEL)
    served.feed(whole[cut:], infer(3), h2.window_update(0, 1 << 20))
    assert served.status(3) == (0, "")
    served.close()


def test_settings_change_open_windows() -> None:
    """A larger SETTINGS_INITIAL_WINDOW_SIZE releases what waited; a smaller one makes a window negative."""
    served = Served(greeting=greeting(INITIAL_WINDOW_SIZE=100))
    served.feed(infer(1, infer_message("x", range(100))))
    assert len(served.connection.sender.blocked) == 1
    served.feed(h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 10}))
    served.feed(h2.window_update(1, 90))
    served.frames()
    assert len(served.messages[1]) == 100
    served.feed(h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 10_000}))
    assert served.status(1) == (0, "")
    served.close()


def test_answers_share_the_connection_window() -> None:
    """A stream without a window of its own does not hold up the others."""
    served = Served(greeting=greeting(INITIAL_WINDOW_SIZE=50))
    served.feed(infer(1, infer_message("x", range(100))), infer(3, infer_message("y", range(100))))
    served.feed(h2.window_update(3, 1000))
    assert served.status(3) == (0, "")
    served.feed(h2.rst_stream(1, E.CANCEL))
    assert (served.connection.sender.pending, served.connection.sender.blocked) == (0, {})
    served.close()


def test_frame_size_of_the_peer() -> None:
    """A peer that takes larger frames gets them."""
    served = Served(
        greeting=greeting(MAX_FRAME_SIZE=1 << 20, INITIAL_WINDOW_SIZE=1 << 24) + h2.window_update(0, 1 << 24)
    )
    served.feed(infer(1, infer_message("x", range(50_000))))
    sizes = [len(payload) for kind, _, _, payload in served.frames() if kind == h2.DATA]
    assert len(sizes) == 1
    assert sizes[0] > 200_000
    served.close()


def test_receive_windows_are_returned() -> None:
    """When half of a window is used it is given back, on the stream only while more may come."""
    served = Served()
    served.feed(headers(1, block(INFER)))
    sent = 0
    seen: dict[int, int] = {0: 0, 1: 0}
    served.feed(data(1, struct.pack(">BI", 0, 100 << 20), end=False))
    while sent < 80 << 20:
        served.feed(data(1, bytes(1 << 20), end=False))
        sent += 1 << 20
        for kind, _, stream, payload in served.frames():
            if kind == h2.WINDOW_UPDATE:
                seen[stream] += int.from_bytes(payload, "big")
    limits = Limits()
    assert sent - seen[1] <= limits.stream_window // 2 + (1 << 20)
    assert sent - seen[0] <= limits.connection_window // 2 + (1 << 20)
    served.close()


def test_announced_sizes_allocate_nothing() -> None:
    """A message that only announces two gigabytes takes no memory."""
    served = Served()
    served.feed(headers(1, block(INFER)), data(1, struct.pack(">BI", 0, 2**31 - 1) + b"abc", end=False))
    assert len(served.connection.streams[1]._inbox) == 8
    served.close()


def test_message_size_is_limited_at_once() -> None:
    """A message above the limit fails as soon as its size is known; its late frames are ignored."""
    served = Served(max_message_size=1000)
    served.feed(headers(1, block(INFER)), data(1, struct.pack(">BI", 0, 1001), end=False))
    assert served.status(1) == (8, "Received message larger than max (1001 vs. 1000)")
    served.feed(data(1, bytes(100), end=False), data(1, bytes(901)))
    assert not served.wire.closed
    served.feed(headers(3, block(INFER)) + data(3, framed(bytes(1001))))
    assert served.status(3) == (8, "Received message larger than max (1001 vs. 1000)")
    served.close()


def test_a_peer_that_does_not_read_is_not_read() -> None:
    """While the socket's buffer is full no DATA is made and nothing is read; afterwards both go on."""
    served = Served("hold")
    served.feed(infer(1, infer_message("x", range(100))))
    served.connection.pause_writing()
    assert served.wire.reading_paused
    served.scheduler.release()
    served.turn()
    served.frames()
    assert 1 not in served.messages
    served.connection.resume_writing()
    served.turn()
    assert not served.wire.reading_paused
    assert served.status(1) == (0, "")
    served.close()


@pytest.mark.parametrize("mode", ["preface", "frame", "block", "body", "stalled", "goaway"])
def test_slow_peers_are_given_up(mode: str) -> None:
    """No progress within the time-out ends the connection, or the stream that it concerns."""
    sent = {"preface": h2.PREFACE[:10]}.get(mode)
    served = Served(greeting=sent)
    connection = served.connection
    if mode == "frame":
        served.feed(headers(1)[:-3])
    elif mode == "block":
        served.feed(h2.frame(h2.HEADERS, 0, 1, block()))
    elif mode == "body":
        served.feed(headers(1))
    elif mode == "stalled":
        connection.pause_writing()
    elif mode == "goaway":
        connection.shut(E.NO_ERROR)
    now = served.loop.time() + 1
    connection.check(now)
    assert not served.wire.aborted
    connection.check(now + 30)
    connection.check(now + 61)
    if mode == "body":
        assert served.resets() == {1: E.CANCEL}
        assert not served.wire.closed
    elif mode in ("stalled", "goaway"):
        assert served.wire.aborted
    else:
        assert served.goaway() == E.SETTINGS_TIMEOUT
    served.close()


def test_a_peer_that_reads_slowly_is_not_given_up() -> None:
    """While a full socket buffer becomes emptier the connection lives: we do not read, so the peer owes us nothing."""
    served = Served("hold", keepalive_time_ms=1000, keepalive_timeout_ms=500)
    served.feed(infer(1), headers(3, block(INFER)), data(3, b"\0", end=False), data(3, b"x", end=False)[:-1])
    served.feed(h2.frame(h2.PING, 0, 0, b"12345678")[:5])
    served.wire.unsent = 100 << 20
    served.connection.pause_writing()
    start = served.loop.time()
    for seconds in range(10, 1000, 10):
        served.wire.unsent -= 1 << 20
        served.connection.check(start + seconds)
    assert (served.wire.closed, served.wire.aborted) == (False, False)
    assert set(served.connection.streams) == {1, 3}
    served.connection.resume_writing()
    served.turn()
    served.connection.check(start + 1001)
    assert (served.wire.closed, served.wire.aborted) == (False, False)
    assert set(served.connection.streams) == {1, 3}
    served.connection.pause_writing()
    for seconds in (1002, 1030, 1070, 1100):
        served.connection.check(start + seconds)
    assert served.wire.aborted
    served.close()


def test_a_last_answer_that_is_read_slowly_is_not_cut_off() -> None:
    """A connection that we have closed lives while its peer goes on reading, and is in flight as long."""
    served = Served()
    served.feed(infer(1))
    served.wire.unsent = 100 << 20
    assert served.grpc.inflight() == 1
    served.connection.shut(E.NO_ERROR)
    start = served.loop.time()
    for seconds in range(10, 1000, 10):
        served.wire.unsent -= 1 << 20
        served.connection.check(start + seconds)
    assert not served.wire.aborted
    assert served.grpc.inflight() == 1
    served.connection.check(start + 1061)
    assert served.wire.aborted
    served.wire.unsent = 0
    assert served.grpc.inflight() == 0
    served.close()


def test_a_peer_that_never_says_goodbye_is_cut() -> None:
    """Of TLS: when it has taken everything, its own end is waited for a moment."""
    served = Served()
    served.connection.shut(E.NO_ERROR)
    served.connection.check(served.loop.time() + 1)
    assert not served.wire.aborted
    served.connection.check(served.loop.time() + 3)
    assert served.wire.aborted
    served.close()


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_is_read_slowly_is_whole(reads: bool) -> None:
    """Among many answers that wait, one is given up when nothing of it leaves, not because it takes long."""
    served = Served()
    served.connection._limits = replace(served.connection._limits, max_pending=1000)
    served.feed(infer(1, infer_message("x", range(50_000))))
    now = served.loop.time() + 1
    for _ in range(200):
        served.connection.check(now)
        now += 10
        if reads:
            served.feed(h2.window_update(0, 1000), h2.window_update(1, 1000))
        elif 1 not in served.connection.streams:
            break
    if reads:
        assert served.status(1) == (0, "")
    else:
        assert served.resets() == {1: E.CANCEL}
    served.close()


class Mark:
    """Something whose end can be seen."""


@pytest.mark.parametrize("how", ["served", "in a large frame", "shut", "never greeted"])
def test_a_connection_that_ends_is_freed_at_once(how: str) -> None:
    """Nothing of it waits for the collector, which is tuned to come rarely."""
    served = Served("hold")
    collecting = gc.isenabled()
    gc.disable()
    try:
        connection, wire = served.grpc.connection(), Wire()
        wire.set_protocol(connection)
        connection.connection_made(wire)
        if how != "never greeted":
            connection.data_received(h2.PREFACE + h2.settings({}) + infer(1))
        if how == "in a large frame":
            raw = framed(infer_message("big", range(100_000)).SerializeToString())
            connection.data_received(headers(3, block(INFER)) + data(3, raw)[:100_000])
            assert wire.protocol is not connection
        elif how == "shut":
            connection.shut(E.NO_ERROR)
        served.scheduler.held.clear()
        served.turn()
        connection.connection_lost(None)
        wire.protocol = None
        connection.upkeep = Mark()
        mark = weakref.ref(connection.upkeep)
        del connection
        assert mark() is None
    finally:
        if collecting:
            gc.enable()
        served.close()


def test_an_idle_connection_stays() -> None:
    """A greeted peer without requests, or that waits for an answer, may be silent for ever."""
    served = Served("hold")
    served.feed(infer(1))
    for now in range(0, 10_000, 100):
        served.connection.check(now + 1.0)
    assert not served.wire.closed
    assert 1 in served.connection.streams
    served.close()


def test_one_write_per_burst() -> None:
    """Sixteen requests in one read are answered with one write."""
    served = Served()
    served.feed(infer(1))
    before = served.wire.writes
    served.feed(b"".join([infer(stream) for stream in range(3, 35, 2)]))
    assert served.wire.writes == before + 1
    assert all(served.status(stream) == (0, "") for stream in range(3, 35, 2))
    served.close()


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_peer_without_a_header_table(when: str) -> None:
    """After SETTINGS_HEADER_TABLE_SIZE 0 answers refer to no table entry (the decoder here would fail)."""
    served = Served()
    if when == "later":
        served.feed(infer(1), infer(3))
        served.frames()
    served.feed(h2.settings({h2.SETTINGS_HEADER_TABLE_SIZE: 0}))
    served._decoder.max_allowed_table_size = 0
    for stream in (5, 7, 9):
        served.feed(infer(stream))
        assert served.status(stream) == (0, "")
    assert served._decoder.header_table_size == 0
    served.close()
