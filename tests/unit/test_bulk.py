"""Large JSON bodies by simdjson: what it reads, and what it leaves to the usual parser."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest

from conch.protocol.v2.bulk import BulkReader, Packed


def body(datatype: str = "FP32", data: Any = (1, 2.5), **rest: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": data}], **rest}).encode()


@pytest.mark.parametrize(
    ("datatype", "data", "letter"),
    [
        ("FP32", [1, 2.5], "f"),
        ("FP64", [[1], [2.5]], "d"),
        ("FP16", [0.5, -2], "e"),
        ("INT8", [-1, 1], "b"),
        ("INT64", [-(1 << 63), 1], "q"),
        ("UINT64", [(1 << 64) - 1, 1], "Q"),
    ],
)
def test_numbers_become_wire_bytes(datatype: str, data: Any, letter: str) -> None:
    """Numbers, nested or not, come as the bytes of their type."""
    asked = BulkReader().read(body(datatype, data))
    assert asked is not None
    flat = [each[0] if isinstance(each, list) else each for each in data]
    assert asked.inputs[0].data == Packed(struct.pack(f"<2{letter}", *flat), 2)


def test_what_steers_the_request_stays_text() -> None:
    """Parameters and outputs are handed on as JSON; what is absent is absent."""
    reader = BulkReader()
    asked = reader.read(body("BYTES", ["a", "b"], id="7", parameters={"p": 1.0}, outputs=[{"name": "y"}]))
    assert asked is not None
    assert (asked.id, asked.inputs[0].data) == ("7", ["a", "b"])
    assert (bytes(asked.parameters), bytes(asked.outputs)) == (b'{"p":1.0}', b'[{"name":"y"}]')
    binary = reader.read(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}')
    assert binary is not None
    assert binary.inputs[0].data is msgspec.UNSET
    assert bytes(binary.inputs[0].parameters) == b'{"binary_data_size":8}'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"1",
        b'{"inputs":1}',
        b'{"inputs":[1]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":2,"data":[1,2]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[true],"data":[1]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":null}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":1}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}',
        b'{"inputs":[{"name":"x","name":"y","datatype":"FP32","shape":[1],"data":[1]}]}',
        b'{"inputs":[],"inputs":[]}',
        b'{"inputs":[],"parameters":7}',
        b'{"inputs":[],"id":7}',
        b"[" * 5000,
        body(data=[True, 1]),
        body(data=["1", 1]),
        body("INT32", [1.5, 1]),
        body("UINT8", [-1, 1]),
        body("INT64", [1 << 64, 1]),
    ],
)
def test_the_rest_is_for_the_usual_parser(text: bytes) -> None:
    """What is not plainly a request of numbers is not decided here; the reader goes on working."""
    reader = BulkReader()
    assert reader.read(text) is None
    assert reader.read(body()) is not None
