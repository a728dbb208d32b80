"""Entries as bytes, for caches outside of this process: versioned, checked, never trusted. Pure."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any, Final

from conch.cache.api import Entry
from conch.types.dtype import BY_NAME, BYTES
from conch.types.response import InferResponse
from conch.types.tensor import Tensor, split_bytes

#: Changes with the form of what follows: a digest of all the rest, the length of a head, the head, the contents.
_VERSION: Final = b"conch-entry-1\n"
_DIGEST_BYTES: Final = 16
_LENGTH: Final = struct.Struct("<I")
_START: Final = len(_VERSION) + _DIGEST_BYTES


def encode(entry: Entry) -> bytes:
    outputs = entry.response.outputs
    head = json.dumps(
        {
            "outputs": [[each.name, each.datatype.name, list(each.shape), len(each.data)] for each in outputs],
            "parameters": entry.response.parameters,
        }
    ).encode()
    rest = b"".join([_LENGTH.pack(len(head)), head, *[each.data for each in outputs]])
    return b"".join([_VERSION, _digest(rest), rest])


def decode(data: bytes) -> Entry | None:
    """None for anything that `encode` has not made, or that was damaged since."""
    if not data.startswith(_VERSION) or data[len(_VERSION) : _START] != _digest(data[_START:]):
        return None
    try:
        return Entry(_response(data[_START:]))
    except (ValueError, TypeError, KeyError, struct.error, RecursionError):
        # The digest is no proof: whoever can write to the cache can make one.
        return None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _response(rest: bytes) -> InferResponse:
    """Raises ValueError, TypeError, KeyError or struct.error where something does not fit."""
    (length,) = _LENGTH.unpack_from(rest)
    position = _LENGTH.size + length
    head = json.loads(rest[_LENGTH.size : position])
    tensors = []
    for name, datatype, shape, size in head["outputs"]:
        tensor = _tensor(name, datatype, shape, rest[position : position + _natural(size)])
        if len(tensor.data) != size:
            raise ValueError("contents are cut off")
        tensors.append(tensor)
        position += size
    if position != len(rest):
        raise ValueError("there is more than there should be")
    return InferResponse(tensors, _parameters(head["parameters"]))


def _tensor(name: Any, datatype: Any, shape: Any, data: bytes) -> Tensor:
    kind = BY_NAME[datatype]
    if not isinstance(name, str):
        raise TypeError("a name is a text")
    _check_text(name)
    count = 1
    for size in shape:
        count *= _natural(size)
    held = len(split_bytes(data)) if kind is BYTES else len(data) / kind.size
    if held != count:
        raise ValueError("shape and contents do not fit")
    return Tensor(name, kind, tuple(shape), data)


def _parameters(value: Any) -> dict[str, bool | int | float | str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(each, bool | int | float | str) for each in value.values()):
        raise TypeError("parameters are names and plain values")
    for name, each in value.items():
        _check_text(name)
        if isinstance(each, str):
            _check_text(each)
        elif type(each) is int and not -(2**63) <= each < 2**64:
            raise ValueError("no protocol has numbers that large")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("a size is a natural number")
    return value


def _check_text(text: str) -> None:
    """Raises ValueError for what cannot be sent: JSON may hold halves of surrogate pairs."""
    text.encode()
