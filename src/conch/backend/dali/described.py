"""What a serialized DALI pipeline says of its inputs and outputs. Pure; workers read it without our other rooms.

DALI's Python interface does not tell the inputs of a pipeline that was read from a file, so its message is read here:
only the few fields that are needed, by their numbers in DALI's dali.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: DALI's numbers of data types -> the config's names.
TYPES: Final[Mapping[int, str]] = {
    0: "TYPE_UINT8",
    1: "TYPE_UINT16",
    2: "TYPE_UINT32",
    3: "TYPE_UINT64",
    4: "TYPE_INT8",
    5: "TYPE_INT16",
    6: "TYPE_INT32",
    7: "TYPE_INT64",
    8: "TYPE_FP16",
    9: "TYPE_FP32",
    10: "TYPE_FP64",
    11: "TYPE_BOOL",
}
_BATCH_SIZE, _OPERATOR, _OUTPUT = 2, 5, 7
_OP_NAME, _OP_OUTPUT, _OP_ARGUMENT = 1, 3, 4
_ARGUMENT_NAME, _ARGUMENT_INTEGER = 1, 4
_EDGE_NAME, _EDGE_DEVICE, _EDGE_TYPE, _EDGE_RANK = 1, 2, 5, 6


class UnreadableError(Exception):
    """These bytes are no serialized pipeline."""


@dataclass(frozen=True)
class Port:
    """One input or output; `data_type` is empty and `rank` None where the pipeline does not say."""

    name: str
    data_type: str
    rank: int | None


@dataclass(frozen=True)
class Description:
    batch_size: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    #: Whether any operator or output is on a GPU.
    gpu: bool


def describe(message: bytes) -> Description:
    """Of a serialized pipeline. Inputs in the order of their names, as DALI lists them. Raises UnreadableError."""
    try:
        fields = list(_fields(message))
        inputs = [_input(value) for number, value in fields if number == _OPERATOR and _is_input(value)]
        outputs = [_output(value) for number, value in fields if number == _OUTPUT]
        sizes = [value for number, value in fields if number == _BATCH_SIZE]
        devices = {_text(value, _EDGE_DEVICE) for number, value in fields if number == _OUTPUT}
        devices |= {
            _text(output, _EDGE_DEVICE)
            for number, value in fields
            if number == _OPERATOR
            for part, output in _fields(value)
            if part == _OP_OUTPUT
        }
    except (IndexError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise UnreadableError("it is no serialized pipeline") from error
    if not outputs:
        raise UnreadableError("it has no outputs")
    ordered = tuple(sorted(inputs, key=lambda port: port.name))
    return Description(int(sizes[0]) if sizes else 0, ordered, tuple(outputs), "gpu" in devices)


def _is_input(operator: Any) -> bool:
    name = _text(operator, _OP_NAME).removeprefix("_")
    return name == "ExternalSource" or name.startswith("inputs__") or name == "VideoInput"


def _input(operator: Any) -> Port:
    name = ""
    numbers: dict[str, int] = {}
    for number, value in _fields(operator):
        if number == _OP_OUTPUT and not name:
            name = _text(value, _EDGE_NAME)
        elif number == _OP_ARGUMENT:
            numbers |= {
                _text(value, _ARGUMENT_NAME): int(each) for part, each in _fields(value) if part == _ARGUMENT_INTEGER
            }
    return _port(name, numbers.get("dtype"), numbers.get("ndim"))


def _output(edge: Any) -> Port:
    numbers = {number: value for number, value in _fields(edge) if number in (_EDGE_TYPE, _EDGE_RANK)}
    return _port(_text(edge, _EDGE_NAME), numbers.get(_EDGE_TYPE), numbers.get(_EDGE_RANK))


def _port(name: str, kind: int | None, rank: int | None) -> Port:
    # Numbers below 0, which mean "unknown", are written as huge ones.
    known = rank is not None and 0 <= rank < 1 << 31
    return Port(name, TYPES.get(-1 if kind is None else kind, ""), rank if known else None)


def _text(message: Any, wanted: int) -> str:
    return next((bytes(value).decode() for number, value in _fields(message) if number == wanted), "")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Each field of a protobuf message: its number, and its number or bytes. Raises ValueError, IndexError."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or number == 0 or position + size > len(message):
            raise ValueError("this is no protobuf message")
        yield number, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
