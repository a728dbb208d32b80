"""Large gRPC answers are compressed beside the event loop: order, ends of all kinds, and many at once."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator

import pytest

from conch.pb import grpc_service_pb2 as pb
from conch.transport import http2_frames as h2
from conch.transport.grpc_messages import Packing
from support.h2client import INFER, Served, Wire, block, data, headers, infer_message
from support.until import until

WIDE = h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 30}) + h2.window_update(0, 1 << 30)
STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"
CODING = ((b"grpc-encoding", b"deflate"), (b"grpc-accept-encoding", b"deflate"))
MANY = 500_000


class Gate:
    """While it is shut, no step of compression ends. `steps` says of each whether the loop's thread made it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.steps: list[bool] = []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, step = Gate(), Packing.step

    def held(packing: Packing, most: int) -> bool:
        on_loop = threading.current_thread() is threading.main_thread()
        gate.steps.append(on_loop)
        assert on_loop or gate.open.wait(60)
        return step(packing, most)

    monkeypatch.setattr(Packing, "step", held)
    yield gate
    gate.open.set()


def packed(id: str, count: int) -> bytes:
    """A request of `count` numbers: large ones are too long for a frame as they are."""
    raw = zlib.compress(infer_message(id, [1.0] * count).SerializeToString())
    return struct.pack(">BI", 1, len(raw)) + raw


def ask(stream: int, count: int, *extra: tuple[bytes, bytes]) -> bytes:
    return headers(stream, block(INFER, *CODING, *extra)) + data(stream, packed(str(stream), count))


def talk(counts: list[int], *extra: tuple[bytes, bytes], end: bool = True) -> bytes:
    raw = b"".join([packed(str(number), count) for number, count in enumerate(counts)])
    return headers(1, block(STREAM, *CODING, *extra)) + data(1, raw, end=end)


def ended(served: Served, stream: int) -> bool:
    served.turn()
    served.frames()
    return "grpc-status" in served.fields.get(stream, {})


def aside(served: Served, gate: Gate) -> bool:
    """Whether a thread is at it."""
    served.turn()
    served.frames()
    return False in gate.steps


def messages(raw: bytes) -> list[tuple[int, bytes]]:
    """Each message's first byte, and the message uncompressed."""
    found, at = [], 0
    while at < len(raw):
        flag, size = struct.unpack_from(">BI", raw, at)
        body = raw[at + 5 : at + 5 + size]
        found.append((flag, zlib.decompress(body) if flag else body))
        at += 5 + size
    return found


@pytest.mark.parametrize("level", ["low", "medium", "high"])
def test_large_answers_are_compressed_beside_the_loop_and_little_ones_on_it(level: str, gate: Gate) -> None:
    """The client cannot tell which is which."""
    gate.open.set()
    served = Served(compression_level=level)
    served.feed(WIDE, ask(1, 1000))
    assert served.status(1) == (0, "")
    assert gate.steps == []
    served.feed(ask(3, MANY))
    until(lambda: ended(served, 3))
    assert set(gate.steps) == {False}
    assert served.fields[3]["grpc-encoding"] == "deflate"
    ((flag, message),) = messages(served.messages[3])
    assert flag == 1
    assert pb.ModelInferResponse.FromString(message).raw_output_contents[0] == struct.pack("<f", 1.0) * MANY
    served.close()


def test_a_compressed_answer_holds_up_no_other(gate: Gate) -> None:
    """Calls of the same connection are answered while one of them is compressed."""
    served = Served(compression_level="high")
    served.feed(WIDE, ask(1, MANY), ask(3, 1))
    until(lambda: aside(served, gate))
    assert served.status(3) == (0, "")
    assert not ended(served, 1)
    gate.open.set()
    until(lambda: ended(served, 1))
    served.close()


def test_messages_of_a_stream_keep_their_order_while_one_is_compressed(gate: Gate) -> None:
    """Little answers wait for the large one before them, and the end for all."""
    served = Served(compression_level="high")
    served.feed(WIDE, talk([1, MANY, 1, MANY, 1]))
    until(lambda: aside(served, gate))
    assert len(messages(served.messages[1])) == 1
    gate.open.set()
    until(lambda: ended(served, 1))
    answers = [pb.ModelStreamInferResponse.FromString(raw).infer_response for _, raw in messages(served.messages[1])]
    assert [each.id for each in answers] == ["0", "1", "2", "3", "4"]
    assert len(answers[3].raw_output_contents[0]) == 4 * MANY
    assert served.status(1) == (0, "")
    served.close()


def test_a_stream_takes_no_more_requests_while_much_is_compressed(gate: Gate) -> None:
    """What waits to be compressed counts like what waits to be read."""
    served = Served("hold", compression_level="high")
    served.feed(WIDE, talk([3 * MANY], end=False))
    until(lambda: served.turn() or served.scheduler.held)
    served.scheduler.release()
    until(lambda: aside(served, gate))
    served.feed(data(1, packed("late", 1)))
    assert served.scheduler.held == []
    gate.open.set()
    until(lambda: served.turn() or served.scheduler.held)
    served.scheduler.release()
    until(lambda: ended(served, 1))
    assert len(messages(served.messages[1])) == 2
    served.close()


@pytest.mark.parametrize("path", ["call", "stream"])
@pytest.mark.parametrize("how", ["reset", "lost", "late"])
def test_what_nobody_waits_for_is_not_compressed_further(path: str, how: str, gate: Gate) -> None:
    """A call that is cancelled, whose connection is lost or whose time is over ends at once."""
    served = Served(compression_level="high")
    timeout = ((b"grpc-timeout", b"10S"),) if how == "late" else ()
    served.feed(WIDE, ask(1, MANY, *timeout) if path == "call" else talk([MANY], *timeout, end=how != "late"))
    until(lambda: aside(served, gate))
    if how == "reset":
        served.feed(h2.frame(h2.RST_STREAM, 0, 1, bytes(4)))
    elif how == "lost":
        served.connection.connection_lost(None)
    else:
        served.skip(11)
        assert served.status(1) == (4, "Deadline Exceeded")
    gate.open.set()
    until(lambda: served.turn() or not served.grpc._aside._busy)  # type: ignore[union-attr]
    assert len(gate.steps) == 1
    assert 1 not in served.messages
    served.loop.close()


@pytest.mark.parametrize("path", ["call", "stream"])
def test_a_server_that_stops_owes_what_is_being_compressed(path: str, gate: Gate) -> None:
    """It counts as in flight until it has been written."""
    served = Served(compression_level="high")
    served.feed(WIDE, ask(1, MANY) if path == "call" else talk([MANY]))
    until(lambda: aside(served, gate))
    served.grpc.stop_accepting()
    assert served.grpc.inflight() == 1
    gate.open.set()
    until(lambda: ended(served, 1))
    assert served.status(1) == (0, "")
    assert len(messages(served.messages[1])) == 1
    assert served.grpc.inflight() == 0
    served.close()


def test_an_answer_that_cannot_be_compressed_goes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in a thread leaves nobody waiting."""

    def broken(packing: Packing, most: int) -> bool:
        raise MemoryError

    monkeypatch.setattr(Packing, "step", broken)
    served = Served(compression_level="high")
    served.feed(WIDE, ask(1, MANY))
    until(lambda: ended(served, 1))
    ((flag, message),) = messages(served.messages[1])
    assert flag == 0
    assert len(pb.ModelInferResponse.FromString(message).raw_output_contents[0]) == 4 * MANY
    served.close()


@pytest.mark.slow
def test_a_hundred_heavy_calls_of_one_client_do_not_keep_another_waiting(gate: Gate) -> None:
    """Threads take turns between connections; all are answered in the end."""
    served = Served(compression_level="low")
    other = served.grpc.connection()
    numbers = range(1, 200, 2)
    served.feed(WIDE, *[ask(number, 250_000) for number in numbers])
    mine, served.connection = served.connection, other
    wire = Wire()
    wire.set_protocol(other)
    other.connection_made(wire)
    other.data_received(h2.PREFACE + WIDE + ask(1, 50_000))
    gate.open.set()
    until(lambda: served.turn() or not other.streams)
    assert len(mine.streams) > 50
    until(lambda: served.turn() or not mine.streams)
    served.frames()
    assert {served.fields[number]["grpc-status"] for number in numbers} == {"0"}
    other.connection_lost(None)
    mine.connection_lost(None)
    served.loop.close()
