"""Length-prefixed messages in pieces, compressed messages both ways, and bombs."""

from __future__ import annotations

import gzip
import struct
import threading
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc_status import Status
from conch.transport import http2_frames as h2
from conch.transport.grpc_fault import GrpcFault
from conch.transport.grpc_messages import Compression, Inbox, choose_compression
from conch.transport.grpc_unpack import Unpacking
from support.h2client import INFER, LIVE, Served, block, data, framed, headers, infer_message
from support.until import until

#: Windows that hold up no answer.
WIDE = h2.settings({h2.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 30}) + h2.window_update(0, 1 << 30)
PACK = {b"gzip": gzip.compress, b"deflate": zlib.compress}


def decompress(message: bytes, encoding: bytes, limit: int) -> bytes:
    unpacking = Unpacking(message, encoding, limit)
    while not unpacking.step(1000):
        pass
    return unpacking.take()


def packed(message: bytes) -> bytes:
    return struct.pack(">BI", 1, len(message)) + message


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=200)), max_size=8), st.data())
def test_messages_come_out_as_they_went_in(messages: list[tuple[bool, bytes]], draw: st.DataObject) -> None:
    """However the bytes are cut, every message comes out once, whole, in order, decompressed."""
    raw = b"".join([packed(zlib.compress(m)) if compress else framed(m) for compress, m in messages])
    inbox, found, at = Inbox(1000, b"deflate"), [], 0
    while at < len(raw):
        size = draw.draw(st.integers(1, 60))
        inbox.add(raw, at, min(len(raw), at + size))
        at += size
        while draw.draw(st.booleans()) and (message := inbox.next()) is not None:
            found.append(message)
    while (message := inbox.next()) is not None:
        found.append(message)
    assert found == [message for _, message in messages]
    assert len(inbox) == 0


def test_what_has_been_taken_is_let_go() -> None:
    """Also where the client is always one message ahead."""
    inbox, message = Inbox(1 << 20), framed(bytes(1000))
    inbox.add(message, 0, len(message))
    for _ in range(2000):
        inbox.add(message, 0, len(message))
        assert inbox.next() == message[5:]
    assert len(inbox) == len(message)
    assert len(inbox._data) < 100_000


def test_large_messages_are_not_copied() -> None:
    """A large message is handed over as the buffer it was collected in."""
    inbox = Inbox(1 << 20)
    inbox.add(framed(bytes(200_000)), 0, 50_000)
    assert inbox.next() is None
    inbox.add(bytes(150_005), 0, 150_005)
    message = inbox.next()
    assert not isinstance(message, bytes)
    assert len(message) == 200_000


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_refused(encoding: bytes) -> None:
    """What would be larger than the limit is never made."""
    bomb = PACK[encoding](bytes(50 << 20))
    with pytest.raises(GrpcFault) as fault:
        decompress(bomb, encoding, 1 << 20)
    assert fault.value.status is Status.RESOURCE_EXHAUSTED
    served = Served(max_message_size=1 << 20)
    served.feed(headers(1, block(INFER, (b"grpc-encoding", encoding))) + data(1, packed(bomb)))
    until(lambda: ended(served, 1))
    assert served.status(1) == (8, "Decompressed message larger than max (max 1048576 bytes)")
    served.close()


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("damage", ["cut", "longer", "garbage", "empty"])
def test_broken_compression_is_refused(encoding: bytes, damage: str) -> None:
    """Data that is cut off, longer than it says or no compressed data at all is an error of the call."""
    good = PACK[encoding](b"hello" * 10)
    bad = {"cut": good[:-3], "longer": good + b"x", "garbage": b"\xff" * 30, "empty": b""}[damage]
    served = Served()
    served.feed(headers(1, block(LIVE, (b"grpc-encoding", encoding))) + data(1, packed(bad)))
    assert served.status(1)[0] == 13
    served.close()


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("level", ["none", "low", "medium", "high"])
def test_compressed_requests_and_responses(encoding: bytes, level: str) -> None:
    """Requests may be compressed at any level of ours; responses are when the flag says so and the client takes it."""
    served = Served(compression_level=level)
    message = infer_message("x", [1.0] * 500)
    raw = PACK[encoding](message.SerializeToString())
    extra = ((b"grpc-encoding", encoding), (b"grpc-accept-encoding", b"identity, " + encoding))
    for stream in (1, 3, 5):
        served.feed(headers(stream, block(INFER, *extra)) + data(stream, packed(raw)))
        assert served.status(stream) == (0, "")
        answer = served.messages[stream]
        body = answer[5:]
        assert answer[0] == (level != "none")
        if level != "none":
            assert served.fields[stream]["grpc-encoding"] == encoding.decode()
            body = decompress(body, encoding, 1 << 20)
        assert pb.ModelInferResponse.FromString(body).raw_output_contents[0] == message.raw_input_contents[0]
    served.close()


def ended(served: Served, stream: int) -> bool:
    """Whether the call has its answer, once what threads have done is taken up."""
    served.turn()
    served.frames()
    return "grpc-status" in served.fields.get(stream, {})


def asked(served: Served) -> list[Any]:
    """The requests that models have, once what threads have done is taken up."""
    served.turn()
    return list(served.scheduler.held)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step of unpacking, whether the loop's thread made it."""
    made: list[bool] = []
    step = Unpacking.step

    def noted(unpacking: Unpacking, most: int) -> bool:
        made.append(threading.current_thread() is threading.main_thread())
        return step(unpacking, most)

    monkeypatch.setattr(Unpacking, "step", noted)
    return made


def ask(stream: int, encoding: bytes, count: int, id: str = "x", path: bytes = INFER) -> bytes:
    """A compressed call."""
    raw = packed(PACK[encoding](infer_message(id, [1.0] * count).SerializeToString()))
    return headers(stream, block(path, (b"grpc-encoding", encoding))) + data(stream, raw)


@pytest.mark.parametrize("encoding", PACK)
def test_large_messages_are_unpacked_beside_the_loop(encoding: bytes, steps: list[bool]) -> None:
    """The loop's thread begins, others go on; little ones have no thread to wait for."""
    served = Served()
    served.feed(WIDE, ask(1, encoding, 100))
    assert served.status(1) == (0, "")
    assert steps == [True]
    served.feed(ask(3, encoding, 2_000_000))
    until(lambda: ended(served, 3))
    assert served.status(3) == (0, "")
    assert served.messages[3].endswith(struct.pack("<f", 1.0) * 10)
    assert steps[:2] == [True, True]
    assert len(steps) > 5
    assert not any(steps[2:])
    served.close()


def test_a_call_that_ends_is_not_unpacked_further(steps: list[bool]) -> None:
    """A client that leaves cannot have its bomb taken apart after that, nor the model asked."""
    served = Served("hold")
    held = threading.Event()
    for _ in range(2):
        served.grpc._aside._threads.submit(held.wait)  # type: ignore[union-attr]
    served.feed(ask(1, b"gzip", 2_000_000), ask(3, b"gzip", 2_000_000), h2.frame(h2.RST_STREAM, 0, 1, bytes(4)))
    held.set()
    until(lambda: len(asked(served)) == 1)
    assert [request.id for request in served.scheduler.held] == ["x"]
    assert len(steps) < 2 + 2 * (8_000_000 >> 20)
    served.close()


def test_messages_of_a_stream_keep_their_order_while_one_is_unpacked() -> None:
    """What follows a large message waits for it; so does the end."""
    served = Served()
    raw = b"".join(
        [
            packed(zlib.compress(infer_message(str(number), [1.0] * count).SerializeToString()))
            for number, count in enumerate((1, 1_000_000, 1, 1_000_000, 1))
        ]
    )
    path = b"/inference.GRPCInferenceService/ModelStreamInfer"
    served.feed(WIDE, headers(1, block(path, (b"grpc-encoding", b"deflate"))) + data(1, raw))
    until(lambda: ended(served, 1))
    assert served.status(1) == (0, "")
    found, at, answer = [], 0, served.messages[1]
    while at < len(answer):
        size = int.from_bytes(answer[at + 1 : at + 5], "big")
        found.append(pb.ModelStreamInferResponse.FromString(answer[at + 5 : at + 5 + size]).infer_response.id)
        at += 5 + size
    assert found == ["0", "1", "2", "3", "4"]
    served.close()


def test_a_stream_that_ends_while_a_message_is_unpacked_asks_nothing() -> None:
    """What is left is neither unpacked nor asked, and a broken message ends its stream."""
    served = Served("hold")
    path = b"/inference.GRPCInferenceService/ModelStreamInfer"
    held = threading.Event()
    for _ in range(2):
        served.grpc._aside._threads.submit(held.wait)  # type: ignore[union-attr]
    served.feed(ask(1, b"gzip", 1_000_000, path=path), h2.frame(h2.RST_STREAM, 0, 1, bytes(4)))
    raw = zlib.compress(infer_message("x", [1.0] * 1_000_000).SerializeToString())
    served.feed(headers(3, block(path, (b"grpc-encoding", b"deflate"))) + data(3, packed(raw[:-9])))
    held.set()
    until(lambda: ended(served, 3))
    assert served.status(3)[0] == 13
    assert served.scheduler.held == []
    served.close()


def test_responses_are_plain_where_nothing_is_won() -> None:
    """No accepted encoding, other methods, and messages that would grow: no compression."""
    assert choose_compression("high", b"") is None
    assert choose_compression("high", b"identity,br") is None
    assert choose_compression("none", b"gzip") is None
    assert Compression(b"gzip", 1).pack([b"abc", b"d"], 4) == (0, [b"abc", b"d"], 4)
    served = Served(compression_level="high")
    served.feed(headers(1, block(LIVE, (b"grpc-accept-encoding", b"gzip"))) + data(1, framed()))
    assert served.status(1) == (0, "")
    assert "grpc-encoding" not in served.fields[1]
    served.close()


def test_the_level_chooses_the_encoding() -> None:
    """As in gRPC: gzip for low, deflate for the higher levels, or whatever the client takes."""
    both = b"identity, deflate, gzip"
    chosen = [choose_compression(level, both) for level in ("low", "medium", "high")]
    assert [each.encoding for each in chosen if each] == [b"gzip", b"deflate", b"deflate"]
    only = choose_compression("high", b"gzip")
    assert only is not None
    assert only.encoding == b"gzip"
