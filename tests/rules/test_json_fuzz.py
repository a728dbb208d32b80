"""Whatever bytes come, the HTTP server gives a clear answer or waits for more, and keeps nothing."""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conch.protocol.v2.faults import find_fault
from conch.protocol.v2.lenient import parse
from conch.protocol.v2.numbers import flatten
from conch.types.error import InferError
from support.http_plane import Plane
from support.http_wire import Wire, infer, post, tensor

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
names = st.sampled_from(["INPUT0", "OUTPUT0", "name", "x"])
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": names | scalars,
        "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "FP16"]) | scalars,
        "shape": st.lists(st.integers(0, 3) | scalars, max_size=2) | scalars,
        "data": st.lists(scalars | st.lists(scalars, max_size=3), max_size=4) | scalars,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "x"]), scalars, max_size=2
        )
        | scalars,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=2) | scalars},
    optional={
        "id": st.text(max_size=5) | scalars,
        "parameters": st.dictionaries(st.sampled_from(["priority", "binary_data_output", "a"]), scalars) | scalars,
        "outputs": st.lists(st.fixed_dictionaries({"name": names}, optional={"parameters": values})) | scalars,
    },
)
models = st.sampled_from(["id_fp32", "id_int8", "id_bytes", "id_bool", "id_fp16", "two"])


@quick
@given(model=models, request=requests | values, header=st.none() | st.integers(-2, 80))
def test_any_json_is_answered(model: str, request: Any, header: int | None) -> None:
    """Any JSON value as an infer request gets exactly one answer, and the connection stays usable."""
    wire = Wire(Plane())
    headers = () if header is None else (f"Inference-Header-Content-Length: {header}",)
    reply = wire.ask(post(f"/v2/models/{model}/infer", json.dumps(request), *headers))
    assert reply.status in {200, 400, 404, 500, 501}
    assert reply.status == 200 or reply.error
    assert "internal error" not in reply.body.decode("utf-8", "replace")
    assert wire.ask(b"GET /v2/health/live HTTP/1.1\r\n\r\n").status == 200


@quick
@given(body=st.binary(max_size=60) | st.text('{}[]":,0123456789.-+eEtrufalsNnIity\\ \n', max_size=60).map(str.encode))
def test_any_body_is_answered(body: bytes) -> None:
    """Any bytes as a body get exactly one answer."""
    reply = Wire(Plane()).ask(post("/v2/models/id_fp32/infer", body))
    assert reply.status in {400, 500}
    assert "internal error" not in reply.error


@quick
@given(
    data=st.lists(
        st.binary(max_size=30)
        | st.sampled_from(
            [b"\r\n", b"\r\n\r\n", b"GET /v2 HTTP/1.1\r\n", b"POST /v2/models/id_fp32/infer HTTP/1.1\r\n",
             b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n",
             b"Expect: 100-continue\r\n"]
        ),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)  # fmt: skip
def test_any_bytes_are_answered_or_waited_for(data: list[bytes], cuts: list[int]) -> None:
    """No bytes crash a connection, and how they are cut changes nothing."""
    whole = b"".join(data)
    expected = Wire(Plane()).feed(whole)
    expected.replies()
    edges = sorted({0, len(whole), *[cut for cut in cuts if cut < len(whole)]})
    parts = [whole[a:b] for a, b in itertools.pairwise(edges)]
    cut = Wire(Plane()).feed(*parts)
    continues = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert cut.transport.sent.replace(continues, b"") == expected.transport.sent.replace(continues, b"")


@quick
@given(st.text('{}[]":,01.-+eEtrufalsn\\ ', max_size=30).map(str.encode) | values.map(lambda v: json.dumps(v).encode()))
def test_the_fault_finder_agrees_with_the_parser(text: bytes) -> None:
    """What the parser takes has no fault, and what it refuses has one."""
    try:
        parse(text)
    except InferError:
        assert find_fault(text) is not None
    else:
        assert find_fault(text) is None


nested = st.recursive(st.integers(0, 9), lambda inner: st.lists(inner, max_size=4), max_leaves=30)


@quick
@given(st.lists(nested, max_size=5))
def test_flatten_keeps_order(data: list[Any]) -> None:
    """Flattening gives the scalars in the order in which the text has them."""
    assert flatten(data)[0] == [int(digit) for digit in json.dumps(data) if digit.isdigit()]


@quick
@given(st.lists(st.floats(width=32), max_size=20), st.booleans(), st.booleans())
def test_floats_survive_every_way(numbers: list[float], binary_in: bool, binary_out: bool) -> None:
    """A float sent as text or bytes and asked for as text or bytes is the same float, NaN and infinities too."""
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    given = tensor("INPUT0", "FP32", [len(numbers)], None if binary_in else numbers, len(data) if binary_in else None)
    reply = Wire(Plane()).ask(
        infer(
            "id_fp32",
            {"inputs": [given], "parameters": {"binary_data_output": binary_out}},
            data if binary_in else b"",
        )
    )
    assert reply.status == 200
    if binary_out:
        got = struct.unpack(f"<{len(numbers)}f", reply.body[len(reply.body) - len(data) :])
    else:
        got = reply.json()["outputs"][0]["data"]
    # All NaNs are one in JSON; everything else is the same to the sign of zero.
    assert list(map(repr, got)) == list(map(repr, numbers))


@pytest.mark.parametrize("datatype", ["INT8", "UINT16", "INT32", "INT64", "UINT64"])
def test_integers_are_cut_as_c_cuts_them(datatype: str) -> None:
    """An integer that the protocol's parser holds keeps its lower bits."""
    signed = datatype[0] == "I"
    bits = int(datatype.lstrip("UINT"))
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)

    @quick
    @given(st.integers(low, high))
    def check(number: int) -> None:
        request = {"inputs": [tensor("INPUT0", datatype, [1], [number])]}
        (got,) = (
            Wire(Plane()).ask(post(f"/v2/models/id_{datatype.lower()}/infer", request)).json()["outputs"][0]["data"]
        )
        assert got % (1 << bits) == number % (1 << bits)
        assert got.bit_length() <= bits

    check()
