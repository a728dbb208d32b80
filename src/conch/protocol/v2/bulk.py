"""Large JSON bodies: their numbers go from text to wire bytes without becoming Python objects in between.

An image as JSON is 150,000 numbers; as Python floats in a list they cost more than everything else that is done with
them. simdjson reads them into one array at a third of the time. It is asked about large bodies only, and only for
what it takes without doubt: whatever it does not like, the usual parser judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import simdjson

from conch.protocol.v2.asked import NOTHING, Asked, AskedInput
from conch.types.dtype import BY_NAME
from conch.types.tensor import Buffer

#: JSON bodies from this size on are large.
LARGE: Final = 16 << 10

#: By the first letter of a type's name: what simdjson shall read, and numpy's name of that.
_KINDS: Final = {"F": ("d", "<f8"), "I": ("i", "<i8"), "U": ("u", "<u8")}


@dataclass(frozen=True, slots=True)
class Packed:
    """The `data` of one input as wire bytes, and how many elements there were."""

    raw: bytes
    count: int


class BulkReader:
    """One per codec; keeps simdjson's memory between bodies."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def read(self, text: Buffer) -> Asked | None:
        """The request in `text`, or None where this is no matter for simdjson."""
        try:
            return _read_request(self._parser.parse(text))
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            # What Triton takes and JSON does not, numbers out of range, elements of several types, an array of objects.
            return None


def _read_request(root: Any) -> Asked:
    members = _members(root)
    ident = members.get("id", "")
    if type(ident) is not str:
        raise TypeError("the id is no string")
    inputs = [_read_input(each) for each in members["inputs"]]
    return Asked(inputs, ident, _text(members, "parameters"), _text(members, "outputs"))


def _read_input(given: Any) -> AskedInput:
    members = _members(given)
    name, datatype, shape = members["name"], members["datatype"], members["shape"].as_list()
    if type(name) is not str or type(datatype) is not str or not {int}.issuperset(map(type, shape)):
        raise TypeError("no name, datatype and shape")
    data = pack(datatype, members["data"]) if "data" in members else msgspec.UNSET
    return AskedInput(name, datatype, tuple(shape), _text(members, "parameters"), data)


def _members(value: Any) -> dict[str, Any]:
    """Of an object whose names are all different; arrays and objects in it stay simdjson's."""
    names = list(value.keys())
    if len(set(names)) != len(names):
        raise KeyError("a name that is there twice")
    return {name: value[name] for name in names}


def _text(members: dict[str, Any], name: str) -> msgspec.Raw:
    return msgspec.Raw(members[name].mini) if name in members else NOTHING


def pack(datatype: str, data: Any) -> Any:
    """simdjson's array as `Packed`; as a list where it holds no numbers. Raises what simdjson raises."""
    kind = _KINDS.get(datatype[:1])
    known = BY_NAME.get(datatype)
    if kind is None or known is None:
        return data.as_list()
    letter, dtype = kind
    numbers = np.frombuffer(data.as_buffer(of_type=letter), dtype)
    with np.errstate(over="ignore"):
        return Packed(numbers.astype(known.numpy, copy=False).tobytes(), len(numbers))
