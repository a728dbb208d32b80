"""Length-prefixed messages in pieces, compressed messages both ways, and bombs."""

from __future__ import annotations

import gzip
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc_status import Status
from conch.transport.grpc_messages import Compression, GrpcFault, Inbox, choose_compression, decompress
from support.h2client import INFER, LIVE, Served, block, data, framed, headers, infer_message

PACK = {b"gzip": gzip.compress, b"deflate": zlib.compress}


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
