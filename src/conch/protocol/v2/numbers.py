"""Tensor elements between JSON and their wire bytes."""

from __future__ import annotations

import math
import re
import struct
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from conch.protocol.v2.faults import MAX_DEPTH
from conch.protocol.v2.lenient import too_deep
from conch.types.dtype import BF16, BOOL, BYTES, FP16, DataType
from conch.types.error import InferError, internal, invalid
from conch.types.tensor import Buffer, split_bytes

#: The `struct` letter of each type whose elements JSON can carry as they are.
_LETTERS: Final = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
_INTEGERS: Final = frozenset({int})
_BOOLEANS: Final = frozenset({bool})
_NUMBERS: Final = frozenset({int, float})
_STRINGS: Final = frozenset({str})
_LENGTH = struct.Struct("<I").pack
_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_SHORT = {b'"': b'\\"', b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}

_encode = msgspec.json.Encoder().encode


def _wrong_type(what: str, wanted: str) -> InferError:
    return internal(f"Unable to parse 'data': attempt to access JSON non-{what} as {wanted}")


class Reader:
    """Turns the `data` member of one input into wire bytes; made once for each form.

    `count` is the number of elements that the input's shape asks for; -1 for BYTES, which are counted later.
    Raises InferError with Triton's texts.
    """

    __slots__ = ("_count", "_datatype", "_kinds", "_pack")

    def __init__(self, name: str, datatype: DataType, count: int) -> None:
        if datatype is FP16 or datatype is BF16:
            raise invalid(
                f"receiving {datatype} data via JSON is not supported. "
                f"Please use the binary data format for input {name}"
            )
        self._datatype = datatype
        self._count = count
        letter = _LETTERS.get(datatype.name)
        self._pack = struct.Struct(f"<{count}{letter}").pack if letter else _join
        if datatype is BYTES:
            self._kinds: frozenset[type] = _STRINGS
        elif datatype is BOOL:
            self._kinds = _BOOLEANS
        else:
            self._kinds = _NUMBERS if letter in {"f", "d"} else _INTEGERS

    def read(self, data: list[Any]) -> bytes:
        """`data` may be flat or nested in any way; its scalars are taken in order."""
        if self._kinds.issuperset(map(type, data)):
            try:
                return self._pack(*data)
            except (struct.error, OverflowError, UnicodeEncodeError):
                pass  # not what it seemed: the careful way finds out
        return self._read_carefully(data)

    def _read_carefully(self, data: list[Any]) -> bytes:
        flat, kinds = flatten(data)
        if self._datatype is BYTES:
            if not kinds <= _STRINGS:
                raise internal("Unable to parse JSON bytes array: attempt to access JSON non-string as string")
            return _join(*flat)
        if len(flat) > self._count:
            raise internal("Unable to parse 'data': Shape does not match true shape of 'data' field")
        self._check_kinds(flat, kinds)
        if len(flat) < self._count:
            raise internal("Failed to parse 'data' field: shape does not match true shape")
        try:
            return self._pack(*flat)
        except (struct.error, OverflowError):
            return self._convert(flat)

    def _check_kinds(self, flat: list[Any], kinds: set[type]) -> None:
        if kinds <= self._kinds:
            if self._kinds is not _INTEGERS or not flat:
                return
            low, high = min(flat), max(flat)
            if self._datatype.name[0] == "U":
                fits = low >= 0 and high < 1 << 64
            else:
                fits = low >= -(1 << 63) and high < 1 << 63
            if fits:
                return
        if self._datatype is BOOL:
            raise _wrong_type("boolean", "boolean")
        if self._kinds is _NUMBERS:
            raise _wrong_type("number", "double")
        kind = "unsigned-integer" if self._datatype.name[0] == "U" else "signed-integer"
        raise _wrong_type(kind, kind)

    def _convert(self, flat: list[Any]) -> bytes:
        """What does not fit is cut as C cuts it: integers lose their upper bits, floats become infinite."""
        if self._kinds is _INTEGERS:
            wide = np.array(flat, dtype="<u8" if self._datatype.name[0] == "U" else "<i8")
            return wide.astype(self._datatype.numpy).tobytes()
        try:
            doubles = np.array([float(x) for x in flat], dtype="<f8")
        except OverflowError:
            raise internal("failed to parse the request JSON buffer: Number too big to be stored in double.") from None
        with np.errstate(over="ignore"):
            return doubles.astype(self._datatype.numpy).tobytes()


def flatten(data: list[Any]) -> tuple[list[Any], set[type]]:
    """The scalars of `data` in order, and their types. Raises InferError when it is nested too deeply."""
    flat = data
    for _ in range(MAX_DEPTH):
        kinds = set(map(type, flat))
        if list not in kinds:
            return flat, kinds
        if len(kinds) > 1:
            return _flatten_mixed(flat)
        flat = list(chain.from_iterable(flat))
    raise too_deep()


def _flatten_mixed(data: list[Any]) -> tuple[list[Any], set[type]]:
    flat: list[Any] = []
    open_lists = [iter(data)]
    while open_lists:
        for each in open_lists[-1]:
            if type(each) is list:
                if len(open_lists) >= MAX_DEPTH:
                    raise too_deep()
                open_lists.append(iter(each))
                break
            flat.append(each)
        else:
            open_lists.pop()
    return flat, set(map(type, flat))


def _join(*elements: str) -> bytes:
    """BYTES elements; bytes that were not UTF-8 (lone surrogates) go on as they came."""
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode("utf-8", "surrogateescape")
        parts.append(_LENGTH(len(raw)))
        parts.append(raw)
    return b"".join(parts)


class Writer:
    """Turns wire bytes into the JSON array of an output; made once for each response layout."""

    __slots__ = ("_floating", "_unpack")

    def __init__(self, datatype: DataType, size: int) -> None:
        """`size` is the byte size of every tensor that will be written. Raises InferError for FP16 and BF16."""
        if datatype is FP16 or datatype is BF16:
            raise invalid(
                f"sending {datatype} data via JSON is not supported. Please use the binary data format for output"
            )
        letter = _LETTERS.get(datatype.name)
        self._unpack = struct.Struct(f"<{size // datatype.size}{letter}").unpack if letter else None
        self._floating = letter in {"f", "d"}

    def write(self, data: Buffer) -> bytes:
        if self._unpack is None:
            return _write_strings(data)
        numbers = self._unpack(data)
        text = _encode(numbers)
        # Only NaN and the infinities are written as null.
        if self._floating and b"null" in text:
            return _name_specials(text, numbers)
        return text


def _name_specials(text: bytes, numbers: tuple[float, ...]) -> bytes:
    names = [
        b"NaN" if number != number else b"Infinity" if number > 0 else b"-Infinity"  # noqa: PLR0124
        for number in numbers
        if not math.isfinite(number)
    ]
    pieces = text.split(b"null")
    return b"".join([piece for pair in zip(pieces, [*names, b""], strict=True) for piece in pair])


def _write_strings(data: Buffer) -> bytes:
    elements = split_bytes(data)
    try:
        return _encode([element.decode() for element in elements])
    except UnicodeDecodeError:
        # Triton sends such bytes as they are, although the result is not JSON any more.
        return b'["' + b'","'.join([_ESCAPED.sub(_escape, element) for element in elements]) + b'"]'


def _escape(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return _SHORT.get(byte) or b"\\u%04x" % byte[0]
