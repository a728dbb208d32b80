"""The infer route's JSON: texts, statuses and values are those that Triton gives."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.server import HttpOptions
from conch.protocol.v2.bulk import LARGE
from conch.protocol.v2.lenient import parse
from conch.protocol.v2.numbers import Reader, Writer
from conch.types.dtype import BF16, BYTES
from conch.types.error import InferError
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor
from support.http_plane import Plane, give_back, strings
from support.http_wire import Wire, infer, post, tensor

SIXTEEN = [float(i) for i in range(16)]
_INPUTS = {"inputs": [tensor("INPUT0", "FP32", [1, 16], SIXTEEN)]}
_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)
_UINT = "attempt to access JSON non-unsigned-integer as unsigned-integer"


def one(**changes: Any) -> dict[str, Any]:
    """A request for `identity` whose input has these members changed (None: left out)."""
    given: dict[str, Any] = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": SIXTEEN} | changes
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


def ask(request: dict[str, Any] | str | bytes, model: str = "identity") -> tuple[int, Any]:
    """The status, and the error's text or the whole answer."""
    reply = Wire().ask(post(f"/v2/models/{model}/infer", request))
    answer = reply.json()
    return reply.status, answer.get("error", answer)


MALFORMED = [
    ("", "The document is empty. at 0"),
    ("  ", "The document is empty. at 2"),
    ("a", "Invalid value. at 0"),
    ("{", "Missing a name for object member. at 1"),
    ('{"a"', "Missing a colon after a name of object member. at 4"),
    ('{"a":', "Invalid value. at 5"),
    ('{"a":1', "Missing a comma or '}' after an object member. at 6"),
    ('{"a":1,}', "Missing a name for object member. at 7"),
    ('{"a" 1}', "Missing a colon after a name of object member. at 5"),
    ("{a:1}", "Missing a name for object member. at 1"),
    ('{"a":1 "b":2}', "Missing a comma or '}' after an object member. at 7"),
    ('{"a":1,2,3}', "Missing a name for object member. at 7"),
    ("[1", "Missing a comma or ']' after an array element. at 2"),
    ("[1 2]", "Missing a comma or ']' after an array element. at 3"),
    ("[1,2,3,]", "Invalid value. at 7"),
    ('{"a":tru}', "Invalid value. at 8"),
    ('{"a":nul}', "Invalid value. at 8"),
    ('{"a":Nan}', "Invalid value. at 7"),
    ('{"a":Infinit}', "Invalid value. at 12"),
    ('{"a":"x', "Missing a closing quotation mark in string. at 7"),
    ('{"a":"\\x"}', "Invalid escape character in string. at 6"),
    ('{"a":"\\u12"}', "Incorrect hex digit after \\u escape in string. at 6"),
    ('{"a":"\\ud800"}', "The surrogate pair in string is invalid. at 6"),
    ('{"a":"\\ud800\\u0041"}', "The surrogate pair in string is invalid. at 6"),
    ('{"a":"\n"}', "Invalid escape character in string. at 6"),
    ('{"a":1.}', "Miss fraction part in number. at 7"),
    ('{"a":1e}', "Miss exponent in number. at 7"),
    ('{"a":1e999}', "Number too big to be stored in double. at 5"),
    ('{"a":01}', "Missing a comma or '}' after an object member. at 6"),
    ('{"a":-}', "Invalid value. at 6"),
    ('{"a":+1}', "Invalid value. at 5"),
    ('{"a":.5}', "Invalid value. at 5"),
    ('{"a":1}x', "The document root must not be followed by other values. at 7"),
    ('{"a":1} {}', "The document root must not be followed by other values. at 8"),
    ("{'a':1}", "Missing a name for object member. at 1"),
    ("{/**/}", "Missing a name for object member. at 1"),
]


@pytest.mark.parametrize(("body", "reason"), MALFORMED)
def test_malformed_json(body: str, reason: str) -> None:
    """What is not JSON is answered with 500, the reason and the offset, in Triton's words."""
    assert ask(body) == (500, f"failed to parse the request JSON buffer: {reason}")


WRONG: list[tuple[Any, int, str]] = [
    ({}, 500, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
    ("[]", 500, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
    ({"inputs": 1}, 500, "Unable to parse 'inputs': attempt to access JSON non-array as array"),
    ({"inputs": None}, 500, "Unable to parse 'inputs': attempt to access JSON non-array as array"),
    ({"inputs": [1]}, 400, _SOURCE + "no field is set"),
    ({"inputs": [{}]}, 400, _SOURCE + "no field is set"),
    (one(data=None), 400, _SOURCE + "no field is set"),
    (one(parameters={"binary_data_size": 64}), 400, _SOURCE + "set 'data' 'binary_data_size'"),
    (
        one(data=None, parameters={"binary_data_size": 64, "shared_memory_region": "r"}),
        400,
        _SOURCE + "set 'binary_data_size' 'shared_memory_region'",
    ),
    (one(name=None), 500, "Unable to parse 'name': attempt to access non-existing object member 'name'"),
    (one(name=1), 500, "Unable to parse 'name': attempt to access JSON non-string as string"),
    (one(datatype=None), 500, "Unable to parse 'datatype': attempt to access non-existing object member 'datatype'"),
    (one(datatype=1), 500, "Unable to parse 'datatype': attempt to access JSON non-string as string"),
    (one(datatype="XX"), 400, "invalid datatype for input INPUT0"),
    (one(shape=None), 500, "Unable to parse 'shape': attempt to access non-existing object member 'shape'"),
    (one(shape="a"), 500, "Unable to parse 'shape': attempt to access JSON non-array as array"),
    (one(shape=[-1, 16]), 500, f"Unable to parse 'shape': {_UINT}"),
    (one(shape=[1.0, 16]), 500, f"Unable to parse 'shape': {_UINT}"),
    (one(shape=[True, 16]), 500, f"Unable to parse 'shape': {_UINT}"),
    (one(shape=[2**63, 16]), 500, f"Unable to parse 'shape': {_UINT}"),
    (one(shape=[2**64, 16]), 500, f"Unable to parse 'shape': {_UINT}"),
    (one(data="abc"), 500, "Unable to parse 'data': attempt to access JSON non-array as array"),
    (one(data=1), 500, "Unable to parse 'data': attempt to access JSON non-array as array"),
    (one(data=SIXTEEN[1:]), 500, "Failed to parse 'data' field: shape does not match true shape"),
    (one(data=[*SIXTEEN, 1]), 500, "Unable to parse 'data': Shape does not match true shape of 'data' field"),
    (one(data=["1", *SIXTEEN[1:]]), 500, "Unable to parse 'data': attempt to access JSON non-number as double"),
    (one(data=[True, *SIXTEEN[1:]]), 500, "Unable to parse 'data': attempt to access JSON non-number as double"),
    (one(data=[{}, *SIXTEEN[1:]]), 500, "Unable to parse 'data': attempt to access JSON non-number as double"),
    (one(data=None, parameters={"binary_data_size": "64"}), 500, f"Unable to parse 'binary_data_size': {_UINT}"),
    (one(data=None, parameters={"binary_data_size": -1}), 500, f"Unable to parse 'binary_data_size': {_UINT}"),
    (one(data=None, parameters={"binary_data_size": 1.5}), 500, f"Unable to parse 'binary_data_size': {_UINT}"),
    (
        one(data=None, parameters={"binary_data_size": 64}),
        400,
        "unexpected size for input 'INPUT0', expecting 64 additional bytes for model 'identity'",
    ),
    (one(data=None, parameters={"shared_memory_region": "r"}), 404, "Unable to find shared memory region: 'r'"),
    (_INPUTS | {"id": 1}, 500, "Unable to parse 'id': attempt to access JSON non-string as string"),
    (_INPUTS | {"id": None}, 500, "Unable to parse 'id': attempt to access JSON non-string as string"),
    (_INPUTS | {"outputs": 1}, 500, "Unable to parse 'outputs': attempt to access JSON non-array as array"),
    (_INPUTS | {"outputs": None}, 500, "Unable to parse 'outputs': attempt to access JSON non-array as array"),
    (
        _INPUTS | {"outputs": [1]},
        500,
        "Unable to parse 'name': attempt to access non-existing object member 'name'",
    ),
    (_INPUTS | {"outputs": [{"name": 1}]}, 500, "Unable to parse 'name': attempt to access JSON non-string as string"),
    (
        _INPUTS | {"outputs": [{"name": "zz"}]},
        400,
        "unexpected inference output 'zz' for model 'identity'",
    ),
    (
        _INPUTS | {"outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]},
        500,
        "Unable to parse 'binary_data': attempt to access JSON non-boolean as boolean",
    ),
    (
        _INPUTS | {"outputs": [{"name": "OUTPUT0", "parameters": {"classification": -1}}]},
        500,
        f"Unable to set 'classification': {_UINT}",
    ),
    (
        _INPUTS | {"outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1, "shared_memory_region": "r"}}]},
        400,
        "Output can't set both 'shared_memory_region' and 'classification'",
    ),
    (
        _INPUTS | {"outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True, "shared_memory_region": "r"}}]},
        400,
        "Output can't set both 'shared_memory_region' and 'binary_data'",
    ),
]
_INVALID = "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."
PARAMETERS: list[tuple[Any, int, str]] = [
    (1, 500, "failed to get request params.: attempt to get members for non-object"),
    (None, 500, "failed to get request params.: attempt to get members for non-object"),
    ({"a": None}, 400, _INVALID),
    ({"a": []}, 400, _INVALID),
    ({"a": {}}, 400, _INVALID),
    (
        {"triton_x": 1},
        400,
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
    ),
    ({"priority": -1}, 500, f"Unable to parse 'priority': {_UINT}"),
    ({"priority": 1.0}, 500, f"Unable to parse 'priority': {_UINT}"),
    ({"priority": True}, 500, f"Unable to parse 'priority': {_UINT}"),
    ({"timeout": "x"}, 500, f"Unable to parse 'timeout': {_UINT}"),
    ({"sequence_id": -1}, 500, "Unable to parse 'sequence_id': attempt to access JSON non-string as string"),
    ({"sequence_start": 1}, 500, "Unable to parse 'sequence_start': attempt to access JSON non-boolean as boolean"),
    (
        {"binary_data_output": 1},
        500,
        "Unable to parse 'binary_data_output': attempt to access JSON non-boolean as boolean",
    ),
]


@pytest.mark.parametrize(
    ("request_body", "status", "text"),
    WRONG + [(_INPUTS | {"parameters": value}, status, text) for value, status, text in PARAMETERS],
)
def test_wrong_members(request_body: Any, status: int, text: str) -> None:
    """Every member of the wrong type, and every contradiction, is answered in Triton's words, twice the same."""
    assert ask(request_body) == (status, text)
    wire = Wire()
    data = post("/v2/models/identity/infer", request_body)
    assert wire.ask(data).body == wire.ask(data).body
    assert wire.plane.requests == []


def test_parameters_reach_the_model_but_not_the_codecs_own() -> None:
    """Parameters keep their JSON types; `binary_data_output` stays with the codec."""
    wire = Wire()
    given = {"a": 1, "b": 1.0, "c": True, "d": "s", "sequence_id": "x", "priority": 3, "binary_data_output": True}
    wire.feed(post("/v2/models/identity/infer", _INPUTS | {"parameters": given}))
    kept = wire.plane.requests[0].form.head.parameters
    assert kept == {key: value for key, value in given.items() if key != "binary_data_output"}
    assert [type(value) for value in kept.values()] == [int, float, bool, str, str, int]


VALUES = [
    ("BOOL", [True, False], [True, False]),
    ("UINT8", [255, 256, 4294967296], [255, 0, 0]),
    ("INT8", [127, 128, -129, 65536], [127, -128, 127, 0]),
    ("INT32", [2147483648, -2147483649], [-2147483648, 2147483647]),
    ("UINT32", [4294967296, 18446744073709551615], [0, 4294967295]),
    ("INT64", [9223372036854775807, -9223372036854775808], [9223372036854775807, -9223372036854775808]),
    ("UINT64", [18446744073709551615], [18446744073709551615]),
    ("FP32", [0.1, 1, -0.0, 16777217], [0.10000000149011612, 1.0, -0.0, 16777216.0]),
    ("FP32", [1e300, -1e300], [math.inf, -math.inf]),
    ("FP64", [0.1, 10**30], [0.1, 1e30]),
    ("FP32", [math.inf, -math.inf], [math.inf, -math.inf]),
    ("BYTES", ["a", "é", "", '"\\\n\0'], ["a", "é", "", '"\\\n\0']),
]


@pytest.mark.parametrize(("datatype", "given", "got"), VALUES)
def test_values(datatype: str, given: list[Any], got: list[Any]) -> None:
    """Elements come back as the type holds them; integers lose the bits that do not fit, as in C."""
    request = {"inputs": [tensor("INPUT0", datatype, [len(given)], given)]}
    status, answer = ask(request, f"id_{datatype.lower()}")
    assert status == 200
    assert answer["outputs"][0]["data"] == got


@pytest.mark.parametrize(
    ("datatype", "element", "what"),
    [
        ("BOOL", 1, "non-boolean as boolean"),
        ("UINT8", -1, "non-unsigned-integer as unsigned-integer"),
        ("UINT8", 1.0, "non-unsigned-integer as unsigned-integer"),
        ("UINT8", True, "non-unsigned-integer as unsigned-integer"),
        ("UINT64", 18446744073709551616, "non-unsigned-integer as unsigned-integer"),
        ("INT8", 9223372036854775808, "non-signed-integer as signed-integer"),
        ("INT64", 1.0, "non-signed-integer as signed-integer"),
        ("FP64", None, "non-number as double"),
    ],
)
def test_wrong_elements(datatype: str, element: Any, what: str) -> None:
    """An element of another JSON type is refused."""
    request = {"inputs": [tensor("INPUT0", datatype, [1], [element])]}
    assert ask(request, f"id_{datatype.lower()}") == (500, f"Unable to parse 'data': attempt to access JSON {what}")


def test_nan_and_infinity_both_ways() -> None:
    """NaN, Inf, Infinity and their negatives are read as bare words, and written as Triton writes them."""
    body = '{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[6],"data":[NaN,Inf,-Inf,Infinity,-Infinity,1]}]}'
    reply = Wire().ask(post("/v2/models/id_fp32/infer", body))
    assert reply.body.endswith(b'"data":[NaN,Infinity,-Infinity,Infinity,-Infinity,1.0]}]}')


@pytest.mark.parametrize("data", ["[[[1],[2]],[[3],[4]]]", "[[1,2],3,4]", "[1,[2,3],4]", "[[],[1,2,3,4]]", "[1,2,3,4]"])
def test_nesting_is_flattened(data: str) -> None:
    """Data may be nested in any way; its elements count in their order."""
    body = f'{{"inputs":[{{"name":"INPUT0","datatype":"FP32","shape":[4],"data":{data}}}]}}'
    assert ask(body, "id_fp32")[1]["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("depth", [102, 3000, 200_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """Nesting beyond 100 is refused, however deep."""
    data = "[" * depth + "1" + "]" * depth
    body = f'{{"inputs":[{{"name":"INPUT0","datatype":"FP32","shape":[1],"data":{data}}}]}}'
    assert ask(body, "id_fp32") == (400, "JSON nesting depth exceeds maximum allowed limit (100)")


def test_strings_that_are_not_utf8_pass_through() -> None:
    """BYTES elements that are not UTF-8 come and go as they are; an id must be text."""
    body = b'{"inputs":[{"name":"INPUT0","datatype":"BYTES","shape":[2],"data":["\xff\xfea","\\"\\u0001"]}]}'
    wire = Wire()
    reply = wire.ask(post("/v2/models/id_bytes/infer", body))
    assert bytes(wire.plane.requests[0].data[0]) == strings(b"\xff\xfea", b'"\x01')
    assert reply.body.endswith(b'"data":["\xff\xfea","\\"\\u0001"]}]}')
    assert ask(b'{"id":"\xff","inputs":[]}') == (500, "Unable to parse 'id': Invalid encoding in string.")


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_as_numbers_and_as_bytes(datatype: str) -> None:
    """FP16 and BF16 may be JSON numbers, which Triton refuses, or bytes."""
    model = f"id_{datatype.lower()}"
    wire = Wire()
    numbers = b'{"inputs":[{"name":"INPUT0","datatype":"%b","shape":[4],"data":[1.0,[-2,0.5],1e300]}]}'
    reply = wire.ask(post(f"/v2/models/{model}/infer", numbers % datatype.encode()))
    assert reply.body.endswith(b'"data":[1.0,-2.0,0.5,Infinity]}]}')
    few = ask({"inputs": [tensor("INPUT0", datatype, [2], [1.0])]}, model)
    assert few == (500, "Failed to parse 'data' field: shape does not match true shape")
    head = {"inputs": [tensor("INPUT0", datatype, [1], size=2)]}
    assert Wire().ask(infer(model, head, b"\0\0")).json()["outputs"][0]["data"] == [0.0]
    head["parameters"] = {"binary_data_output": True}  # type: ignore[assignment]
    assert Wire().ask(infer(model, head, b"\1\2")).body.endswith(b"\1\2")


@given(st.floats(width=32))
def test_brain_floats_are_the_nearest_there_are(number: float) -> None:
    """A BF16 element is no further from the number than its neighbours; what it holds comes back unchanged."""
    data = Reader("x", BF16, 1).read([number])
    (back,) = json.loads(Writer(BF16, 2).write(data))
    assert math.isnan(back) or Reader("x", BF16, 1).read([back]) == data
    if math.isfinite(number) and math.isfinite(back):
        bits = int.from_bytes(data, "little")
        for other in (bits - 1, bits + 1):
            (near,) = struct.unpack("<f", struct.pack("<I", (other & 0xFFFF) << 16))
            assert not abs(near - number) < abs(back - number)
    else:
        assert math.isnan(back) == math.isnan(number)


_ELEMENTS = st.one_of(
    st.integers(-(1 << 70), 1 << 70),
    st.integers(0, 200),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.dictionaries(st.sampled_from(["b64", "x"]), st.text(max_size=4), max_size=2),
)
_DATA = st.one_of(
    _ELEMENTS,
    st.lists(st.integers(-300, 300), min_size=3, max_size=5),
    st.lists(st.floats(), min_size=3, max_size=5),
    st.recursive(_ELEMENTS, lambda inner: st.lists(inner, max_size=4), max_leaves=8),
)
_TYPES = ["fp16", "fp32", "fp64", "bf16", "int8", "int32", "int64", "uint8", "uint64", "bool", "bytes"]


@given(
    datatype=st.sampled_from(_TYPES),
    shape=st.one_of(st.just([4]), st.lists(st.one_of(st.integers(-1, 4), st.booleans(), st.floats()), max_size=2)),
    data=_DATA,
    ident=st.one_of(st.text(max_size=3), st.integers()),
    parameters=st.one_of(st.just({"a": 1, "b": 1.0, "c": "x"}), st.none(), st.integers()),
)
def test_large_bodies_mean_what_small_ones_mean(
    datatype: str, shape: Any, data: Any, ident: Any, parameters: Any
) -> None:
    """Another parser reads large bodies; blanks make any body large, and change neither its answer nor its error."""
    one = {"name": "INPUT0", "datatype": datatype.upper(), "shape": shape, "data": data}
    body = json.dumps({"id": ident, "parameters": parameters, "inputs": [one]})
    replies = [Wire().ask(post(f"/v2/models/id_{datatype}/infer", text)) for text in (body, body + " " * LARGE)]
    assert replies[0].status == replies[1].status
    assert replies[0].body == replies[1].body


@pytest.mark.parametrize("twice", ["name", "data"])
def test_a_name_twice_means_the_same_in_large_bodies(twice: str) -> None:
    """Of two members of one name the same one counts, however large the body is."""
    again = {"name": '"INPUT0"', "data": "[1,2,3,4]"}[twice]
    body = f'{{"inputs":[{{"name":"x","shape":[4],"datatype":"FP32","data":[5,6,7,8],"{twice}":{again}}}]}}'
    assert ask(body, "id_fp32") == ask(body + " " * LARGE, "id_fp32")


@pytest.mark.parametrize("text", ['"' + "\\" * 2_000_001, '"\\' * 1_000_000, '"a",-NaN' * 500_000])
def test_hostile_strings_are_read_once(text: str) -> None:
    """Long text around tokens that are no JSON, strings without an end among it, is refused in one pass."""
    with pytest.raises(InferError, match="failed to parse the request JSON buffer"):
        parse(f"[NaN,{text}".encode())


def test_tokens_are_known_from_strings() -> None:
    """What looks like a token within a string stays, however strings and tokens are mixed."""
    text = r'["Inf",Inf,"-NaN","a\\",-NaN,"\"Inf",-Infinity,-Inf,-1,"I",Infinity,{"NaN":NaN},""]'
    wanted = ["Inf", math.inf, "-NaN", "a\\", math.nan, '"Inf', -math.inf, -math.inf, -1, "I", math.inf]
    for pad in ("", " " * 70_000):
        assert repr(parse((text + pad).encode())) == repr([*wanted, {"NaN": math.nan}, ""])


@pytest.mark.parametrize("half", [r"\ud800", r"\udc80", r"\ud800\u0041", r"\\\ud800", r"\ud83d\ude00\ude00"])
def test_halves_of_surrogate_pairs_are_refused_in_long_texts_too(half: str) -> None:
    """No string that is no text gets past the reader of lenient JSON."""
    for pad in ("", " " * 70_000):
        body = '{"inputs":[{"name":"INPUT0","shape":[2],"datatype":"BYTES","data":["H","NaN"]}]}'.replace(
            '"H"', f'"{half}"'
        )
        status, text = ask(body + pad, "id_bytes")
        assert (status, "The surrogate pair in string is invalid. at" in text) == (500, True)


def test_whole_surrogate_pairs_are_read_in_long_texts() -> None:
    """Pairs, and backslashes in front of what looks like half of one, are text."""
    assert parse((r'["\ud83d\ude00\\ud800",NaN]' + " " * 70_000).encode())[0] == "\U0001f600\\ud800"


def test_strings_may_be_base64() -> None:
    """An element of BYTES that is no text can be given as {"b64": ...}, among others that are text."""
    wire = Wire()
    data = ["a", {"b64": "/wA="}, {"b64": ""}]
    wire.ask(post("/v2/models/id_bytes/infer", {"inputs": [tensor("INPUT0", "BYTES", [3], data)]}))
    assert bytes(wire.plane.requests[0].data[0]) == strings(b"a", b"\xff\0", b"")
    for wrong in ({"b64": "!"}, {"b64": "YQ"}, {"b64": 1}, {"b64": "YQ==", "x": 1}, {}):
        status, text = ask({"inputs": [tensor("INPUT0", "BYTES", [1], [wrong])]}, "id_bytes")
        assert status == 400
        assert "base64" in text
    assert ask({"inputs": [tensor("INPUT0", "BYTES", [1], [1])]}, "id_bytes")[0] == 500


HEADER_SIZES = [
    ("abc", "Unable to parse Inference-Header-Content-Length, got: abc"),
    ("", "Unable to parse Inference-Header-Content-Length, got: "),
    ("+5", "Unable to parse Inference-Header-Content-Length, got: +5"),
    ("5, 5", "Unable to parse Inference-Header-Content-Length, got: 5, 5"),
    (
        "2147483648",
        (
            "Unable to parse Inference-Header-Content-Length, value is out of range [ -2147483648, 2147483647 ], "
            "got: 2147483648"
        ),
    ),
    ("-1", "inference header size should be in range (0, 7), got: -1"),
    ("8", "inference header size should be in range (0, 7), got: 8"),
]


@pytest.mark.parametrize(("size", "text"), HEADER_SIZES)
def test_header_sizes(size: str, text: str) -> None:
    """A wrong Inference-Header-Content-Length is refused, and the connection goes on."""
    wire = Wire()
    asked = post("/v2/models/identity/infer", "1234567", f"Inference-Header-Content-Length: {size}")
    reply = wire.ask(asked)
    assert (reply.status, reply.error) == (400, text)
    assert not wire.transport.closed


TWO = {
    "inputs": [tensor("INPUT1", "FP32", [1, 1], size=4), tensor("INPUT0", "INT32", [1, 2], [1, 2])],
    "outputs": [{"name": "OUTPUT1"}, {"name": "OUTPUT0", "parameters": {"binary_data": True}}],
}


def test_kinds_may_be_mixed_and_inputs_stand_in_any_order() -> None:
    """Each tensor travels as it says: one input as JSON and one as bytes, one output each way, in the order asked."""
    wire = Wire()
    for _ in range(2):
        reply = wire.ask(infer("two", TWO, b"\0\0\x80?"))
        size = int(reply.headers["Inference-Header-Content-Length"])
        assert json.loads(reply.body[:size])["outputs"] == [
            {"name": "OUTPUT1", "datatype": "FP32", "shape": [1, 1], "data": [1.0]},
            {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        ]
        assert reply.body[size:] == struct.pack("<2i", 1, 2)
    assert wire.plane.prepared == 1


@pytest.mark.parametrize(
    ("blobs", "text"),
    [
        (b"abc", "unexpected size for input 'INPUT1', expecting 1 additional bytes for model 'two'"),
        (b"abcde", "unexpected additional input data for model 'two'"),
    ],
)
def test_binary_sizes_must_add_up(blobs: bytes, text: str) -> None:
    """Too few or too many bytes after the JSON are refused, the first time and from memory."""
    head = {"inputs": [tensor("INPUT1", "FP32", [1, 1], size=4), tensor("INPUT0", "INT32", [1, 1], size=0)]}
    wire = Wire()
    assert [wire.ask(infer("two", head, blobs)).error for _ in range(2)] == [text, text]


def test_default_kind_holds_for_outputs_that_are_not_named() -> None:
    """`binary_data_output` does not change outputs that the request names."""
    named = Wire().ask(
        infer("id_int32", {"inputs": [tensor("INPUT0", "INT32", [1], size=4)], "outputs": [{"name": "OUTPUT0"}],
                           "parameters": {"binary_data_output": True}}, b"\1\0\0\0")
    )  # fmt: skip
    assert named.json()["outputs"][0]["data"] == [1]


def test_empty_tensors() -> None:
    """A tensor without elements has an empty list, or a size of 0 and no bytes; the answer is then plain JSON."""
    assert ask({"inputs": [tensor("INPUT0", "FP32", [0], [])]}, "id_fp32")[1]["outputs"][0]["data"] == []
    head = {"inputs": [tensor("INPUT0", "FP32", [0], size=0)], "parameters": {"binary_data_output": True}}
    reply = Wire().ask(post("/v2/models/id_fp32/infer", head))
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.json()["outputs"][0]["parameters"] == {"binary_data_size": 0}


def test_ids_share_one_form() -> None:
    """Requests that differ in id only are prepared once, and each gets its own id back."""
    wire = Wire()
    wanted = ["", "a", "b", "é", '"', "\\u0041", "a" * 100, "a", "1"]
    for ident in wanted:
        for separators in ((",", ":"), (", ", ": ")):
            text = json.dumps(
                {"id": ident, "inputs": [tensor("INPUT0", "FP32", [1], size=4)]}, separators=separators
            ).encode()
            header = f"Inference-Header-Content-Length: {len(text)}"
            reply = wire.ask(post("/v2/models/id_fp32/infer", text + b"\0\0\0\0", header))
            assert reply.json().get("id", "") == ident
    assert [request.id for request in wire.plane.requests] == [ident for ident in wanted for _ in range(2)]
    assert wire.plane.prepared == 1


def test_a_new_generation_prepares_again() -> None:
    """Forms are used until the set of models changes, and not after that."""
    wire = Wire()
    data = infer("id_fp32", {"inputs": [tensor("INPUT0", "FP32", [1], size=4)]}, b"\0\0\0\0")
    text = post("/v2/models/id_fp32/infer", {"inputs": [tensor("INPUT0", "FP32", [1], [1.0])]})
    wire.feed(data, data, text, text)
    assert wire.plane.prepared == 1
    wire.plane.generation += 1
    wire.feed(data, data, text, text)
    assert wire.plane.prepared == 2


def test_memory_of_heads_is_bounded() -> None:
    """However many different heads come, the codec remembers a bounded number."""
    wire = Wire(Plane())
    codec = wire.server._codec
    for i in range(3000):
        wire.feed(post("/v2/models/id_fp32/infer", {"inputs": [tensor("INPUT0", "FP32", [1], [1])],
                                                    "parameters": {"a": i}}))  # fmt: skip
    assert len(codec._layouts) <= 1024
    assert len(codec._patterns) <= 1024
    assert len(wire.server._listener.heads._heads) <= 1024


def test_long_heads_are_not_remembered() -> None:
    """Texts of any length may be parameters; what is kept of past requests stays small."""
    wire = Wire(Plane())
    codec = wire.server._codec
    long = "x" * 100_000
    given = tensor("INPUT0", "FP32", [1], [1])
    for request in (
        {"inputs": [given], "parameters": {"a": long}},
        {"inputs": [given], "parameters": {long: 1}},
        {"inputs": [given | {"parameters": {"a": long}}]},
        {"inputs": [given], "outputs": [{"name": "OUTPUT0", "parameters": {"a": long}}]},
        {"inputs": [given], "outputs": [{"name": "OUTPUT0"}] * 1000},
    ):
        assert wire.ask(post("/v2/models/id_fp32/infer", request)).status == 200
    assert len(codec._layouts) == 0
    assert sum([len(repr(key)) for key in codec._patterns]) < 10_000


def test_the_model_is_looked_for_first() -> None:
    """An unknown model is told of before anything that is wrong with the body."""
    assert ask("{", "nope") == (404, "Request for unknown model: 'nope' is not found")


def test_decoupled_models_are_not_for_this_route() -> None:
    """A decoupled model cannot be asked over HTTP infer."""
    assert ask({"inputs": [tensor("INPUT0", "INT32", [1], [1])]}, "dec") == (
        501,
        "HTTP end point doesn't support models with decoupled transaction policy",
    )


def test_errors_of_models_are_passed_on() -> None:
    """A model's error is the answer's error."""
    assert ask({"inputs": [tensor("INPUT0", "INT32", [1], [1])]}, "fail") == (500, 'boom "q" é')


def test_sizes_are_limited() -> None:
    """JSON, and what one JSON tensor becomes, may not be larger than the limit; binary data may."""
    wire = Wire(options=HttpOptions(max_input_size=200))
    long = post("/v2/models/id_fp64/infer", {"inputs": [tensor("INPUT0", "FP64", [60], [0] * 60)]})
    assert wire.ask(long).error == (
        f"request JSON size of {len(long) - long.index(b'{')} bytes exceeds the maximum allowed input size of 200 "
        "bytes. Use --http-max-input-size to increase the limit."
    )
    wire.open()
    wide = post("/v2/models/id_fp64/infer", {"inputs": [tensor("INPUT0", "FP64", [30], [0] * 30)]})
    assert wire.ask(wide).error == (
        "JSON input 'INPUT0' has a byte_size (240 bytes) that exceeds the maximum allowed value of 200 bytes. "
        "Use --http-max-input-size to increase the limit."
    )
    head = {"inputs": [tensor("INPUT0", "FP64", [60], size=480)], "parameters": {"binary_data_output": True}}
    assert wire.ask(infer("id_fp64", head, bytes(480))).status == 200


def test_raw_requests() -> None:
    """With a JSON part of 0 bytes the whole body is the only input, and the answer is binary."""
    wire = Wire()
    header = "Inference-Header-Content-Length: 0"
    reply = wire.ask(post("/v2/models/id_int32/infer", bytes(8), header))
    assert reply.body.endswith(b'"shape":[2],"parameters":{"binary_data_size":8}}]}' + bytes(8))
    text = wire.ask(post("/v2/models/id_bytes/infer", b"hello", header))
    assert text.body.endswith(strings(b"hello"))
    assert wire.ask(post("/v2/models/two/infer", b"x", header)).error == (
        "[request id: <id_unknown>] Raw request must only have 1 input (found 1) to be deduced but got 2 inputs "
        "in 'two' model configuration"
    )


def test_response_parameters_and_bytes_sizes() -> None:
    """Response parameters stand before the outputs; a BYTES output's size is that of each answer."""
    plane = Plane()

    def answer(request: InferRequest, spec: object) -> None:
        data = strings(b"x" * int(request.id))
        outputs = [Tensor("OUTPUT0", BYTES, (1,), data)]
        request.sink.reply(request, InferResponse(outputs, {"a": 1, "b": "s", "c": True}), True)

    plane.answers["id_bytes"] = answer
    wire = Wire(plane)
    for size in ("1", "5", "1"):
        head = {"id": size, "inputs": [tensor("INPUT0", "BYTES", [1], ["q"])],
                "parameters": {"binary_data_output": True}}  # fmt: skip
        reply = wire.ask(post("/v2/models/id_bytes/infer", head))
        assert reply.body == (
            b'{"id":"%s","model_name":"id_bytes","model_version":"1","parameters":{"a":1,"b":"s","c":true},'
            b'"outputs":[{"name":"OUTPUT0","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%d}}]}'
            % (size.encode(), 4 + int(size))
        ) + strings(b"x" * int(size))


def test_response_parameters_without_a_number_are_null() -> None:
    """JSON has no word for them."""
    plane = Plane()

    def answer(request: InferRequest, spec: object) -> None:
        request.sink.reply(request, InferResponse([], {"n": math.nan, "i": -math.inf, "f": 1.5}), True)

    plane.answers["id_fp32"] = answer
    wire = Wire(plane)
    asked = {"inputs": [tensor("INPUT0", "FP32", [1], [1])]}
    assert b'"parameters":{"n":null,"i":null,"f":1.5}' in wire.ask(post("/v2/models/id_fp32/infer", asked)).body
    reply = wire.ask(post("/v2/models/id_fp32/generate", {"INPUT0": 1}))
    assert reply.body == b'{"f":1.5,"i":null,"model_name":"id_fp32","model_version":"1","n":null}'


@pytest.mark.parametrize(("responses", "ends"), [(0, False), (2, True), (2, False)])
@pytest.mark.parametrize("delivered", [False, True])
def test_another_number_of_responses_than_one_is_an_error(responses: int, delivered: bool, ends: bool) -> None:
    """A model that is not decoupled must answer once, however its outputs are wanted."""
    plane = Plane()

    def answer(request: InferRequest, spec: object) -> None:
        for number in range(responses):
            request.sink.reply(request, InferResponse([]), ends and number == responses - 1)
        if not ends:
            request.sink.reply(request, FINAL, True)

    plane.answers["id_fp32"] = answer
    wanted = [{"name": "OUTPUT0", "parameters": {"classification": 1}}] if delivered else []
    asked = {"inputs": [tensor("INPUT0", "FP32", [1], [1])], "outputs": wanted}
    wire = Wire(plane)
    reply = wire.ask(post("/v2/models/id_fp32/infer", asked))
    assert (reply.status, reply.error) == (500, f"expected a single response, got {responses}")
    plane.answers["id_fp32"] = give_back
    assert wire.ask(post("/v2/models/id_fp32/infer", asked)).status == 200


TRACES = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=1,b=2"}


@pytest.mark.parametrize("path", ["infer", "infer delivered", "generate"])
def test_a_trace_context_comes_with_the_request(path: str) -> None:
    """Both headers of W3C are there for who traces the request; a `tracestate` in pieces is one list."""
    plane = Plane()
    found: list[tuple[str, str, str]] = []

    def answer(request: InferRequest, spec: ModelSpec) -> None:
        sink: Any = request.sink
        found.append((sink.protocol, sink.trace_context, sink.trace_state))
        give_back(request, spec)

    plane.answers["id_fp32"] = answer
    body: dict[str, Any] = {"INPUT0": 1}
    if path != "generate":
        body = {"inputs": [tensor("INPUT0", "FP32", [1], [1])]}
    if path == "infer delivered":
        body["outputs"] = [{"name": "OUTPUT0", "parameters": {"classification": 1}}]
    headers = [f"Traceparent: {TRACES['traceparent']}", "tracestate: a=1", "Tracestate: b=2"]
    wire = Wire(plane)
    wire.ask(post(f"/v2/models/id_fp32/{path.partition(' ')[0]}", body, *headers))
    wire.ask(post(f"/v2/models/id_fp32/{path.partition(' ')[0]}", body))
    assert [(each[0], each[1], each[2].replace(" ", "")) for each in found] == [
        ("HTTP", *TRACES.values()),
        ("HTTP", "", ""),
    ]


def test_a_plane_that_breaks_does_not_break_the_server() -> None:
    """An unexpected exception is answered with 500, and the next request is served."""
    plane = Plane()

    def broken(request: InferRequest, spec: object) -> None:
        raise RuntimeError("surprise")

    plane.answers["id_fp32"] = broken
    wire = Wire(plane)
    data = post("/v2/models/id_fp32/infer", {"inputs": [tensor("INPUT0", "FP32", [1], [1])]})
    assert [wire.ask(data).status, wire.ask(data).status] == [500, 500]
