"""ModelInfer's codec: the fast way means what protobuf says, and every refusal has Triton's words."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2 import grpc as codec
from conch.protocol.v2.grpc import GrpcCodec
from conch.service.data import Data
from conch.types.dtype import BY_NAME, BYTES, FP32
from conch.types.error import Code, InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Tensor, join_bytes
from support.plane import EchoRegistry, echo_plane
from support.requests import Recorder


@pytest.fixture
def plane() -> tuple[Data, EchoRegistry]:
    return echo_plane()


def make(model: str = "identity", id: str = "", **given: object) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=id, **given)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(struct.pack("<2f", 1, 2))
    return request


def decode(plane: tuple[Data, EchoRegistry], message: pb.ModelInferRequest | bytes) -> InferRequest:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return GrpcCodec(plane[0]).decode_infer(raw, Recorder(), 5)


def refusal(plane: tuple[Data, EchoRegistry], message: pb.ModelInferRequest | bytes) -> tuple[Code, str]:
    with pytest.raises(InferError) as error:
        decode(plane, message)
    return error.value.code, error.value.message


def simple(values: list[float], strings: list[bytes], id: str, swap: bool, c: bool, version: str) -> bytes:
    """A request for the model with an FP32, a BYTES and an optional INT8 input."""
    request = pb.ModelInferRequest(model_name="simple", model_version=version, id=id)
    inputs = [
        ("A", "FP32", [1, len(values)], struct.pack(f"<{len(values)}f", *values)),
        ("B", "BYTES", [1, len(strings)], join_bytes(strings)),
    ]
    if c:
        inputs.append(("C", "INT8", [1, 2], b"\x01\x02"))
    for name, datatype, shape, raw in reversed(inputs) if swap else inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3),
            st.lists(st.binary(max_size=200), min_size=1, max_size=3),
            st.text(max_size=150), st.booleans(), st.booleans(), st.sampled_from(["", "3"]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_the_fast_way_is_the_long_way(requests: list[tuple]) -> None:
    """A codec that has seen other messages decodes each message as one that has seen none."""
    plane, sink = echo_plane(), Recorder()
    used = GrpcCodec(plane[0])
    for given_request in requests:
        message = simple(*given_request)
        for _ in range(2):
            got, fresh = used.decode_infer(message, sink, 0), decode(plane, message)
            assert (got.id, [bytes(each) for each in got.data]) == (fresh.id, [bytes(each) for each in fresh.data])
            assert (got.form.shapes, got.form.order) == (fresh.form.shapes, fresh.form.order)
            assert got.form.head.model_version == fresh.form.head.model_version


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_messages(choice: st.DataObject) -> None:
    """A damaged message is read or refused as protobuf alone would, whatever the codec remembers."""
    plane, sink = echo_plane(), Recorder()
    codec = GrpcCodec(plane[0])
    good = choice.draw(
        st.sampled_from([make("identity", "id").SerializeToString(), simple([1], [b"a"], "", False, True, "")])
    )
    codec.decode_infer(good, sink, 0)
    bad = bytearray(good)
    for _ in range(choice.draw(st.integers(1, 3))):
        at = choice.draw(st.integers(0, len(bad) - 1))
        if choice.draw(st.booleans()):
            bad[at] = choice.draw(st.integers(0, 255))
        else:
            bad[at:at] = choice.draw(st.binary(max_size=3))
    outcomes = []
    for each in (codec, GrpcCodec(plane[0])):
        try:
            request = each.decode_infer(bytes(bad), sink, 0)
            outcomes.append((request.id, [bytes(data) for data in request.data], request.form.shapes))
        except InferError as error:
            outcomes.append((error.code, error.message))
    assert outcomes[0] == outcomes[1]


def test_templates_are_used(plane: tuple[Data, EchoRegistry]) -> None:
    """The second message of a kind gets the first one's form, whatever its id and data."""
    codec, sink = GrpcCodec(plane[0]), Recorder()
    first = codec.decode_infer(make(id="a").SerializeToString(), sink, 0)
    second = codec.decode_infer(make(id="bcd").SerializeToString(), sink, 0)
    assert second.form is first.form
    assert (second.id, second.data) == ("bcd", (struct.pack("<2f", 1, 2),))


def test_templates_end_with_their_generation(plane: tuple[Data, EchoRegistry]) -> None:
    """When models came or went every kind of message is checked again."""
    codec, sink = GrpcCodec(plane[0]), Recorder()
    first = codec.decode_infer(make().SerializeToString(), sink, 0)
    plane[1].generation += 1
    assert codec.decode_infer(make().SerializeToString(), sink, 0).form is not first.form
    del plane[1].versions["identity"]
    plane[1].generation += 1
    with pytest.raises(InferError, match="is not found"):
        codec.decode_infer(make().SerializeToString(), sink, 0)


def test_large_tensors_are_not_copied(plane: tuple[Data, EchoRegistry]) -> None:
    """From 64 KiB on a tensor stays in the buffer that it arrived in."""
    codec, sink = GrpcCodec(plane[0]), Recorder()
    for size in (1000, 20_000):
        request = pb.ModelInferRequest(model_name="identity")
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, size])
        request.raw_input_contents.append(bytes(4 * size))
        for _ in range(2):
            message = bytearray(request.SerializeToString())
            got = codec.decode_infer(message, sink, 0).data[0]
            assert len(got) == 4 * size
            assert (isinstance(got, memoryview) and got.obj is message) == (size == 20_000)


def test_unknown_fields_are_read_over(plane: tuple[Data, EchoRegistry]) -> None:
    """As protobuf demands, fields of a newer client do no harm, wherever they stand."""
    for extra in (b"\xfa\x01\x02ab", b"\xf8\x01\x05"):
        message = make(id="x").SerializeToString()
        for raw in (message + extra, extra + message):
            assert decode(plane, raw).id == "x"


TYPED = {
    "BOOL": ("bool_contents", [True, False], b"\x01\x00"),
    "INT8": ("int_contents", [1, -2], struct.pack("<2b", 1, -2)),
    "INT16": ("int_contents", [1, -2], struct.pack("<2h", 1, -2)),
    "INT32": ("int_contents", [1, -2], struct.pack("<2i", 1, -2)),
    "INT64": ("int64_contents", [1, -2], struct.pack("<2q", 1, -2)),
    "UINT8": ("uint_contents", [1, 258], b"\x01\x02"),
    "UINT16": ("uint_contents", [1, 2], struct.pack("<2H", 1, 2)),
    "UINT32": ("uint_contents", [1, 2**32 - 1], struct.pack("<2I", 1, 2**32 - 1)),
    "UINT64": ("uint64_contents", [1, 2**64 - 1], struct.pack("<2Q", 1, 2**64 - 1)),
    "FP32": ("fp32_contents", [1.5, -2.5], struct.pack("<2f", 1.5, -2.5)),
    "FP64": ("fp64_contents", [1.5, -2.5], struct.pack("<2d", 1.5, -2.5)),
    "BYTES": ("bytes_contents", [b"a", b""], b"\1\0\0\0a\0\0\0\0"),
}


@pytest.mark.parametrize("name", TYPED)
def test_typed_contents(name: str) -> None:
    """Typed contents mean the same bytes as raw ones, narrow integers in the wide fields included."""
    field, values, wire = TYPED[name]
    spec = ModelSpec("typed", 1, 0, (TensorSpec("X", BY_NAME[name], (2,)),), ())
    request = pb.ModelInferRequest(model_name="typed")
    tensor = request.inputs.add(name="X", datatype=name, shape=[2])
    getattr(tensor.contents, field).extend(values)
    assert bytes(decode(echo_plane(specs=(spec,)), request).data[0]) == wire


def changed(change: object) -> pb.ModelInferRequest:
    request = make()
    change(request)  # type: ignore[operator]
    return request


def both(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend([1, 2])


def neither(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[:]


def wrong_kind(request: pb.ModelInferRequest) -> None:
    neither(request)
    request.inputs[0].contents.int_contents.extend([1, 2])


def half_kind(request: pb.ModelInferRequest) -> None:
    neither(request)
    request.inputs[0].datatype = "FP16"
    request.inputs[0].contents.fp32_contents.extend([1, 2])


def surplus(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents.append(b"1234")


REFUSALS = {
    both: "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'identity'",
    neither: "unable to find data for input tensor 'INPUT0' for model 'identity' in request.",
    wrong_kind: "unexpected explicit tensor data for input tensor 'INPUT0' for model 'identity' of type 'INT32', "
    "expected datatype 'FP32'",
    half_kind: "unexpected explicit tensor data for input tensor 'INPUT0' for model 'identity' of type 'FP32', "
    "expected datatype 'FP16'",
    surplus: "expected 1 raw_input_contents for model 'identity', one per input, got 2",
}


@pytest.mark.parametrize("change", REFUSALS)
def test_tensor_rules(plane: tuple[Data, EchoRegistry], change: object) -> None:
    """Exactly one source of data per input, of the right kind, in Triton's words."""
    assert refusal(plane, changed(change)) == (Code.INVALID_ARG, REFUSALS[change])


def test_the_model_is_looked_for_first(plane: tuple[Data, EchoRegistry]) -> None:
    """A request for an unknown model says so even when its tensors are broken too."""
    request = changed(neither)
    request.model_name = "nope"
    assert refusal(plane, request) == (Code.NOT_FOUND, "Request for unknown model: 'nope' is not found")


@pytest.mark.parametrize("raw", [b"\x0a\xff", b"\x0a\x02\xff\xfe", make().SerializeToString() + b"\x1a\x02\xff\xfe"])
def test_unreadable_messages(plane: tuple[Data, EchoRegistry], raw: bytes) -> None:
    """What is not the protobuf message, broken UTF-8 included, is INTERNAL as in Triton."""
    assert refusal(plane, raw) == (Code.INTERNAL, "Unable to parse request")


P = pb.InferParameter
GOOD_PARAMETERS = [
    ("foo", P(int64_param=3), 3), ("foo", P(bool_param=True), True), ("foo", P(string_param="x"), "x"),
    ("foo", P(double_param=0.5), 0.5), ("priority", P(uint64_param=2), 2), ("timeout", P(int64_param=-1), 2**64 - 1),
    ("sequence_id", P(string_param="s"), "s"), ("sequence_start", P(bool_param=True), True),
    ("triton_enable_empty_final_response", P(bool_param=True), True),
]  # fmt: skip
KIND = "invalid value type for '{}' parameter, expected {}."
CUSTOM = "int64_param, bool_param, or string_param"
BAD_PARAMETERS = [
    ("foo", P(uint64_param=3), KIND.format("foo", CUSTOM)),
    ("foo", P(), KIND.format("foo", CUSTOM)),
    ("sequence_id", P(bool_param=True), KIND.format("sequence_id", "int64_param or string_param")),
    ("sequence_end", P(string_param="x"), KIND.format("sequence_end", "bool_param")),
    ("priority", P(bool_param=True), KIND.format("priority", "int64_param or uint64_param")),
    ("priority", P(int64_param=-1), "invalid value for 'priority', expected value >= 0."),
    ("timeout", P(uint64_param=1), KIND.format("timeout", "int64_param")),
    (
        "triton_x",
        P(int64_param=1),
        (
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
            "following keys starting with 'triton_' are allowed: triton_enable_empty_final_response"
        ),
    ),
]


@pytest.mark.parametrize(("key", "parameter", "value"), GOOD_PARAMETERS)
def test_parameters(plane: tuple[Data, EchoRegistry], key: str, parameter: P, value: object) -> None:
    """Request parameters become Python values."""
    head = decode(plane, make(parameters={key: parameter})).form.head
    assert head.parameters.get(key, None) == value or key in ("priority", "timeout")


@pytest.mark.parametrize(("key", "parameter", "text"), BAD_PARAMETERS)
def test_bad_parameters(plane: tuple[Data, EchoRegistry], key: str, parameter: P, text: str) -> None:
    """A parameter of the wrong kind is refused in Triton's words."""
    assert refusal(plane, make(parameters={key: parameter})) == (Code.INVALID_ARG, text)


OUTPUT = pb.ModelInferRequest.InferRequestedOutputTensor
OUTPUTS = [
    (
        {"classification": P(string_param="3")},
        Code.INVALID_ARG,
        "invalid value type for 'classification' parameter, expected int64_param",
    ),
    (
        {"classification": P(int64_param=0)},
        Code.INVALID_ARG,
        "invalid value for 'classification' parameter, expected >= 0",
    ),
    (
        {"shared_memory_offset": P(int64_param=0)},
        Code.INVALID_ARG,
        "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'OUTPUT0'",
    ),
]


@pytest.mark.parametrize(("parameters", "code", "text"), OUTPUTS)
def test_output_parameters(plane: tuple[Data, EchoRegistry], parameters: dict, code: Code, text: str) -> None:
    """What an output may ask for is checked, in Triton's words."""
    assert refusal(plane, make(outputs=[OUTPUT(name="OUTPUT0", parameters=parameters)])) == (code, text)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=200),
    st.lists(st.integers(0, 300), min_size=1, max_size=3),
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.one_of(st.booleans(), st.integers(-5, 2**62), st.floats(allow_nan=False), st.text(max_size=5)),
        max_size=2,
    ),
)
def test_answers(id: str, sizes: list[int], parameters: dict) -> None:
    """An answer is the message that protobuf would have made of it, its length included."""
    plane = echo_plane()
    request = decode(plane, make(id=id))
    outputs = [
        Tensor(f"O{n}", FP32, (1, size), np.arange(size, dtype="<f4").tobytes()) if n % 2 == 0
        else Tensor(f"O{n}", BYTES, (1,), join_bytes([b"x" * size]))
        for n, size in enumerate(sizes)
    ]  # fmt: skip
    codec = GrpcCodec(plane[0])
    for _ in range(2):
        parts, length = codec.encode_infer(request, InferResponse(outputs, parameters))
        raw = b"".join(parts)
        assert len(raw) == length
        answer = pb.ModelInferResponse.FromString(raw)
        assert (answer.model_name, answer.model_version, answer.id) == ("identity", "1", id)
        assert [(o.name, o.datatype, tuple(o.shape)) for o in answer.outputs] == [
            (o.name, o.datatype.name, o.shape) for o in outputs
        ]
        assert list(answer.raw_output_contents) == [o.data for o in outputs]
        kinds = {key: value.WhichOneof("parameter_choice") for key, value in answer.parameters.items()}
        assert {key: getattr(answer.parameters[key], kind) for key, kind in kinds.items()} == parameters


def test_the_wire_of_an_answer(plane: tuple[Data, EchoRegistry]) -> None:
    """Byte for byte what Triton sends: no id field for an empty id, raw contents last."""
    request = decode(plane, make())
    response = InferResponse([Tensor("OUTPUT0", FP32, (1, 2), struct.pack("<2f", 1, 2))])
    parts, _ = GrpcCodec(plane[0]).encode_infer(request, response)
    assert b"".join(parts) == (
        b"\n\x08identity\x12\x011*\x13\n\x07OUTPUT0\x12\x04FP32\x1a\x02\x01\x022\x08\x00\x00\x80?\x00\x00\x00@"
    )


def test_an_answer_too_large_for_grpc_is_an_error(
    plane: tuple[Data, EchoRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that no gRPC client can take is refused with its size and the limit."""
    monkeypatch.setattr(codec, "MAX_RESPONSE", 1000)
    request = decode(plane, make())
    response = InferResponse([Tensor("OUTPUT0", FP32, (1, 300), bytes(1200))])
    with pytest.raises(InferError, match=r"Response has byte size 12\d\d which exceeds gRPC's byte size limit 1000\."):
        GrpcCodec(plane[0]).encode_infer(request, response)
