"""The bytes of an ONNX model with one node of trees, written without the package onnx. Pure.

A forest of a million nodes is a dozen arrays of millions of numbers; they are written as whole arrays, for through
protobuf's own objects it takes seconds and hundreds of megabytes. Numbers of fields are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

FLOAT: Final = 1
DOUBLE: Final = 11
_FLOATS, _INTS, _STRINGS, _INT, _TENSOR, _STRING = 6, 7, 8, 2, 4, 3


def model(nodes: bytes, inputs: bytes, outputs: bytes) -> bytes:
    """A ModelProto of IR version 8: one graph, opset 17 and version 3 of ai.onnx.ml."""
    graph = _field(1, nodes) + _field(2, b"forest") + _field(11, inputs) + _field(12, outputs)
    opsets = _field(8, _number(2, 17)) + _field(8, _field(1, b"ai.onnx.ml") + _number(2, 3))
    return _number(1, 8) + _field(7, graph) + opsets


def node(kind: str, attributes: Mapping[str, Any]) -> bytes:
    """A NodeProto of ai.onnx.ml from `x` to `y`.

    Attributes are whole numbers, texts, arrays of whole numbers >= 0 or of FP32, sequences of bytes; arrays of FP64
    become tensors, under their name with `_as_tensor`.
    """
    parts = [_field(1, b"x"), _field(2, b"y"), _field(4, kind.encode())]
    parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
    return b"".join([*parts, _field(7, b"ai.onnx.ml")])


def value(name: str, kind: int, width: int) -> bytes:
    """A ValueInfoProto of a tensor with any number of rows."""
    shape = _field(1, _field(2, b"rows")) + _field(1, _number(1, width))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, kind) + _field(2, shape)))


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _number(3, value) + _number(20, _INT)
    if isinstance(value, str):
        return _field(1, name.encode()) + _field(4, value.encode()) + _number(20, _STRING)
    if not isinstance(value, np.ndarray):
        return _field(1, name.encode()) + _strings(value) + _number(20, _STRINGS)
    if value.dtype == np.float32:
        return _field(1, name.encode()) + _field(7, value.astype("<f4").tobytes()) + _number(20, _FLOATS)
    if value.dtype == np.float64:
        name += "_as_tensor"
        content = _number(1, len(value)) + _number(2, DOUBLE) + _field(8, name.encode())
        content += _field(9, value.astype("<f8").tobytes())
        return _field(1, name.encode()) + _field(5, content) + _number(20, _TENSOR)
    return _field(1, name.encode()) + _field(8, _packed(value)) + _number(20, _INTS)


def _strings(texts: Sequence[bytes]) -> bytes:
    known = {text: _field(9, text) for text in set(texts)}
    return b"".join([known[text] for text in texts])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _packed(values: Array) -> bytes:
    """Numbers >= 0, seven bits a byte, the highest bit set on all bytes of a number but its last."""
    if not len(values):
        return b""
    steps = np.arange(max(1, -(-int(values.max()).bit_length() // 7)))
    parts = values.astype(np.uint64)[:, None] >> (7 * steps).astype(np.uint64)[None, :]
    follows = np.zeros(parts.shape, dtype=bool)
    follows[:, :-1] = parts[:, 1:] > 0
    used = np.concatenate((np.ones((len(parts), 1), dtype=bool), follows[:, :-1]), axis=1)
    made = (parts & np.uint64(0x7F)).astype(np.uint8) | (follows.astype(np.uint8) << 7)
    return bytes(made[used])
