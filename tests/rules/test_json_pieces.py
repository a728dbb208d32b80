"""Large JSON read and written piece by piece: always what the whole text means, or nothing."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conch.protocol.v2 import head
from conch.protocol.v2.asked import Asked
from conch.protocol.v2.bulk import Packed
from conch.protocol.v2.lenient import parse
from conch.protocol.v2.numbers import Reader, Writer, flatten
from conch.protocol.v2.pieces import Reading, is_heavy
from conch.protocol.v2.rendering import write
from conch.types.dtype import BOOL, BY_NAME, BYTES, FP16, FP32, INT64, DataType
from conch.types.error import InferError
from conch.types.tensor import join_bytes

NUMBERS = st.integers(-100, 100) | st.floats(allow_infinity=False, width=32) | st.sampled_from([0.1, 1e30])
STRINGS = st.text(st.sampled_from('a,"[]\\{}\n\u20ac'), max_size=12)


def nested(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    flat = st.lists(elements, min_size=5, max_size=40)
    return flat | st.lists(flat, min_size=1, max_size=6) | st.lists(st.lists(flat, min_size=1, max_size=3), max_size=4)


def document(datatype: str, data: Any, **more: Any) -> str:
    return json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [1], "data": data}], **more})


def read(text: bytes, size: int = 16) -> Asked | None:
    reading = Reading(text, size)
    while not reading.step():
        pass
    return reading.asked


def meant(text: bytes) -> list[bytes]:
    """The wire bytes of each input by way of the usual parser. Raises InferError."""
    found = []
    for each in head.describe(parse(text)).inputs:
        flat, _ = flatten(each.data)  # type: ignore[arg-type]
        datatype = BY_NAME[each.datatype]
        found.append(Reader("x", datatype, -1 if datatype is BYTES else len(flat)).read(flat))
    return found


@pytest.mark.parametrize("little", [[[1, 2]], [{}], [None], [["a"]], [7], []])
def test_a_long_array_is_read_beside_any_little_one(little: list[Any]) -> None:
    """What is left to the usual parser may hold one element of any kind."""
    inputs = [
        {"name": "little", "datatype": "INT32", "shape": [1, 2], "data": little},
        {"name": "long", "datatype": "INT32", "shape": [40], "data": list(range(40))},
    ]
    asked = read(json.dumps({"inputs": inputs}).encode())
    assert asked is not None
    assert [each.data for each in asked.inputs] == [little, Packed(np.arange(40, dtype=np.int32).tobytes(), 40)]


@given(st.sampled_from(["FP32", "FP64", "INT32", "BF16"]), nested(NUMBERS), st.integers(8, 64), st.sampled_from([0, 2]))
def test_numbers_in_pieces_are_the_numbers_of_the_whole(datatype: str, data: Any, size: int, indent: int) -> None:
    """However they are nested and spaced, and NaN among them; what does not fit its type is never taken."""
    text = json.dumps(json.loads(document(datatype, data)), indent=indent or None).encode()
    asked = read(text, size)
    if asked is not None:
        assert [each.data.raw for each in asked.inputs] == meant(text)  # type: ignore[union-attr]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [0.5] * 100),
        ("INT64", [[1, 2, 3], [4, 5, 6]] * 20),
        ("UINT8", [[[1], [2]], [[3], [4]]] * 9),
        ("BOOL", [True, False] * 50),
        ("BYTES", ["a, b", "]", '"'] * 30),
    ],
)
def test_what_clients_send_is_read_in_pieces(datatype: str, data: Any, indent: int | None) -> None:
    """Flat and nested arrays, spaced or not, of every kind of type, between whatever else the request says."""
    inputs = [{"name": name, "datatype": datatype, "shape": [1], "data": data} for name in "xy"]
    text = json.dumps({"id": "1", "inputs": inputs, "outputs": [{"name": "z"}]}, indent=indent).encode()
    asked = read(text, 64)
    assert asked is not None
    assert (asked.id, json.loads(bytes(asked.outputs))) == ("1", [{"name": "z"}])
    assert [(each.name, each.data.raw) for each in asked.inputs] == list(zip("xy", meant(text), strict=True))  # type: ignore[union-attr]


@given(st.lists(STRINGS, min_size=3, max_size=30), st.integers(8, 64), st.booleans())
def test_strings_in_pieces_are_the_strings_of_the_whole(data: list[str], size: int, ascii: bool) -> None:
    """Commas, brackets and quotes within strings cut nothing."""
    text = json.dumps(json.loads(document("BYTES", data)), ensure_ascii=ascii).encode()
    asked = read(text, size)
    assert asked is None or asked.inputs[0].data == Packed(join_bytes(data), len(data))


@given(st.data())
@example(None)
def test_no_text_means_something_else_in_pieces(draw: st.DataObject | None) -> None:
    """What is no JSON, or not what the type wants, is never taken: not with brackets and commas where none belong."""
    text = document("FP32", [[1, 2, 3], [4, 5, 6], [[7]], 8], id="data", outputs=[{"name": "[1,2,3,4,5,6,7,8,9]"}])
    if draw is not None:
        text = draw.draw(st.sampled_from([text, document("BYTES", ["aa", "b]", 'c",', "d" * 9, "e,"])]))
        for _ in range(draw.draw(st.integers(1, 3))):
            at = draw.draw(st.integers(0, len(text)))
            text = text[:at] + draw.draw(st.sampled_from([*'[],"{}\\ 1-:', ""])) + text[at + draw.draw(st.booleans()) :]
    asked = read(text.encode(), 8)
    if asked is not None:
        assert [each.data.raw for each in asked.inputs] == meant(text.encode())  # type: ignore[union-attr]


LONG = ",".join(map(str, range(40)))


@pytest.mark.parametrize(
    "text",
    [
        document("FP32", f'"data":[{LONG}]').replace('\\"', '"'),
        document("BYTES", ["a"], parameters={"x": f'"data":[{LONG}]'}),
        f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{LONG},]}}]}}',
        f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{LONG},,1]}}]}}',
        f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{LONG}',
        f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[[],[{LONG}],,[[],1]]}}]}}',
        f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[{LONG}],"data":[{LONG}]}}]}}',
        document("FP33", list(range(40))),
        document("FP32", ["abc"] * 20),
        document("BYTES", [{"b64": "AAAA"}] * 20),
    ],
)
def test_what_is_not_sure_is_left_to_the_usual_parsers(text: str) -> None:
    """Arrays in strings, missing and superfluous elements, members twice, types that do not fit."""
    assert read(text.encode()) is None


def test_what_is_not_json_but_taken_is_taken_in_pieces_too() -> None:
    """NaN, Infinity and bytes that are not UTF-8."""
    text = document("FP16", [math.nan, math.inf, -math.inf, *range(30)]).encode()
    assert read(text).inputs[0].data.raw == meant(text)[0]  # type: ignore[union-attr]
    text = document("BYTES", ["abc"] * 30).encode().replace(b"abc", b"a\xff\xfe")
    assert read(text).inputs[0].data.raw == join_bytes([b"a\xff\xfe"] * 30)  # type: ignore[union-attr]


def test_little_is_not_heavy_and_slow_types_are_heavy_sooner() -> None:
    """Numbers from four megabytes on; elements that are read one by one from the size on that is asked about at all."""
    number, string = document("FP32", [1.0] * 20_000).encode(), document("BYTES", ["a"] * 20_000).encode()
    assert [is_heavy(number), is_heavy(number * 50), is_heavy(string)] == [False, True, True]


def bits(datatype: DataType, count: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, count * datatype.size, np.uint8).tobytes()


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        (FP32, struct.pack("<4f", 0.1, math.nan, math.inf, -math.inf) * 5000),
        (FP16, struct.pack("<2e", -math.inf, 0.1) * 4096),
        (INT64, bits(INT64, 8193)),
        (BOOL, bytes([0, 1]) * 9000),
        (BYTES, join_bytes(["a,b", '"', "\u20ac" * 100] * 3000)),
        (BYTES, b""),
        (BYTES, join_bytes([bytes([number % 256]) * 20 for number in range(9000)])),
    ],
)
def test_answers_in_pieces_are_the_answers_of_the_whole(datatype: DataType, data: bytes) -> None:
    """Byte for byte, with NaN, infinities and bytes that are no text."""
    assert b"".join(write(datatype, data)) == Writer(datatype, len(data)).write(data)


@pytest.mark.parametrize("broken", [b"\1\0\0", b"\5\0\0\0abc"])
def test_broken_strings_are_an_error_in_pieces_too(broken: bytes) -> None:
    """A model's bad tensor is not cut off in silence."""
    with pytest.raises(ValueError, match=r"are left$"):
        list(write(BYTES, join_bytes(["good"] * 20_000) + broken))


def test_the_oracle_refuses() -> None:
    """The comparison above compares with a parser that refuses what is no JSON."""
    with pytest.raises(InferError):
        meant(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1,]}]}')
    assert meant(document("FP32", [[1], [2]]).encode()) == [struct.pack("<2f", 1, 2)]
