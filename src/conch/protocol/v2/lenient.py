"""Reads the JSON that the fast parser refuses and Triton takes (NaN, Infinity, raw bytes), or says what is wrong."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from conch.protocol.v2.faults import MAX_DEPTH, MAX_WALK, find_fault
from conch.types.error import InferError, internal, invalid

_TOKENS = re.compile(rb"NaN|Inf")
#: Tokens that the standard library spells in another way.
_OTHER = re.compile(r"-NaN|Inf(?!inity)")
#: One of them, or strings (the last may lack its end) and what lies between them. Never reads a character twice.
_SPELLING = re.compile(r'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?[^"I-]*+)++|-NaN|Inf(?!inity)', re.DOTALL)
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_WHOLE = re.compile(
    rb"(?:[^\\]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?!u[dD][89a-fA-F]).)*+", re.DOTALL
)
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_OFFSET = re.compile(r"\(byte (\d+)\)")
_REASONS: Final = {
    "object keys must be strings": "Missing a name for object member.",
    "expected ':'": "Missing a colon after a name of object member.",
    "expected ',' or '}'": "Missing a comma or '}' after an object member.",
    "expected ',' or ']'": "Missing a comma or ']' after an array element.",
    "trailing characters": "The document root must not be followed by other values.",
}

_decode = msgspec.json.Decoder().decode


def malformed(reason: str) -> InferError:
    return internal(f"failed to parse the request JSON buffer: {reason}")


def too_deep() -> InferError:
    return invalid(f"JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})")


def parse(text: bytes | bytearray | memoryview) -> Any:
    """The value of `text`. Bytes that are not UTF-8 come as lone surrogates (`surrogateescape`).

    Raises InferError with Triton's texts.
    """
    if text[:3] == _BYTE_ORDER_MARK:
        text = text[3:]
    try:
        return _decode(text)
    except RecursionError:
        raise too_deep() from None
    except UnicodeDecodeError:
        return _parse_slowly(bytes(text), "Invalid encoding in string. at 0")
    except msgspec.MsgspecError as error:
        raw = bytes(text)
        if _TOKENS.search(raw) is None:
            raise _explain(raw, str(error)) from None
        return _parse_slowly(raw, str(error))


def _parse_slowly(raw: bytes, said: str) -> Any:
    text = raw.decode("utf-8", "surrogateescape")
    if len(raw) <= MAX_WALK:
        if find_fault(raw) is not None:
            raise _explain(raw, said)
    elif _HALF.search(raw) is not None:
        _check_pairs(raw)
    try:
        return json.loads(_SPELLING.sub(_respell, text) if _OTHER.search(text) else text)
    except RecursionError:
        raise too_deep() from None
    except ValueError:
        raise _explain(raw, said) from None


def _check_pairs(raw: bytes) -> None:
    """Refuse halves of surrogate pairs, which the standard library takes."""
    match = _WHOLE.match(raw)
    if match is not None and _HALF.match(raw, match.end()):
        raise malformed(f"The surrogate pair in string is invalid. at {match.end()}")


def _respell(match: re.Match[str]) -> str:
    word = match[0]
    if word[0] == '"':
        return word
    return "NaN" if word[-1] == "N" else "Infinity"


def _explain(raw: bytes, said: str) -> InferError:
    if len(raw) <= MAX_WALK:
        fault = find_fault(raw)
        if fault is not None:
            return malformed(str(fault))
    offset = _OFFSET.search(said)
    at = int(offset[1]) if offset else len(raw)
    reason = next((reason for part, reason in _REASONS.items() if part in said), "Invalid value.")
    return malformed(f"{reason} at {at}")
