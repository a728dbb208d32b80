"""How an InferError is told over gRPC: the status number and the percent-encoded message."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from conch.types.error import Code


class Status(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS: Final = {
    Code.UNKNOWN: Status.UNKNOWN,
    Code.INTERNAL: Status.INTERNAL,
    Code.NOT_FOUND: Status.NOT_FOUND,
    Code.INVALID_ARG: Status.INVALID_ARGUMENT,
    Code.UNAVAILABLE: Status.UNAVAILABLE,
    Code.UNSUPPORTED: Status.UNIMPLEMENTED,
    Code.ALREADY_EXISTS: Status.ALREADY_EXISTS,
    Code.CANCELLED: Status.CANCELLED,
}

#: Clients refuse trailers above 8 KiB or so; a message longer than this, in UTF-8 and as it travels, is cut.
_MAX_MESSAGE: Final = 4096
_MAX_ENCODED: Final = 7168
_ESCAPES: Final = [chr(byte) if 0x20 <= byte < 0x7F and byte != 0x25 else f"%{byte:02X}" for byte in range(256)]


def percent_encode(message: str) -> bytes:
    """`grpc-message`: UTF-8, with everything but printable ASCII and the percent sign itself as `%XX`."""
    raw = message.encode("utf-8", "replace")
    encoded = _encode(raw[:_MAX_MESSAGE])
    if len(raw) <= _MAX_MESSAGE and len(encoded) <= _MAX_ENCODED:
        return encoded
    length = _MAX_MESSAGE
    while True:
        # Between two characters; what is too long becomes shorter in proportion.
        encoded = _encode(raw[:length].decode("utf-8", "ignore").encode() + b"...")
        if len(encoded) <= _MAX_ENCODED:
            return encoded
        length = length * _MAX_ENCODED // len(encoded)


def _encode(raw: bytes) -> bytes:
    return "".join([_ESCAPES[byte] for byte in raw]).encode()
