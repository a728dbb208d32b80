"""gRPC's header lists: what a request's says, and the few blocks that answers are made of."""

from __future__ import annotations

import math
import re
import struct
from typing import Final

from conch.protocol.v2.grpc_status import Status, percent_encode
from conch.transport import http2_frames as h2
from conch.transport.grpc_messages import ENCODINGS
from conch.transport.http2_headers import Header, literal

_CONTENT_TYPE: Final = b"application/grpc"
_STATUS: Final = b"grpc-status"

#: `:status: 200` (static entry 8), then content-type (static name 31), indexed: it becomes dynamic entry 62.
_FIRST_HEADERS: Final = b"\x88\x5f" + bytes([len(_CONTENT_TYPE)]) + _CONTENT_TYPE
#: Indexed: it becomes 62 and moves content-type to 63.
_FIRST_TRAILERS: Final = b"\x40" + bytes([len(_STATUS)]) + _STATUS + b"\x010"
_KNOWN_HEADERS: Final = b"\x88\xbf"
_KNOWN_TRAILERS: Final = b"\xbe"
_PLAIN_HEADERS: Final = b"\x88" + literal(b"content-type", _CONTENT_TYPE)
_PLAIN_TRAILERS: Final = literal(_STATUS, b"0")

_WHOLE: Final = struct.Struct(">IBI2sIBIBI")
_END: Final = struct.Struct(">IBI1s")
_HEADERS_WORD: Final = (len(_KNOWN_HEADERS) << 8) | h2.HEADERS
_TRAILERS_WORD: Final = (len(_KNOWN_TRAILERS) << 8) | h2.HEADERS


class AnswerHeaders:
    """The header blocks of successful answers on one connection.

    The first answer has the peer remember both fields; from then on (`ready`) a block is two bytes or one. Blocks must
    be sent in the order in which they are asked for.
    """

    __slots__ = ("_first_sent", "_forbidden", "ready")

    def __init__(self) -> None:
        self.ready = False
        self._first_sent = False
        self._forbidden = False

    def headers(self) -> bytes:
        if self.ready:
            return _KNOWN_HEADERS
        if self._first_sent or self._forbidden:
            return _PLAIN_HEADERS
        self._first_sent = True
        return _FIRST_HEADERS

    def trailers(self) -> bytes:
        if self.ready:
            return _KNOWN_TRAILERS
        if self._forbidden:
            return _PLAIN_TRAILERS
        # Whoever comes first; the headers are known by now.
        self.ready = True
        return _FIRST_TRAILERS

    def forbid(self) -> None:
        """The peer's table is too small to rely on."""
        self.ready = False
        self._forbidden = True


def answer_start(stream: int, size: int) -> bytes:
    """HEADERS, the head of the one DATA frame, and gRPC's prefix of a message of `size` bytes; needs `ready`."""
    return _WHOLE.pack(
        _HEADERS_WORD, h2.END_HEADERS, stream, _KNOWN_HEADERS, (size + 5) << 8, 0, stream, 0, size
    )  # fmt: skip


def answer_end(stream: int) -> bytes:
    """The trailers of success; needs `ready`."""
    return _END.pack(_TRAILERS_WORD, h2.END_HEADERS | h2.END_STREAM, stream, _KNOWN_TRAILERS)


def failure(status: Status, message: str, retry_after_s: float = 0.0) -> bytes:
    """The only header block of a failed call (gRPC's "trailers-only").

    `retry_after_s`, unless 0, is told twice: in seconds, as over HTTP, and in milliseconds, as gRPC's own retries read.
    """
    block = _PLAIN_HEADERS + trailers(status, message)
    if retry_after_s > 0:
        block += literal(b"retry-after", b"%d" % max(1, math.ceil(retry_after_s)))
        block += literal(b"grpc-retry-pushback-ms", b"%d" % max(1, math.ceil(retry_after_s * 1000)))
    if status is Status.UNIMPLEMENTED:
        block += literal(b"grpc-accept-encoding", ENCODINGS)
    return block


def trailers(status: Status, message: str) -> bytes:
    """The trailers of a call that has sent headers."""
    block = literal(_STATUS, b"%d" % status)
    return block + literal(b"grpc-message", percent_encode(message)) if message else block


def encoding_field(encoding: bytes) -> bytes:
    """Follows the headers of a call whose answers may be compressed."""
    return literal(b"grpc-encoding", encoding)


def http_failure(status: int) -> bytes:
    """The only header block for a peer that does not speak gRPC."""
    return literal(b":status", b"%d" % status) + literal(b"content-length", b"0")


def field(headers: list[Header], name: bytes) -> bytes:
    """The last value of a field; empty when it is absent."""
    value = b""
    for each, given in headers:
        if each == name:
            value = given
    return value


_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def parse_timeout(value: bytes) -> float | None:
    """Seconds of a grpc-timeout; None when it is malformed."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _UNITS[match[2]] if match else None
