"""Inputs from regions, outputs into regions and as classes: what both codecs make of a request that asks for them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from conch.memory.regions import Regions
from conch.memory.system import COPY_LIMIT
from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc import GrpcCodec
from conch.protocol.v2.head import Target
from conch.protocol.v2.json import JsonCodec
from conch.service.data import Data
from conch.types.dtype import BYTES, FP32
from conch.types.error import Code, InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Tensor
from support.plane import IDENTITY, EchoRegistry, echo_plane
from support.requests import Recorder

SIZE = 4 * COPY_LIMIT
CONTENT = struct.pack("<4f", 1, 3, 2, 5) + b"\x01\0\0\0x" + bytes(11)
TEXT = ModelSpec("text", 1, 8, (TensorSpec("INPUT0", BYTES, (-1,)),), (TensorSpec("OUTPUT0", BYTES, (-1,)),))
PAIR = ModelSpec(
    "pair",
    1,
    8,
    (TensorSpec("A", FP32, (-1,)), TensorSpec("B", FP32, (-1,))),
    (TensorSpec("OA", FP32, (-1,), labels=(b"no", b"yes")), TensorSpec("OB", FP32, (-1,))),
)
JsonDict = dict[str, Any]


class Bench:
    """Both codecs over one plane and one region `r` of 64 KiB; `ask` decodes, runs the echo and encodes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "key"
        self.path.write_bytes(CONTENT.ljust(SIZE, b"\0"))
        self.regions = Regions(allowed=True, folder=str(folder))
        self.register()
        self.data: Data
        self.registry: EchoRegistry
        self.data, self.registry = echo_plane("hold", (IDENTITY, TEXT, PAIR))
        self.json = JsonCodec(self.data, 1 << 20, self.regions)
        self.grpc = GrpcCodec(self.data, regions=self.regions)
        self.sink = Recorder()

    def register(self) -> None:
        self.regions.register_system("r", "/key", 0, SIZE)

    def http(
        self, model: str, inputs: list[JsonDict], outputs: list[JsonDict] | None = None, blobs: bytes = b""
    ) -> Any:
        """The answer's JSON without its model."""
        body: JsonDict = {"inputs": inputs} if outputs is None else {"inputs": inputs, "outputs": outputs}
        text = json.dumps(body).encode()
        target = Target(model, "", len(text) if blobs else -1)
        request, pattern = self.json.decode_infer(target, text + blobs, self.sink, 0)
        _, parts = pattern.encode("", self.run(request))
        return json.loads(bytes(parts[0]))["outputs"], b"".join(bytes(each) for each in parts[1:])

    def call(self, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        request = self.grpc.decode_infer(message.SerializeToString(), self.sink, 0)
        parts, _ = self.grpc.encode_infer(request, self.run(request))
        return pb.ModelInferResponse.FromString(b"".join(parts))

    def run(self, request: InferRequest) -> InferResponse:
        self.data.infer(request)
        return self.settle(request.form.head.model_name)

    def settle(self, model: str) -> InferResponse:
        self.registry.versions[model].scheduler.release()
        if self.sink.errors:
            raise self.sink.errors.pop()[1]
        return self.sink.replies.pop()[1]

    def memory(self, at: int, size: int) -> bytes:
        return self.path.read_bytes()[at : at + size]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def at(region: str, size: int, offset: int = 0) -> JsonDict:
    return {
        "shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset,
    }  # fmt: skip


def given(name: str, shape: list[int], datatype: str = "FP32", **parameters: Any) -> JsonDict:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": parameters}


def asked(name: str, **parameters: Any) -> JsonDict:
    return {"name": name, "parameters": parameters}


def message(
    model: str, inputs: list[JsonDict], outputs: list[JsonDict] = [], raw: list[bytes] = [], id: str = ""  # noqa: B006
) -> pb.ModelInferRequest:  # fmt: skip
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=raw, id=id)
    for each in inputs:
        tensor = request.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        _write(each["parameters"], tensor.parameters)
    for each in outputs:
        _write(each["parameters"], request.outputs.add(name=each["name"]).parameters)
    return request


def _write(parameters: JsonDict, into: Any) -> None:
    for key, value in parameters.items():
        if isinstance(value, str):
            into[key].string_param = value
        else:
            into[key].int64_param = value


def refused(call: Any, *arguments: Any) -> tuple[Code, str]:
    with pytest.raises(InferError) as caught:
        call(*arguments)
    return caught.value.code, caught.value.message


def test_an_input_is_read_anew_for_each_request(bench: Bench) -> None:
    """The head is the same, what lies in the region is not, and the form is made once."""
    forms = set()
    for values in ((1, 3, 2, 5), (0, 0, 7, 0)):
        bench.path.write_bytes(struct.pack("<4f", *values).ljust(SIZE, b"\0"))
        inputs = [given("INPUT0", [1, 4], **at("r", 16))]
        found, _ = bench.http("identity", inputs)
        assert found[0]["data"] == list(values)
        for name in ("", "a", "bb"):
            answer = bench.call(message("identity", inputs, id=name))
            assert answer.raw_output_contents[0] == struct.pack("<4f", *values)
        forms.add(id_of_form(bench, inputs))
    assert len(forms) == 1


def id_of_form(bench: Bench, inputs: list[JsonDict]) -> int:
    return id(bench.grpc.decode_infer(message("identity", inputs).SerializeToString(), bench.sink, 0).form)


def test_a_large_input_is_not_copied(bench: Bench) -> None:
    """It is a view of the client's memory, over both protocols; BYTES are copied, as they are checked once."""
    count = SIZE // 4
    inputs = [given("INPUT0", [1, count], **at("r", SIZE))]
    body = json.dumps({"inputs": inputs}).encode()
    for _ in range(2):
        got, _ = bench.json.decode_infer(Target("identity", ""), body, bench.sink, 0)
        assert isinstance(got.data[0], memoryview)
        called = bench.grpc.decode_infer(message("identity", inputs).SerializeToString(), bench.sink, 0)
        assert isinstance(called.data[0], memoryview)
    inputs = [given("INPUT0", [1, count], "BYTES", **at("r", SIZE))]
    copied = bench.grpc.decode_infer(message("text", inputs).SerializeToString(), bench.sink, 0)
    assert isinstance(copied.data[0], bytes)


def test_a_region_that_has_gone_is_missed_at_once(bench: Bench) -> None:
    """What codecs remember of a head does not outlive the region; registered again, it is found again."""
    inputs, outputs = [given("INPUT0", [1, 4], **at("r", 16))], [asked("OUTPUT0", **at("r", 16, 64))]
    plain = [given("INPUT0", [1, 4])]
    raw = [CONTENT[:16]]
    missing = (Code.NOT_FOUND, "Unable to find shared memory region: 'r'")
    for _ in range(2):
        bench.http("identity", inputs, outputs)
        bench.call(message("identity", inputs, outputs))
        bench.call(message("identity", plain, outputs, raw))
        bench.regions.unregister_system("r")
        for _ in range(2):
            assert refused(bench.http, "identity", inputs) == missing
            assert refused(bench.http, "identity", inputs, outputs) == missing
            assert refused(bench.call, message("identity", inputs)) == missing
            assert refused(bench.call, message("identity", inputs, outputs)) == missing
            assert refused(bench.call, message("identity", plain, outputs, raw)) == missing
        bench.register()


def test_a_region_may_be_unregistered_while_a_request_runs(bench: Bench) -> None:
    """The request has its inputs and its place for outputs, and so ends well."""
    inputs, outputs = [given("INPUT0", [1, 4], **at("r", 16))], [asked("OUTPUT0", **at("r", 16, 64))]
    request = bench.grpc.decode_infer(message("identity", inputs, outputs).SerializeToString(), bench.sink, 0)
    bench.data.infer(request)
    bench.regions.unregister_system("r")
    assert bench.settle("identity").outputs[0].data == b""
    assert bench.memory(64, 16) == CONTENT[:16]


def test_an_output_in_a_region_is_not_sent(bench: Bench) -> None:
    """HTTP says nothing of its data, gRPC has an empty entry; other outputs come as asked for."""
    inputs = [given("A", [1, 2], **at("r", 8)), given("B", [1, 2], **at("r", 8, 8))]
    outputs = [asked("OA", **at("r", 20, 100)), asked("OB")]
    found, _ = bench.http("pair", inputs, outputs)
    assert found == [
        {"name": "OA", "datatype": "FP32", "shape": [1, 2]},
        {"name": "OB", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 5.0]},
    ]
    assert bench.memory(100, 9) == CONTENT[:8] + b"\0"
    found, blobs = bench.http("pair", inputs, [asked("OA", **at("r", 8, 200)), asked("OB", binary_data=True)])
    assert (found[1]["parameters"], blobs) == ({"binary_data_size": 8}, CONTENT[8:16])
    for _ in range(2):
        answer = bench.call(message("pair", inputs, outputs))
        assert list(answer.raw_output_contents) == [b"", CONTENT[8:16]]
        assert not answer.outputs[0].parameters


def test_inputs_from_everywhere_find_their_places(bench: Bench) -> None:
    """One from a region, one with the message, in any order; raw contents are counted without those in regions."""
    a, b = given("A", [1, 2], **at("r", 8)), given("B", [1, 2])
    sent = struct.pack("<2f", 8, 9)
    for inputs in ([a, b], [b, a]):
        for _ in range(2):
            answer = bench.call(message("pair", inputs, raw=[sent]))
            assert list(answer.raw_output_contents) == [CONTENT[:8], sent]
        sized = [each | {"parameters": {"binary_data_size": 8}} if each is b else each for each in inputs]
        for _ in range(2):
            found, _ = bench.http("pair", sized, blobs=sent)
            assert [each["data"] for each in found] == [[1.0, 3.0], [8.0, 9.0]]


def test_messages_that_begin_alike_are_told_apart(bench: Bench) -> None:
    """One is the beginning of the other: each is decoded as a codec that has seen neither decodes it."""
    inputs, outputs = [given("INPUT0", [1, 4], **at("r", 16))], [asked("OUTPUT0", **at("r", 16, 64))]
    for _ in range(3):
        assert bench.call(message("identity", inputs)).raw_output_contents[0] == CONTENT[:16]
        assert bench.call(message("identity", inputs, outputs)).raw_output_contents[0] == b""


def test_an_output_that_does_not_fit_is_an_error(bench: Bench) -> None:
    """Nothing is written, and the answer says how much was needed."""
    inputs, outputs = [given("INPUT0", [1, 4], **at("r", 16))], [asked("OUTPUT0", **at("r", 15, 64))]
    text = (
        "shared memory size specified with the request for output 'OUTPUT0' (15 bytes) should be at least 16 bytes "
        "to hold the results"
    )
    wanted = (Code.INTERNAL, text)
    assert refused(bench.http, "identity", inputs, outputs) == wanted
    assert refused(bench.call, message("identity", inputs, outputs)) == wanted
    assert bench.memory(64, 16) == bytes(16)


def test_classes_have_the_labels_of_their_output(bench: Bench) -> None:
    """An output with labels, and one without, classified over both protocols."""
    inputs = [given("A", [1, 2], **at("r", 8)), given("B", [1, 2], **at("r", 8, 8))]
    outputs = [asked("OA", classification=2), asked("OB", classification=1)]
    found, _ = bench.http("pair", inputs, outputs)
    assert [(each["datatype"], each["shape"], each["data"]) for each in found] == [
        ("BYTES", [1, 2], ["3.000000:1:yes", "1.000000:0:no"]),
        ("BYTES", [1, 1], ["5.000000:1"]),
    ]
    for _ in range(2):
        answer = bench.call(message("pair", inputs, outputs))
        assert [(each.datatype, list(each.shape)) for each in answer.outputs] == [("BYTES", [1, 2]), ("BYTES", [1, 1])]
        assert answer.raw_output_contents[1] == b"\x0a\0\0\x005.000000:1"


def test_a_head_is_not_mistaken_for_one_with_other_wishes(bench: Bench) -> None:
    """Equal but for what happens to the output: each gets its own."""
    inputs = [given("INPUT0", [1, 4], **at("r", 16))]
    wishes: list[JsonDict] = [{}, {"classification": 1}, {"classification": 2}, at("r", 16, 64), at("r", 16, 128)]
    for _ in range(2):
        found = [bench.http("identity", inputs, [asked("OUTPUT0", **wish)])[0][0] for wish in wishes]
        assert [each.get("data") for each in found] == [
            [1.0, 3.0, 2.0, 5.0], ["5.000000:3"], ["5.000000:3", "3.000000:1"], None, None,
        ]  # fmt: skip
    assert bench.memory(64, 16) == bench.memory(128, 16) == CONTENT[:16]


def test_what_follows_a_refused_response_is_dropped(bench: Bench) -> None:
    """A decoupled model's response that cannot be delivered ends the request, once."""
    inputs, outputs = [given("INPUT0", [1, 4], **at("r", 16))], [asked("OUTPUT0", **at("r", 4, 64))]
    request = bench.grpc.decode_infer(message("identity", inputs, outputs).SerializeToString(), bench.sink, 0)
    fits, large = [InferResponse([Tensor("OUTPUT0", FP32, (1, n), bytes(4 * n))]) for n in (1, 2)]
    request.sink.reply(request, fits, False)
    assert not request.cancelled
    request.sink.reply(request, large, False)
    assert request.cancelled
    request.sink.reply(request, fits, False)
    request.sink.reply(request, FINAL, True)
    request.sink.fail(request, InferError(Code.CANCELLED, ""))
    assert (len(bench.sink.replies), len(bench.sink.errors)) == (1, 1)


def test_the_end_of_a_stream_stays_what_it_is(bench: Bench) -> None:
    """FINAL is known by its identity."""
    outputs = [asked("OUTPUT0", classification=1)]
    raw = [CONTENT[:16]]
    sent = message("identity", [given("INPUT0", [1, 4])], outputs, raw)
    request = bench.grpc.decode_infer(sent.SerializeToString(), bench.sink, 0)
    request.sink.reply(request, FINAL, True)
    assert bench.sink.replies[0][1] is FINAL


def test_a_broken_tensor_is_an_error(bench: Bench) -> None:
    """A model whose bytes are not what its shape says: the client hears of it."""
    sent = message("identity", [given("INPUT0", [1, 4])], [asked("OUTPUT0", classification=1)], [CONTENT[:16]])
    request = bench.grpc.decode_infer(sent.SerializeToString(), bench.sink, 0)
    request.sink.reply(request, InferResponse([Tensor("OUTPUT0", FP32, (1, 4), bytes(15))]), True)
    assert bench.sink.errors[0][1].code is Code.INTERNAL


def test_the_model_is_looked_for_before_regions(bench: Bench) -> None:
    """As in Triton: an unknown model is said first, then a region, then what is wrong with the rest."""
    wrong = given("INPUT0", [1, 4, 4], **at("none", 16))
    unknown = (Code.NOT_FOUND, "Request for unknown model: 'nope' is not found")
    missing = (Code.NOT_FOUND, "Unable to find shared memory region: 'none'")
    assert refused(bench.http, "nope", [wrong]) == refused(bench.call, message("nope", [wrong])) == unknown
    assert refused(bench.http, "identity", [wrong]) == refused(bench.call, message("identity", [wrong])) == missing


WRONG_TYPE = "invalid value type for '{}' parameter for tensor '{{}}', expected {}."
ALONE = "'{}' can not be specified without 'shared_memory_region' parameter for tensor '{{}}'"
NO_SIZE = "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor '{}'"
REGION, OFFSET, BYTE_SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
GRPC_TEXTS = [
    ({REGION: 5}, WRONG_TYPE.format(REGION, "string_param")),
    ({REGION: "r"}, NO_SIZE),
    ({REGION: "r", BYTE_SIZE: "x"}, WRONG_TYPE.format(BYTE_SIZE, "int64_param")),
    (at("r", 4) | {OFFSET: "x"}, WRONG_TYPE.format(OFFSET, "int64_param")),
    ({OFFSET: 1}, ALONE.format(OFFSET)),
    ({BYTE_SIZE: 1}, ALONE.format(BYTE_SIZE)),
    (at("r", 16, -1), "Invalid offset for shared memory region: 'r'"),
    (at("r", -16), "Invalid offset + byte size for shared memory region: 'r'"),
    (at("r", 16, SIZE - 15), "Invalid offset + byte size for shared memory region: 'r'"),
]


@pytest.mark.parametrize(("parameters", "text"), GRPC_TEXTS)
def test_grpc_parameters_are_checked(bench: Bench, parameters: JsonDict, text: str) -> None:
    """The same of inputs and outputs, in Triton's words."""
    found = refused(bench.call, message("identity", [given("INPUT0", [1, 4], **parameters)]))
    assert found == (Code.INVALID_ARG, text.format("INPUT0"))
    asks = message("identity", [given("INPUT0", [1, 4])], [asked("OUTPUT0", **parameters)], [CONTENT[:16]])
    assert refused(bench.call, asks) == (Code.INVALID_ARG, text.format("OUTPUT0"))


def test_grpc_data_comes_from_one_place(bench: Bench) -> None:
    """Typed contents beside a region are refused, and so are classes of an output that goes to a region."""
    twice = message("identity", [given("INPUT0", [1, 4], **at("r", 16))])
    twice.inputs[0].contents.fp32_contents.append(1)
    assert refused(bench.call, twice) == (
        Code.INVALID_ARG,
        "unexpected 'content' provided when using shared memory for input tensor 'INPUT0' for model 'identity'",
    )
    both = message("identity", [given("INPUT0", [1, 4])], [asked("OUTPUT0", classification=1, **at("r", 16))], [b""])
    text = "output can't set both 'shared_memory_region' and 'classification'"
    assert refused(bench.call, both) == (Code.INVALID_ARG, text)


UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
HTTP_TEXTS: list[tuple[JsonDict, Code, str]] = [
    ({REGION: 5}, Code.INTERNAL, f"Unable to parse '{REGION}': attempt to access JSON non-string as string"),
    ({REGION: "r"}, Code.INVALID_ARG, "Invalid offset + byte size for shared memory region: 'r'"),
    (at("r", -1), Code.INTERNAL, f"Unable to parse 'shared_memory_byte_size': {UNSIGNED}"),
    (at("r", 4, -1), Code.INTERNAL, f"Unable to parse 'shared_memory_offset': {UNSIGNED}"),
    (at("r", 4, SIZE), Code.INVALID_ARG, "Invalid offset for shared memory region: 'r'"),
    (at("r", 4, 2**64 - 1), Code.INVALID_ARG, "Invalid offset for shared memory region: 'r'"),
    (at("r", 2**64 - 1, 2), Code.INVALID_ARG, "Invalid offset + byte size for shared memory region: 'r'"),
    (at("nope", 4), Code.NOT_FOUND, "Unable to find shared memory region: 'nope'"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "code", "text"), HTTP_TEXTS)
def test_http_parameters_are_checked(bench: Bench, parameters: JsonDict, code: Code, text: str) -> None:
    """The same of inputs and outputs, in Triton's words."""
    assert refused(bench.http, "identity", [given("INPUT0", [1, 4], **parameters)]) == (code, text)
    good = [given("INPUT0", [1, 4], **at("r", 16))]
    assert refused(bench.http, "identity", good, [asked("OUTPUT0", **parameters)]) == (code, text)
