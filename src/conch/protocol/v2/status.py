"""The HTTP numbers of error codes, and the bodies and header lines of errors."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from conch.types.error import Code, InferError

#: Triton's mapping of its error codes.
HTTP_STATUS: Final = {
    Code.UNKNOWN: 400,
    Code.INTERNAL: 500,
    Code.NOT_FOUND: 404,
    Code.INVALID_ARG: 400,
    Code.UNAVAILABLE: 503,
    Code.UNSUPPORTED: 501,
    Code.ALREADY_EXISTS: 400,
    Code.CANCELLED: 400,
}

_encode = msgspec.json.Encoder().encode


def error_body(message: str) -> bytes:
    """`{"error":"<message>"}`; what UTF-8 cannot carry is replaced."""
    return _encode({"error": message.encode("utf-8", "replace").decode()})


def retry_after(error: InferError) -> bytes:
    """The header line that says when to ask again (RFC 9110, 10.2.3: whole seconds); empty where nobody knows."""
    return b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after_s)) if error.retry_after_s > 0 else b""
