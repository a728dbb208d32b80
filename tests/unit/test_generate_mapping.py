"""Bodies of generate requests to tensors and parameters, and responses to flat JSON."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.protocol.v2.generate import Inputs, Mapping, deduce_shape, encode
from conch.protocol.v2.load_report import load_header
from conch.types.dtype import BOOL, BYTES, FP16, FP32, INT32
from conch.types.error import InferError
from conch.types.request import InferRequest, InputHead, RequestHead
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.http_plane import Plane, strings

INPUTS: Inputs = {
    "text": (BYTES, (-1,)),
    "num": (FP32, (-1,)),
    "half": (FP16, (-1,)),
    "mat": (INT32, (-1, 2)),
    "flag": (BOOL, (1,)),
}


def read(body: Any, inputs: Inputs = INPUTS, limit: int = 1000) -> Mapping:
    mapping = Mapping(inputs, limit)
    mapping.read(body)
    return mapping


def refusal(body: Any, inputs: Inputs = INPUTS, limit: int = 1000) -> str:
    with pytest.raises(InferError) as caught:
        read(body, inputs, limit)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "shape", "data"),
    [
        ({"text": "a"}, (1,), strings(b"a")),
        ({"text": ["a", "é"]}, (2,), strings(b"a", "é".encode())),
        ({"text": []}, (0,), b""),
        ({"text": {"b64": "/w=="}}, (1,), strings(b"\xff")),
        ({"num": 1}, (1,), struct.pack("<f", 1)),
        ({"num": [1, 2.5]}, (2,), struct.pack("<2f", 1, 2.5)),
        ({"half": 0.5}, (1,), struct.pack("<e", 0.5)),
        ({"mat": [1, 2, 3, 4]}, (2, 2), struct.pack("<4i", 1, 2, 3, 4)),
        ({"mat": []}, (0, 2), b""),
        ({"flag": True}, (1,), b"\1"),
        ({"parameters": {"flag": [False]}}, (1,), b"\0"),
    ],
)
def test_a_member_named_like_an_input_is_its_tensor(value: Any, shape: tuple[int, ...], data: bytes) -> None:
    """A scalar is one element, an array its elements; `parameters` is looked into."""
    mapping = read(value)
    (head,) = mapping.heads
    assert (head.shape, bytes(mapping.data[0]), mapping.parameters) == (shape, data, {})


def test_other_members_are_parameters_without_special_meaning() -> None:
    """What steers a plain inference steers nothing here: the model gets it all."""
    given = {"a": 1, "b": 2.5, "c": True, "d": "s", "priority": "x", "timeout": 5, "triton_x": 1, "sequence_id": -1}
    mapping = read({**given, "id": "7", "parameters": {"e": 2, "parameters": 3}})
    assert mapping.parameters == {**given, "id": "7", "e": 2, "parameters": 3}
    assert (mapping.id, mapping.heads) == ("7", [])


_NESTED = "Converting keyword: 'parameters': "
_TYPE = "parameter 'parameters' has invalid type. It should be either 'int', 'bool', or 'string'."
_SCHEMA = "The schema can not convert input 'mat' to tensor with proper shape"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([], "Internal: attempt to get members for non-object"),
        (1, "Internal: attempt to get members for non-object"),
        ({"id": 5}, "Internal: Unable to parse 'id': attempt to access JSON non-string as string"),
        ({"num": "x"}, "Internal: Unable to parse 'data': attempt to access JSON non-number as double"),
        ({"num": None}, "Internal: Unable to parse 'data': attempt to access JSON non-number as double"),
        ({"num": {"a": 1}}, "Internal: Unable to parse 'data': attempt to access JSON non-number as double"),
        ({"num": [[1, 2], 3]}, "Internal: Unable to parse 'data': Shape does not match true shape of 'data' field"),
        ({"flag": 1}, "Internal: Unable to parse 'data': attempt to access JSON non-boolean as boolean"),
        ({"text": 1}, "Internal: Unable to parse JSON bytes array: attempt to access JSON non-string as string"),
        ({"mat": [1, 2, 3]}, f"Invalid argument: {_SCHEMA}"),
        ({"mat": 1}, f"Invalid argument: {_SCHEMA}"),
        (
            {"parameters": {"x": None}},
            f"Invalid argument: {_NESTED}{_TYPE.replace('parameters', 'x')}",
        ),
        (
            {"parameters": 1},
            "Internal: Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object",
        ),
        (
            {"parameters": {"parameters": {"a": 1}}},
            f"Invalid argument: {_NESTED}{_TYPE}",
        ),
        (
            {"id": "i", "text": "a", "parameters": {"text": "b"}},
            f"Invalid argument: {_NESTED}[request id: i] input 'text' already exists in request",
        ),
    ],
)
def test_what_cannot_be_mapped_is_told_in_tritons_words(body: Any, text: str) -> None:
    """Each refusal has the code and the text of Triton."""
    assert refusal(body) == text


def test_an_input_cannot_be_named_parameters() -> None:
    """The keyword cannot mean two things."""
    assert refusal({"parameters": 1}, {"parameters": (FP32, (-1,))}) == (
        "Invalid argument: Keyword 'parameters' for nested schema also given as input tensor name"
    )


def test_tensors_are_limited_together() -> None:
    """All tensors of a request count against the largest input size."""
    assert refusal({"num": [1, 2], "mat": [1, 2]}, limit=12) == (
        "Invalid argument: request size of 16 bytes with input 'mat' of size 8 bytes exceeds the maximum allowed input "
        "size of 12. Use --http-max-input-size to increase the limit."
    )


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 5]), max_size=5), st.integers(0, 60))
def test_a_deduced_shape_holds_every_element(dims: list[int], count: int) -> None:
    """A shape fits the dims and the count, and is refused only where none would."""
    try:
        shape = deduce_shape("x", dims, count)
    except InferError:
        fixed = math.prod([size for size in dims if size != -1])
        open_sizes = -1 in dims
        assert (fixed == 0 and count) or (fixed and count % fixed) or (not open_sizes and count != fixed)
        return
    assert math.prod(shape) == count
    assert all(size in {-1, real} for size, real in zip(dims, shape, strict=True))
    places = [place for place, size in enumerate(dims) if size == -1]
    assert all(shape[place] == 1 for place in places[:-1])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*INPUTS, "id", "parameters", "x"]), _JSON, max_size=5))
def test_any_body_is_mapped_or_refused(body: dict[str, Any]) -> None:
    """Whatever a client sends, it gets tensors whose bytes fit their shapes, or an error of ours."""
    try:
        mapping = read(body)
    except InferError:
        return
    for head, data in zip(mapping.heads, mapping.data, strict=True):
        size = INPUTS[head.name][0].size
        assert not size or len(data) == math.prod(head.shape) * size


def request(ident: str = "") -> InferRequest:
    form = Plane().prepare(RequestHead("id_int32", "", "", [InputHead("INPUT0", "INT32", (1,))]))
    return InferRequest(form, ident, (), _Nobody(), 0)


class _Nobody:
    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None: ...

    def fail(self, request: InferRequest, error: InferError) -> None: ...


def test_a_response_is_flat_and_alphabetical() -> None:
    """Tensors, parameters and the server's own words stand side by side; one element is no array."""
    response = InferResponse(
        [
            Tensor("z", FP32, (2,), struct.pack("<2f", 1, math.nan)),
            Tensor("b", BYTES, (1, 1), strings(b'x"\n')),
            Tensor("empty", INT32, (0,), b""),
            Tensor("half", FP16, (1,), struct.pack("<e", 0.5)),
        ],
        {"a": True, "n": math.inf, "s": "é"},
    )
    text = encode(request("7"), response).decode()
    assert text == (
        '{"a":true,"b":"x\\"\\n","empty":[],"half":0.5,"id":"7","model_name":"id_int32","model_version":"1",'
        '"n":null,"s":"é","z":[1.0,NaN]}'
    )
    assert list(json.loads(encode(request(), response))) == sorted(json.loads(text).keys() - {"id"})


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (
            "json",
            b'endpoint-load-metrics: JSON {"named_metrics":{"kv_cache_utilization":0.5,"max_token_capacity":1234}}\r\n',
        ),
        (
            "text",
            b"endpoint-load-metrics: TEXT %b=0.500000, %b=1234\r\n"
            % (b"named_metrics.kv_cache_utilization", b"named_metrics.max_token_capacity"),
        ),
        ("xml", b""),
    ],
)
def test_load_is_reported_where_it_is_asked_for_and_known(wanted: str, line: bytes) -> None:
    """The header is that of ORCA, from the gauges of the KV cache; without them, or the wish, there is none."""
    asked = {"endpoint-load-metrics-format": wanted}
    blocks = {"used": 1.0, "max": 2.0, "tokens_per": 617.0}
    assert load_header(asked, blocks) == line
    assert load_header(asked, {}) == b""
    assert load_header({}, blocks) == b""
