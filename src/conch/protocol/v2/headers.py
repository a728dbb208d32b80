"""What the headers of a request ask for, beyond where its JSON ends. Pure; worked out once per distinct head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from conch.types.error import Code, InferError, invalid

#: Content codings of requests, and what they are called here.
_CODINGS: Final = {"": "", "identity": "", "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
#: Codings of responses that are considered; the first stands for none.
_ACCEPTABLE: Final = {"identity": "", "deflate": "deflate", "gzip": "gzip"}
#: RFC 9110 12.4.2.
_QUALITY: Final = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")

_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
_NS: Final = 1_000_000_000

_RESERVED: Final = frozenset({
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output",
})  # fmt: skip


class UnsupportedCodingError(InferError):
    """Answered with 501 and the codings that there are."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What few requests ask for: an answer within this time (0: whenever), and its coding (empty: none)."""

    timeout_ns: int
    coding: str


def read_extras(headers: Mapping[str, str]) -> Extras | None:
    """None for a request that asks for nothing special. `headers` have lower-case names. Raises InferError."""
    timeout = headers.get("request-timeout")
    accepted = headers.get("accept-encoding")
    extras = Extras(
        0 if timeout is None else parse_timeout(timeout), "" if accepted is None else accepted_coding(accepted)
    )
    return extras if extras.timeout_ns or extras.coding else None


def content_coding(value: str) -> str:
    """The coding of a request's body: empty, gzip or deflate. Raises InferError for any other."""
    coding = _CODINGS.get(value.strip().lower())
    if coding is None:
        raise UnsupportedCodingError(Code.UNSUPPORTED, "Unsupported compression type", "use gzip, deflate or none")
    return coding


def accepted_coding(value: str) -> str:
    """The coding that `Accept-Encoding` likes best: empty, gzip or deflate.

    Of equal qualities the first wins. Other codings, and those whose quality is no number, are passed over.
    """
    best, liked = "", 0.0
    for member in value.split(","):
        name, _, rest = member.partition(";")
        coding = _ACCEPTABLE.get(name.strip().lower())
        if coding is not None:
            quality = _quality(rest)
            if quality > liked:
                best, liked = coding, quality
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            value = value.strip()
            return float(value) if _QUALITY.fullmatch(value) else 0.0
    return 1.0


def parse_timeout(value: str) -> int:
    """The nanoseconds that `Request-Timeout` gives in seconds. Raises InferError."""
    nanoseconds = 0
    if _SECONDS.fullmatch(value):
        whole, _, part = value.partition(".")
        nanoseconds = int(whole or "0") * _NS + int(f"{part:0<9}"[:9] or "0")
    if not nanoseconds:
        raise invalid(
            f"Unable to parse Request-Timeout, expected seconds as a decimal number greater than 0 such as 2.5, "
            f"got: {value[:80]}"
        )
    return nanoseconds


def forwarded(pattern: re.Pattern[str], lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers whose names `pattern` is found in, by the client's spelling. Raises InferError for reserved names.

    A header given twice has its values joined (RFC 9110 5.3).
    """
    found: dict[str, str] = {}
    for name, value in lines:
        if pattern.search(name) is None:
            continue
        if name.lower() in _RESERVED or name.lower().startswith("triton_"):
            raise invalid(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
        readable = value.encode("latin-1").decode("utf-8", "replace")
        found[name] = f"{found[name]}, {readable}" if name in found else readable
    return found
