"""Which files an ONNX file keeps its weights in, read from its bytes: the package `onnx` is not needed."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conch.adopt.api import AdoptError

# Field numbers of onnx.proto: where tensors can be, message by message.
_MODEL: Final = {7: "graph", 25: "function"}
_GRAPH: Final = {1: "node", 5: "tensor", 15: "sparse"}
_FUNCTION: Final = {7: "node"}
_NODE: Final = {5: "attribute"}
_ATTRIBUTE: Final = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_SPARSE: Final = {1: "tensor", 2: "tensor"}
_TENSOR: Final = {13: "external"}
_CHILDREN: Final = {
    "model": _MODEL, "graph": _GRAPH, "function": _FUNCTION, "node": _NODE, "attribute": _ATTRIBUTE,
    "sparse": _SPARSE, "tensor": _TENSOR,
}  # fmt: skip


def external_files(path: Path) -> list[str]:
    """Names relative to the file's folder, sorted. Raises AdoptError where the file is no ONNX file."""
    if path.stat().st_size == 0:
        raise AdoptError(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return sorted(set(_locations(content, 0, len(content), "model")))
        except (IndexError, ValueError, UnicodeDecodeError, RecursionError):
            raise AdoptError(f"{path} is no ONNX file", "export the model again") from None


def _locations(content: mmap.mmap, position: int, end: int, message: str) -> Iterator[str]:
    if message == "external":
        pair = {number: (begin, stop) for number, begin, stop in _fields(content, position, end)}
        key, value = pair.get(1, (0, 0)), pair.get(2, (0, 0))
        if content[slice(*key)] == b"location":
            yield content[slice(*value)].decode()
        return
    children = _CHILDREN[message]
    for number, begin, stop in _fields(content, position, end):
        if number in children:
            yield from _locations(content, begin, stop, children[number])


def _fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the fields that have a length; the contents of none are read."""
    while position < end:
        tag, position = _varint(content, position)
        match tag & 7:
            case 0:
                _, position = _varint(content, position)
            case 1:
                position += 8
            case 2:
                size, position = _varint(content, position)
                yield tag >> 3, position, position + size
                position += size
            case 5:
                position += 4
            case _:
                raise ValueError("no protobuf")
        if position > end:
            raise ValueError("cut short")


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("no protobuf")
