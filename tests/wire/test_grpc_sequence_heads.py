"""Messages that name a sequence: known by their bytes, they mean what protobuf says."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc import GrpcCodec
from conch.types.error import InferError
from conch.types.request import InferRequest
from support.plane import echo_plane
from support.requests import Recorder


def message(name: int | str, start: bool, end: bool, id: str, values: tuple[float, float], other: bool) -> bytes:
    request = pb.ModelInferRequest(model_name="identity", id=id)
    if isinstance(name, int):
        request.parameters["sequence_id"].int64_param = name
    else:
        request.parameters["sequence_id"].string_param = name
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    if other:
        request.parameters["other"].string_param = "x"
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(struct.pack("<2f", *values))
    return request.SerializeToString(deterministic=True)


FLOAT = st.floats(width=32, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(1, 4), st.sampled_from(["a", "bc"])), st.booleans(), st.booleans(),
            st.text(max_size=150), st.tuples(FLOAT, FLOAT), st.booleans(),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_known_heads_mean_what_new_ones_do(asked: list[tuple]) -> None:  # type: ignore[type-arg]
    """A codec that has seen other messages decodes each as one that has seen none."""
    plane, sink = echo_plane()[0], Recorder()
    used = GrpcCodec(plane)

    def facts(request: InferRequest) -> tuple[object, ...]:
        form = request.form
        return request.id, request.data, form.correlation_id, form.flags, form.parameters, form.shapes

    for each in asked:
        raw = message(*each)
        seen = facts(used.decode_infer(raw, sink, 5))
        assert seen == facts(GrpcCodec(plane).decode_infer(raw, sink, 5))
        assert facts(used.decode_infer(raw, sink, 5)) == seen


def test_heads_of_many_sequences_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second message of each of a hundred sequences is not parsed: it has the form of the first."""
    plane, sink = echo_plane()[0], Recorder()
    used = GrpcCodec(plane)
    first = [used.decode_infer(message(n, False, False, "", (1, 2), False), sink, 5).form for n in range(1, 101)]
    monkeypatch.delattr(GrpcCodec, "_decode_new")
    again = [used.decode_infer(message(n, False, False, "i", (3, 4), False), sink, 5) for n in range(1, 101)]
    assert [request.form for request in again] == first
    assert {bytes(request.data[0]) for request in again} == {struct.pack("<2f", 3, 4)}


def test_a_new_generation_forgets() -> None:
    """Models have come or gone: heads are looked at anew."""
    plane, registry = echo_plane()
    used, sink = GrpcCodec(plane), Recorder()
    old = used.decode_infer(message(1, False, False, "", (1, 2), False), sink, 5).form
    registry.generation += 1
    assert used.decode_infer(message(1, False, False, "", (1, 2), False), sink, 5).form is not old


def test_a_sequence_that_is_new_is_known_by_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that names another sequence than a known one, and says the same besides, is not parsed."""
    plane, sink = echo_plane()[0], Recorder()
    codec = GrpcCodec(plane)
    first = codec.decode_infer(message(1, True, False, "", (1.0, 2.0), False), sink, 5)
    monkeypatch.delattr(GrpcCodec, "_decode_new")
    for name in (2, 300, 2**40):
        request = codec.decode_infer(message(name, True, False, "x", (3.0, 4.0), False), sink, 5)
        assert (request.form.correlation_id, request.form.flags) == (name, first.form.flags)
        assert request.form.head.parameters == {**first.form.head.parameters, "sequence_id": name}
        assert request.form.memo is not first.form.memo


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"\x12\x02\x10\x80", id="a varint that does not end"),
        pytest.param(b"\x12\x0c\x10" + b"\xff" * 10 + b"\x01", id="a varint that is too long"),
        pytest.param(b"\x12\x02\x1a\x05", id="a text that is longer than its message"),
        pytest.param(b"\x12\x04\x1a\x02\xff\xfe", id="a text that is no UTF-8"),
        pytest.param(b"\x12\x02\x10\x00", id="no sequence"),
        pytest.param(b"\x12\x02\x1a\x00", id="no name"),
        pytest.param(b"\x12\x02\x28\x07", id="another kind of number"),
    ],
)
def test_odd_names_of_sequences_mean_what_protobuf_says(name: bytes) -> None:
    """A head like a known one, whose sequence is named oddly, is answered as by a codec that knows none."""
    plane, sink = echo_plane()[0], Recorder()
    used = GrpcCodec(plane)
    raw = message(7, True, False, "", (1.0, 2.0), False)
    used.decode_infer(raw, sink, 5)
    entry = b"\x22\x11\x0a\x0bsequence_id\x12\x02\x10\x07"
    assert entry in raw
    new = b"\x0a\x0bsequence_id" + name
    odd = raw.replace(entry, b"\x22" + bytes([len(new)]) + new)

    def facts(codec: GrpcCodec) -> object:
        try:
            request = codec.decode_infer(odd, sink, 5)
        except InferError as error:
            return str(error)
        return request.form.correlation_id, request.form.parameters, request.data

    assert facts(used) == facts(GrpcCodec(plane))
