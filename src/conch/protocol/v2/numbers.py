"""Tensor elements between JSON and their wire bytes."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from conch.protocol.v2.bulk import Packed
from conch.protocol.v2.faults import MAX_DEPTH
from conch.protocol.v2.lenient import too_deep
from conch.types.dtype import BF16, BOOL, BYTES, DataType
from conch.types.error import InferError, internal, invalid
from conch.types.tensor import Buffer, split_bytes

#: The `struct` letter of each type whose elements `struct` knows.
_LETTERS: Final = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
_FLOATS: Final = frozenset({"e", "f", "d"})
_INTEGERS: Final = frozenset({int})
_BOOLEANS: Final = frozenset({bool})
_NUMBERS: Final = frozenset({int, float})
_STRINGS: Final = frozenset({str})
_LENGTH = struct.Struct("<I").pack
_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_SHORT = {b'"': b'\\"', b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}

#: From this many elements on, a detour by way of a numpy array is the shorter way to a tensor's text.
_MANY: Final = 1024


def _wrong_type(what: str, wanted: str) -> InferError:
    return internal(f"Unable to parse 'data': attempt to access JSON non-{what} as {wanted}")


class Reader:
    """Turns the `data` member of one input into wire bytes; made once for each form.

    `count` is the number of elements that the input's shape asks for; -1 for BYTES, which are counted later.
    Elements of BYTES are strings, or objects `{"b64": "..."}` for bytes that are no text. Raises InferError with
    Triton's texts.
    """

    __slots__ = ("_count", "_datatype", "_kinds", "_name", "_pack")

    def __init__(self, name: str, datatype: DataType, count: int) -> None:
        self._name = name
        self._datatype = datatype
        self._count = count
        letter = _LETTERS.get(datatype.name)
        self._pack: Callable[..., bytes] = self._brain_floats
        if letter:
            self._pack = struct.Struct(f"<{count}{letter}").pack
        elif datatype is BYTES:
            self._pack = _join
        if datatype is BYTES:
            self._kinds: frozenset[type] = _STRINGS
        elif datatype is BOOL:
            self._kinds = _BOOLEANS
        else:
            self._kinds = _NUMBERS if letter in _FLOATS or datatype is BF16 else _INTEGERS

    def _brain_floats(self, *numbers: float) -> bytes:
        """As `Struct.pack`, which does not know BF16."""
        if len(numbers) != self._count:
            raise struct.error("wrong number of elements")
        with np.errstate(over="ignore"):
            return _cut_floats(np.array([float(number) for number in numbers], dtype="<f8").astype("<f4"))

    def read(self, data: list[Any] | Packed) -> bytes:
        """`data` may be flat or nested in any way; its scalars are taken in order."""
        if isinstance(data, Packed):
            if self._datatype is not BYTES:
                self._check_count(data.count)
            return data.raw
        if self._kinds.issuperset(map(type, data)):
            try:
                return self._pack(*data)
            except (struct.error, OverflowError, UnicodeEncodeError):
                pass  # not what it seemed: the careful way finds out
        return self._read_carefully(data)

    def _read_carefully(self, data: list[Any]) -> bytes:
        flat, kinds = flatten(data)
        if self._datatype is BYTES:
            if dict in kinds:
                flat = [_from_base64(each, self._name) if type(each) is dict else each for each in flat]
                kinds = set(map(type, flat)) - {bytes}
            if not kinds <= _STRINGS:
                raise internal("Unable to parse JSON bytes array: attempt to access JSON non-string as string")
            return _join(*flat)
        if len(flat) > self._count:
            self._check_count(len(flat))
        self._check_kinds(flat, kinds)
        self._check_count(len(flat))
        try:
            return self._pack(*flat)
        except (struct.error, OverflowError):
            return self._convert(flat)

    def _check_count(self, count: int) -> None:
        if count > self._count:
            raise internal("Unable to parse 'data': Shape does not match true shape of 'data' field")
        if count < self._count:
            raise internal("Failed to parse 'data' field: shape does not match true shape")

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
            if self._datatype is BF16:
                return _cut_floats(doubles.astype("<f4"))
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


def _from_base64(element: dict[str, Any], name: str) -> bytes:
    text = element.get("b64")
    if len(element) != 1 or not isinstance(text, str):
        raise invalid(f'an object among the data of input \'{name}\' must be {{"b64": "<base64 text>"}}')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise invalid(f"unable to decode the base64 text of input '{name}': {error}") from None


def _cut_floats(numbers: np.ndarray[Any, Any]) -> bytes:
    """The upper halves of FP32 numbers, rounded to the nearest, of two the even one; NaN stays NaN."""
    bits = numbers.view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


def _join(*elements: str | bytes) -> bytes:
    """BYTES elements; bytes that were not UTF-8 (lone surrogates) go on as they came."""
    parts: list[bytes] = []
    for element in elements:
        raw = element if type(element) is bytes else element.encode("utf-8", "surrogateescape")  # type: ignore[union-attr]
        parts.append(_LENGTH(len(raw)))
        parts.append(raw)
    return b"".join(parts)


class Writer:
    """Turns wire bytes into the JSON array of an output; made once for each response layout."""

    __slots__ = ("_dtype", "_floating", "_unpack", "_wide")

    def __init__(self, datatype: DataType, size: int) -> None:
        """`size` is the byte size of every tensor that will be written."""
        letter = _LETTERS.get(datatype.name)
        self._unpack: Callable[[Buffer], tuple[Any, ...]] | None = None
        if letter:
            self._unpack = struct.Struct(f"<{size // datatype.size}{letter}").unpack
        elif datatype is BF16:
            self._unpack = _unpack_brain_floats
        self._floating = letter in _FLOATS or datatype is BF16
        self._dtype = datatype.numpy if letter and size >= _MANY * datatype.size else None
        # As Triton, the text of the value as a double: an FP32's own shortest text would be another.
        self._wide = "<f8" if self._floating else self._dtype

    def write(self, data: Buffer) -> bytes:
        if self._unpack is None:
            return write_strings(split_bytes(data))
        if self._dtype is not None:
            numbers = np.frombuffer(data, self._dtype)
            text = orjson.dumps(numbers.astype(self._wide), None, orjson.OPT_SERIALIZE_NUMPY)
            if self._floating and not np.isfinite(numbers).all():
                return _name_specials(text, self._unpack(data))
            return text
        text = orjson.dumps(self._unpack(data))
        # Only NaN and the infinities are written as null.
        if self._floating and b"null" in text:
            return _name_specials(text, self._unpack(data))
        return text


def _unpack_brain_floats(data: Buffer) -> tuple[float, ...]:
    return tuple((np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").tolist())


def _name_specials(text: bytes, numbers: tuple[float, ...]) -> bytes:
    names = [
        b"NaN" if number != number else b"Infinity" if number > 0 else b"-Infinity"  # noqa: PLR0124
        for number in numbers
        if not math.isfinite(number)
    ]
    pieces = text.split(b"null")
    return b"".join([piece for pair in zip(pieces, [*names, b""], strict=True) for piece in pair])


def write_strings(elements: Sequence[bytes]) -> bytes:
    """The JSON array of BYTES elements."""
    try:
        return orjson.dumps([element.decode() for element in elements])
    except UnicodeDecodeError:
        # Triton sends such bytes as they are, although the result is not JSON any more.
        return b'["' + b'","'.join([_ESCAPED.sub(_escape, element) for element in elements]) + b'"]'


def _escape(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return _SHORT.get(byte) or b"\\u%04x" % byte[0]
