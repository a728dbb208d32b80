"""The requests that both servers are asked, in order: pure data, so that a case reads as what goes over the wire."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.polling import Change, Upheaval
from parity.schedules import Schedule

Json = Any


@dataclass(frozen=True)
class Http:
    """One HTTP request on a connection of its own. `settle`: wait afterwards until no model is unloading."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    settle: bool = False


@dataclass(frozen=True)
class Grpc:
    """One unary call. `message` is the request in protobuf's JSON form (bytes are base64)."""

    name: str
    rpc: str
    message: dict[str, Json] = field(default_factory=dict)
    settle: bool = False
    service: str = "inference.GRPCInferenceService"
    metadata: tuple[tuple[str, str], ...] = ()
    #: "gzip" or "deflate": how the message is compressed.
    compression: str = ""


@dataclass(frozen=True)
class Stream:
    """One ModelStreamInfer call: all messages are sent, then the client half-closes.

    `by_id`: answers of decoupled models interleave as they like, so they are put in the order of their ids.
    """

    name: str
    messages: tuple[dict[str, Json], ...]
    metadata: tuple[tuple[str, str], ...] = ()
    by_id: bool = False
    compression: str = ""


@dataclass(frozen=True)
class Memory:
    """A look into the shared memory region that the client made: what the server has written there."""

    name: str
    offset: int
    size: int


Case = Http | Grpc | Stream | Memory | Schedule | Upheaval | Change


def text(body: Json) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def post(name: str, path: str, body: Json, headers: dict[str, str] | None = None, *, settle: bool = False) -> Http:
    return Http(f"http {name}", "POST", path, text(body), headers or {}, settle)


def get(name: str, path: str, headers: dict[str, str] | None = None) -> Http:
    return Http(f"http {name}", "GET", path, headers=headers or {})


def infer(name: str, model: str, body: Json, headers: dict[str, str] | None = None) -> Http:
    return post(f"infer {model}: {name}", f"/v2/models/{model}/infer", body, headers)


def binary(name: str, model: str, body: Json, *blobs: bytes, length: object = None) -> Http:
    """An inference with binary tensors behind its JSON; `length` overrides the header that tells them apart."""
    head = text(body)
    size = len(head) if length is None else length
    return infer(name, model, head + b"".join(blobs), {"Inference-Header-Content-Length": str(size)})


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def strings(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensor(name: str, datatype: str, shape: Json, **more: Json) -> dict[str, Json]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def sized(name: str, datatype: str, shape: Json, size: Json) -> dict[str, Json]:
    return tensor(name, datatype, shape, parameters={"binary_data_size": size})


def x_int(value: int = 1) -> dict[str, Json]:
    return tensor("X", "INT32", [1], data=[value])


A = tensor("INPUT0", "FP32", [1, 3], data=[1, 2, 3])
B = tensor("INPUT1", "FP32", [1, 3], data=[10, 20, 30.5])
A_RAW, B_RAW = floats(1, 2, 3), floats(10, 20, 30.5)
A_SIZED = sized("INPUT0", "FP32", [1, 3], 12)
B_SIZED = sized("INPUT1", "FP32", [1, 3], 12)
ADD_SUB = {"inputs": [A, B]}


def health() -> list[Case]:
    return [
        get("live", "/v2/health/live"),
        get("ready", "/v2/health/ready"),
        get("server metadata", "/v2"),
        get("server metadata, slash", "/v2/"),
        get("root", "/"),
        get("unknown path", "/v2/nothing"),
        get("unknown path below a model", "/v2/models/add_sub/nothing"),
        Http("http live, query string", "GET", "/v2/health/live?verbose=1"),
        Http("http live by POST", "POST", "/v2/health/live"),
        Http("http server metadata by POST", "POST", "/v2"),
        Http("http infer by GET", "GET", "/v2/models/add_sub/infer"),
        Http("http infer by PUT", "PUT", "/v2/models/add_sub/infer"),
        Http("http index by GET", "GET", "/v2/repository/index"),
        Http("http metadata by DELETE", "DELETE", "/v2/models/add_sub"),
        Http("http live by HEAD", "HEAD", "/v2/health/live"),
        get("model ready", "/v2/models/add_sub/ready"),
        get("model ready, version", "/v2/models/versions/versions/3/ready"),
        get("model ready, unknown model", "/v2/models/nobody/ready"),
        get("model ready, unknown version", "/v2/models/add_sub/versions/7/ready"),
        get("model ready, version is a word", "/v2/models/add_sub/versions/one/ready"),
        get("model ready, version too large", "/v2/models/add_sub/versions/99999999999999999999/ready"),
        Grpc("grpc live", "ServerLive"),
        Grpc("grpc ready", "ServerReady"),
        Grpc("grpc server metadata", "ServerMetadata"),
        Grpc("grpc model ready", "ModelReady", {"name": "add_sub"}),
        Grpc("grpc model ready, version", "ModelReady", {"name": "versions", "version": "10"}),
        Grpc("grpc model ready, unknown model", "ModelReady", {"name": "nobody"}),
        Grpc("grpc model ready, unknown version", "ModelReady", {"name": "add_sub", "version": "7"}),
        Grpc("grpc model ready, version is a word", "ModelReady", {"name": "add_sub", "version": "one"}),
        Grpc("grpc model ready, negative version", "ModelReady", {"name": "add_sub", "version": "-3"}),
        Grpc("grpc unknown method", "NoSuchMethod"),
        Grpc("grpc health check", "Check", service="grpc.health.v1.Health"),
        Grpc("grpc health check of a service", "Check", {"service": "anything"}, service="grpc.health.v1.Health"),
        Grpc("grpc unknown service", "Check", service="grpc.health.v2.Health"),
    ]


def metadata() -> list[Case]:
    names = ("add_sub", "types", "text", "auto", "versions", "reshape", "wide", "linear")
    cases: list[Case] = []
    for name in names:
        cases += [
            get(f"metadata {name}", f"/v2/models/{name}"),
            get(f"config {name}", f"/v2/models/{name}/config"),
            Grpc(f"grpc metadata {name}", "ModelMetadata", {"name": name}),
            Grpc(f"grpc config {name}", "ModelConfig", {"name": name}),
        ]
    return [
        *cases,
        get("metadata of one version", "/v2/models/versions/versions/3"),
        get("metadata, unknown model", "/v2/models/nobody"),
        get("metadata, unknown version", "/v2/models/add_sub/versions/2"),
        get("config, unknown model", "/v2/models/nobody/config"),
        get("config, unknown version", "/v2/models/versions/versions/2/config"),
        get("config of one version", "/v2/models/versions/versions/1/config"),
        Grpc("grpc metadata of one version", "ModelMetadata", {"name": "versions", "version": "3"}),
        Grpc("grpc metadata, unknown model", "ModelMetadata", {"name": "nobody"}),
        Grpc("grpc metadata, bad version", "ModelMetadata", {"name": "versions", "version": "3x"}),
        Grpc("grpc config, unknown model", "ModelConfig", {"name": "nobody"}),
        Grpc("grpc config, unknown version", "ModelConfig", {"name": "add_sub", "version": "9"}),
        post("index", "/v2/repository/index", b""),
        post("index, ready only", "/v2/repository/index", {"ready": True}),
        post("index, ready is no boolean", "/v2/repository/index", {"ready": "yes"}),
        post("index, malformed", "/v2/repository/index", b"{"),
        Grpc("grpc index", "RepositoryIndex"),
        Grpc("grpc index, ready only", "RepositoryIndex", {"ready": True}),
        post("load where it is not allowed", "/v2/repository/models/add_sub/load", b""),
        post("unload where it is not allowed", "/v2/repository/models/add_sub/unload", b""),
        post("load of a named repository", "/v2/repository/here/models/add_sub/load", b""),
        Grpc("grpc load where it is not allowed", "RepositoryModelLoad", {"model_name": "add_sub"}),
        Grpc("grpc unload where it is not allowed", "RepositoryModelUnload", {"model_name": "add_sub"}),
    ]


def statistics() -> list[Case]:
    """`counted` is used by nothing else, so its counters are known."""
    one = {"inputs": [tensor("X", "FP32", [2], data=[1, 2])]}
    return [
        get("statistics before any request", "/v2/models/counted/stats"),
        infer("first", "counted", one),
        infer("second", "counted", one),
        infer("refused before the scheduler", "counted", {"inputs": [tensor("X", "INT8", [2], data=[1, 2])]}),
        get("statistics", "/v2/models/counted/stats"),
        get("statistics of a version", "/v2/models/counted/versions/1/stats"),
        get("statistics, unknown model", "/v2/models/nobody/stats"),
        get("statistics, unknown version", "/v2/models/counted/versions/5/stats"),
        get("statistics of three versions", "/v2/models/versions/stats"),
        Grpc("grpc statistics", "ModelStatistics", {"name": "counted"}),
        Grpc("grpc statistics, unknown model", "ModelStatistics", {"name": "nobody"}),
        Grpc("grpc statistics, unknown version", "ModelStatistics", {"name": "counted", "version": "5"}),
    ]


def http_json() -> list[Case]:
    model = "add_sub"
    nested = tensor("INPUT0", "FP32", [2, 3], data=[[1, 2, 3], [4, 5, 6]])
    nested1 = tensor("INPUT1", "FP32", [2, 3], data=[[1, 1, 1], [2, 2, 2]])
    bad: Sequence[tuple[str, Json]] = (
        ("empty body", b""),
        ("no JSON", b"hello"),
        ("cut off", b'{"inputs":['),
        ("trailing text", json.dumps(ADD_SUB).encode() + b" x"),
        ("single quotes", b"{'inputs': []}"),
        ("a number", b"3"),
        ("an array", b"[]"),
        ("null", b"null"),
        ("bad escape", b'{"id": "\\x"}'),
        ("invalid UTF-8", b'{"id": "\xff\xfe", "inputs": []}'),
        ("no inputs", {}),
        ("inputs is an object", {"inputs": {}}),
        ("inputs is null", {"inputs": None}),
        ("inputs is empty", {"inputs": []}),
        ("an input is a number", {"inputs": [1, 2]}),
        ("input without name", {"inputs": [{"datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}, B]}),
        ("input name is a number", {"inputs": [{**A, "name": 7}, B]}),
        ("input without datatype", {"inputs": [{"name": "INPUT0", "shape": [1, 3], "data": [1, 2, 3]}, B]}),
        ("input without shape", {"inputs": [{"name": "INPUT0", "datatype": "FP32", "data": [1, 2, 3]}, B]}),
        ("input without data", {"inputs": [tensor("INPUT0", "FP32", [1, 3]), B]}),
        ("shape is a number", {"inputs": [{**A, "shape": 3}, B]}),
        ("shape of words", {"inputs": [{**A, "shape": ["1", "3"]}, B]}),
        ("shape with a fraction", {"inputs": [{**A, "shape": [1, 3.5]}, B]}),
        ("negative size", {"inputs": [{**A, "shape": [1, -3]}, B]}),
        ("no batch dimension", {"inputs": [{**A, "shape": [3]}, {**B, "shape": [3]}]}),
        ("empty shape", {"inputs": [{**A, "shape": []}, B]}),
        ("wrong size", {"inputs": [{**A, "shape": [1, 2], "data": [1, 2]}, B]}),
        ("too many dimensions", {"inputs": [{**A, "shape": [1, 1, 3]}, B]}),
        ("batch of nothing", {"inputs": [{**A, "shape": [0, 3], "data": []}, {**B, "shape": [0, 3], "data": []}]}),
        ("batches differ", {"inputs": [nested, B]}),
        ("batch too large", {"inputs": [{**t, "shape": [5, 3], "data": [1] * 15} for t in (A, B)]}),
        ("too few elements", {"inputs": [{**A, "data": [1, 2]}, B]}),
        ("too many elements", {"inputs": [{**A, "data": [1, 2, 3, 4]}, B]}),
        ("data is a number", {"inputs": [{**A, "data": 1}, B]}),
        ("data of words", {"inputs": [{**A, "data": ["1", "2", "3"]}, B]}),
        ("data of booleans", {"inputs": [{**A, "data": [True, False, True]}, B]}),
        ("data with null", {"inputs": [{**A, "data": [1, None, 3]}, B]}),
        ("data nested unevenly", {"inputs": [{**A, "data": [[1, 2], 3]}, B]}),
        ("data nested too deep", {"inputs": [{**A, "data": [[[[1, 2, 3]]]]}, B]}),
        ("wrong datatype", {"inputs": [{**A, "datatype": "INT32"}, B]}),
        ("unknown datatype", {"inputs": [{**A, "datatype": "FLOAT"}, B]}),
        ("lower case datatype", {"inputs": [{**A, "datatype": "fp32"}, B]}),
        ("datatype is a number", {"inputs": [{**A, "datatype": 11}, B]}),
        ("input missing", {"inputs": [A]}),
        ("unknown input", {"inputs": [A, {**B, "name": "INPUT2"}]}),
        ("input too many", {"inputs": [A, B, {**B, "name": "INPUT2"}]}),
        ("input twice", {"inputs": [A, A]}),
        ("input twice and all", {"inputs": [A, B, A]}),
        ("id is a number", {"id": 7, **ADD_SUB}),
        ("parameters is an array", {"parameters": [], **ADD_SUB}),
        ("parameter is an array", {"parameters": {"a": [1]}, **ADD_SUB}),
        ("parameter is null", {"parameters": {"a": None}, **ADD_SUB}),
        ("reserved parameter", {"parameters": {"triton_x": 1}, **ADD_SUB}),
        ("priority is a word", {"parameters": {"priority": "high"}, **ADD_SUB}),
        ("timeout is a word", {"parameters": {"timeout": "soon"}, **ADD_SUB}),
        ("sequence_start is a number", {"parameters": {"sequence_id": 1, "sequence_start": 1}, **ADD_SUB}),
        ("outputs is an object", {**ADD_SUB, "outputs": {}}),
        ("output without name", {**ADD_SUB, "outputs": [{}]}),
        ("unknown output", {**ADD_SUB, "outputs": [{"name": "OUTPUT9"}]}),
        ("output twice", {**ADD_SUB, "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]}),
        ("binary_data is a word", {**ADD_SUB, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": "yes"}}]}),
        ("data and binary size", {"inputs": [{**A, "parameters": {"binary_data_size": 12}}, B]}),
    )
    good: Sequence[tuple[str, Json]] = (
        ("plain", ADD_SUB),
        ("with id", {"id": "a \u00e9 \u20ac", **ADD_SUB}),
        ("nested data", {"inputs": [nested, nested1]}),
        ("inputs in the other order", {"inputs": [B, A]}),
        ("one output", {**ADD_SUB, "outputs": [{"name": "OUTPUT1"}]}),
        ("outputs in the other order", {**ADD_SUB, "outputs": [{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]}),
        ("no outputs listed", {**ADD_SUB, "outputs": []}),
        ("unknown member", {**ADD_SUB, "colour": "red"}),
        ("integers for floats", {"inputs": [{**A, "data": [1, 2, 3]}, {**B, "data": [4, 5, 6]}]}),
        ("NaN and infinities", {"inputs": [{**A, "data": [float("nan"), float("inf"), float("-inf")]}, B]}),
        ("priority and timeout that mean nothing", {"parameters": {"priority": 3, "timeout": 10}, **ADD_SUB}),
        ("binary outputs by default", {"parameters": {"binary_data_output": True}, **ADD_SUB}),
        (
            "binary by default, one listed",
            {"parameters": {"binary_data_output": True}, **ADD_SUB, "outputs": [{"name": "OUTPUT0"}]},
        ),
        (
            "one output binary, one JSON",
            {
                **ADD_SUB,
                "outputs": [
                    {"name": "OUTPUT0", "parameters": {"binary_data": True}},
                    {"name": "OUTPUT1", "parameters": {"binary_data": False}},
                ],
            },
        ),
    )
    return [
        *(infer(name, model, body) for name, body in (*good, *bad)),
        infer("unknown model", "nobody", ADD_SUB),
        post("infer add_sub: version", "/v2/models/add_sub/versions/1/infer", ADD_SUB),
        post("infer add_sub: unknown version", "/v2/models/add_sub/versions/2/infer", ADD_SUB),
        infer("malformed, unknown model", "nobody", b"{"),
        post(
            "infer versions: highest", "/v2/models/versions/infer", {"inputs": [tensor("IN", "INT32", [1], data=[1])]}
        ),
        post(
            "infer versions: one",
            "/v2/models/versions/versions/1/infer",
            {"inputs": [tensor("IN", "INT32", [1], data=[1])]},
        ),
    ]


def http_binary() -> list[Case]:
    both = {"inputs": [A_SIZED, B_SIZED]}
    out = {**both, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]}
    model = "add_sub"
    return [
        binary("binary in, JSON out", model, both, A_RAW, B_RAW),
        binary("binary in and out", model, out, A_RAW, B_RAW),
        binary("binary and JSON in", model, {"inputs": [A, B_SIZED]}, B_RAW),
        binary("header length covers a JSON body", model, ADD_SUB),
        binary("bytes missing", model, both, A_RAW),
        binary("bytes too many", model, both, A_RAW, B_RAW, b"xx"),
        binary(
            "binary size too small", model, {"inputs": [sized("INPUT0", "FP32", [1, 3], 8), B_SIZED]}, A_RAW[:8], B_RAW
        ),
        binary(
            "binary size too large",
            model,
            {"inputs": [sized("INPUT0", "FP32", [1, 3], 16), B_SIZED]},
            A_RAW + b"1234",
            B_RAW,
        ),
        binary(
            "binary size is a word", model, {"inputs": [sized("INPUT0", "FP32", [1, 3], "12"), B_SIZED]}, A_RAW, B_RAW
        ),
        binary(
            "binary size is negative", model, {"inputs": [sized("INPUT0", "FP32", [1, 3], -12), B_SIZED]}, A_RAW, B_RAW
        ),
        binary("no header length", model, both, A_RAW, B_RAW, length=""),
        binary("header length is a word", model, both, A_RAW, B_RAW, length="many"),
        binary("header length is negative", model, both, A_RAW, B_RAW, length=-1),
        binary("header length past the body", model, both, A_RAW, B_RAW, length=100000),
        binary("header length beyond 32 bits", model, both, A_RAW, B_RAW, length=2**40),
        binary("header length too small", model, both, A_RAW, B_RAW, length=10),
        binary("raw, but two inputs", model, b"", A_RAW, length=0),
        binary("raw", "linear", b"", A_RAW, length=0),
        binary("raw, wrong size", "linear", b"", A_RAW[:8], length=0),
        binary("raw", "line", b"", b"hello", length=0),
        binary("raw", "text", b"", b"hello", length=0),
        binary("raw", "seen", b"", struct.pack("<i", 5), length=0),
    ]


def http_types() -> list[Case]:
    numbers: dict[str, list[Json]] = {
        "BOOL": [True, False],
        "UINT8": [0, 255],
        "UINT16": [0, 65535],
        "UINT32": [0, 4294967295],
        "UINT64": [0, 18446744073709551615],
        "INT8": [-128, 127],
        "INT16": [-32768, 32767],
        "INT32": [-2147483648, 2147483647],
        "INT64": [-9223372036854775808, 9223372036854775807],
        "FP32": [0.1, 1e20],
        "FP64": [0.1, 1e300],
    }
    cases: list[Case] = [
        infer(f"{t} in JSON", "types", {"inputs": [tensor(f"INPUT_{t}", t, [2], data=data)]})
        for t, data in numbers.items()
    ]
    return [
        *cases,
        infer(
            "several",
            "types",
            {"inputs": [tensor("INPUT_INT8", "INT8", [1], data=[1]), tensor("INPUT_FP64", "FP64", [1], data=[2])]},
        ),
        infer("none", "types", {"inputs": []}),
        infer("FP16 in JSON", "types", {"inputs": [tensor("INPUT_FP16", "FP16", [1], data=[1])]}),
        binary("FP16 in binary, JSON out", "types", {"inputs": [sized("INPUT_FP16", "FP16", [1], 2)]}, b"\x00\x3c"),
        binary(
            "FP16 in binary, binary out",
            "types",
            {
                "inputs": [sized("INPUT_FP16", "FP16", [1], 2)],
                "outputs": [{"name": "OUTPUT_FP16", "parameters": {"binary_data": True}}],
            },
            b"\x00\x3c",
        ),
        infer("BOOL from numbers", "types", {"inputs": [tensor("INPUT_BOOL", "BOOL", [2], data=[1, 0])]}),
        infer("UINT8 too large", "types", {"inputs": [tensor("INPUT_UINT8", "UINT8", [1], data=[300])]}),
        infer("UINT8 negative", "types", {"inputs": [tensor("INPUT_UINT8", "UINT8", [1], data=[-1])]}),
        infer("INT32 with a fraction", "types", {"inputs": [tensor("INPUT_INT32", "INT32", [1], data=[1.5])]}),
        infer("INT32 from a word", "types", {"inputs": [tensor("INPUT_INT32", "INT32", [1], data=["1"])]}),
        infer("INT64 too large", "types", {"inputs": [tensor("INPUT_INT64", "INT64", [1], data=[2**63])]}),
        infer("no elements", "types", {"inputs": [tensor("INPUT_INT32", "INT32", [0], data=[])]}),
        infer("BF16, which the model has not", "types", {"inputs": [tensor("INPUT_FP32", "BF16", [1], data=[1])]}),
        infer("JSON", "text", {"inputs": [tensor("TEXT", "BYTES", [1, 2], data=["abc", "\u00e9\u20ac"])]}),
        infer("two rows", "text", {"inputs": [tensor("TEXT", "BYTES", [2, 2], data=["a", "b", "c", "d"])]}),
        infer("empty strings", "text", {"inputs": [tensor("TEXT", "BYTES", [1, 2], data=["", ""])]}),
        infer("a quote and a newline", "text", {"inputs": [tensor("TEXT", "BYTES", [1, 2], data=['a"b', "c\n\x01d"])]}),
        infer("a number for a string", "text", {"inputs": [tensor("TEXT", "BYTES", [1, 2], data=["a", 1])]}),
        infer("too few strings", "text", {"inputs": [tensor("TEXT", "BYTES", [1, 2], data=["a"])]}),
        binary("binary in", "text", {"inputs": [sized("TEXT", "BYTES", [1, 2], 11)]}, strings(b"abc", b"")),
        binary(
            "binary in and out",
            "text",
            {"inputs": [sized("TEXT", "BYTES", [1, 2], 11)], "parameters": {"binary_data_output": True}},
            strings(b"abc", b""),
        ),
        binary("one string missing", "text", {"inputs": [sized("TEXT", "BYTES", [1, 2], 7)]}, strings(b"abc")),
        binary(
            "one string too many", "text", {"inputs": [sized("TEXT", "BYTES", [1, 2], 15)]}, strings(b"a", b"b", b"c")
        ),
        binary("length cut off", "text", {"inputs": [sized("TEXT", "BYTES", [1, 2], 7)]}, strings(b"a") + b"\x01\x00"),
        binary(
            "string cut off",
            "text",
            {"inputs": [sized("TEXT", "BYTES", [1, 2], 10)]},
            strings(b"a") + b"\x09\x00\x00\x00z",
        ),
        infer("JSON", "auto", {"inputs": [tensor("X", "INT32", [2, 2], data=[1, 2, 3, 4])]}),
        infer("JSON", "reshape", {"inputs": [tensor("X", "FP32", [2, 1], data=[1, 2])]}),
        infer("JSON", "wide", {"inputs": [tensor("X", "INT16", [1, 2, 3], data=[1, 2, 3, 4, 5, 6])]}),
        infer("wrong fixed dimension", "wide", {"inputs": [tensor("X", "INT16", [1, 3, 2], data=[1, 2, 3, 4, 5, 6])]}),
        infer("JSON", "linear", {"inputs": [tensor("x", "FP32", [2, 3], data=[1, 2, 3, 4, 5, 6])]}),
        infer("batch too large", "linear", {"inputs": [tensor("x", "FP32", [5, 3], data=[0] * 15)]}),
    ]


def http_models() -> list[Case]:
    x = {"inputs": [tensor("X", "FP32", [1], data=[1])]}
    cases: list[Case] = [infer("run", name, x) for name in ("raises", "miscount", "not_a_list", "wrong_item")]
    cases += [infer(f"code {n}", "errors", {"inputs": [x_int(n)]}) for n in range(8)]
    return [
        *cases,
        infer("error after an id", "errors", {"id": "e1", "inputs": [x_int(3)]}),
        infer("nothing", "seen", {"inputs": [x_int()]}),
        infer(
            "id and parameters",
            "seen",
            {"id": "r1", "parameters": {"s": "t", "i": -5, "b": True, "d": 0.5}, "inputs": [x_int()]},
        ),
        infer(
            "steering parameters",
            "seen",
            {"parameters": {"priority": 1, "timeout": 5000000, "k": "v"}, "inputs": [x_int()]},
        ),
        infer(
            "sequence",
            "seen",
            {"parameters": {"sequence_id": 42, "sequence_start": True, "sequence_end": True}, "inputs": [x_int()]},
        ),
        infer("sequence id in words", "seen", {"parameters": {"sequence_id": "song"}, "inputs": [x_int()]}),
        infer("one output", "seen", {"inputs": [x_int()], "outputs": [{"name": "SIZE"}]}),
        infer("header that is not forwarded", "seen", {"inputs": [x_int()]}, {"x-colour": "red"}),
        infer("input parameters", "seen", {"inputs": [{**x_int(), "parameters": {"note": "n"}}]}),
    ]


def grpc_infer() -> list[Case]:
    def call(name: str, model: str = "add_sub", **message: Json) -> Grpc:
        return Grpc(f"grpc infer {model}: {name}", "ModelInfer", {"model_name": model, **message})

    def g(name: str, datatype: str, shape: Json, **more: Json) -> dict[str, Json]:
        return tensor(name, datatype, shape, **more)

    a, b = g("INPUT0", "FP32", [1, 3]), g("INPUT1", "FP32", [1, 3])
    raw = [b64(A_RAW), b64(B_RAW)]
    typed = [
        {**a, "contents": {"fp32_contents": [1, 2, 3]}},
        {**b, "contents": {"fp32_contents": [10, 20, 30]}},
    ]
    x = g("X", "INT32", [1])
    x_raw = [b64(struct.pack("<i", 1))]
    both: list[Case] = [
        call("raw", inputs=[a, b], raw_input_contents=raw),
        call("typed", inputs=typed),
        call("id", id="r1", inputs=[a, b], raw_input_contents=raw),
        call("version", model_version="1", inputs=[a, b], raw_input_contents=raw),
        call("one output", inputs=[a, b], outputs=[{"name": "OUTPUT1"}], raw_input_contents=raw),
        call("other order", inputs=[b, a], raw_input_contents=raw),
        call(
            "outputs in the other order",
            inputs=[a, b],
            outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0"}],
            raw_input_contents=raw,
        ),
        call("unknown model", model="nobody", inputs=[a, b], raw_input_contents=raw),
        call("no model", model="", inputs=[a, b], raw_input_contents=raw),
        call("unknown version", model_version="8", inputs=[a, b], raw_input_contents=raw),
        call("version is a word", model_version="new", inputs=[a, b], raw_input_contents=raw),
        call("negative version", model_version="-2", inputs=[a, b], raw_input_contents=raw),
        call("no inputs"),
        call("input missing", inputs=[a], raw_input_contents=raw[:1]),
        call("unknown input", inputs=[a, g("INPUT9", "FP32", [1, 3])], raw_input_contents=raw),
        call("input twice", inputs=[a, a], raw_input_contents=raw),
        call("unknown output", inputs=[a, b], outputs=[{"name": "OUTPUT9"}], raw_input_contents=raw),
        call("output twice", inputs=[a, b], outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}], raw_input_contents=raw),
        call("too few raw", inputs=[a, b], raw_input_contents=raw[:1]),
        call("too many raw", inputs=[a, b], raw_input_contents=[*raw, raw[0]]),
        call("raw too short", inputs=[a, b], raw_input_contents=[b64(A_RAW[:8]), raw[1]]),
        call("raw too long", inputs=[a, b], raw_input_contents=[b64(A_RAW + b"1234"), raw[1]]),
        call("raw empty", inputs=[a, b], raw_input_contents=["", raw[1]]),
        call("raw and typed", inputs=typed, raw_input_contents=raw),
        call("neither raw nor typed", inputs=[a, b]),
        call("typed, wrong field", inputs=[{**a, "contents": {"int_contents": [1, 2, 3]}}, typed[1]]),
        call(
            "typed, two fields", inputs=[{**a, "contents": {"fp32_contents": [1, 2, 3], "int_contents": [1]}}, typed[1]]
        ),
        call("typed, too few", inputs=[{**a, "contents": {"fp32_contents": [1, 2]}}, typed[1]]),
        call("typed, too many", inputs=[{**a, "contents": {"fp32_contents": [1, 2, 3, 4]}}, typed[1]]),
        call("wrong datatype", inputs=[g("INPUT0", "INT32", [1, 3]), b], raw_input_contents=raw),
        call("unknown datatype", inputs=[g("INPUT0", "FLOAT", [1, 3]), b], raw_input_contents=raw),
        call("no datatype", inputs=[g("INPUT0", "", [1, 3]), b], raw_input_contents=raw),
        call("wrong shape", inputs=[g("INPUT0", "FP32", [1, 2]), b], raw_input_contents=[b64(A_RAW[:8]), raw[1]]),
        call("no batch dimension", inputs=[g("INPUT0", "FP32", [3]), b], raw_input_contents=raw),
        call("no shape", inputs=[g("INPUT0", "FP32", []), b], raw_input_contents=raw),
        call("negative size", inputs=[g("INPUT0", "FP32", [1, -1]), b], raw_input_contents=raw),
        call("batches differ", inputs=[g("INPUT0", "FP32", [2, 3]), b], raw_input_contents=[b64(A_RAW * 2), raw[1]]),
        call(
            "batch too large",
            inputs=[g(n, "FP32", [5, 3]) for n in ("INPUT0", "INPUT1")],
            raw_input_contents=[b64(A_RAW * 5)] * 2,
        ),
        call(
            "reserved parameter", inputs=[a, b], raw_input_contents=raw, parameters={"triton_x": {"bool_param": True}}
        ),
        call(
            "priority is negative", inputs=[a, b], raw_input_contents=raw, parameters={"priority": {"int64_param": -1}}
        ),
        call(
            "priority is a word",
            inputs=[a, b],
            raw_input_contents=raw,
            parameters={"priority": {"string_param": "high"}},
        ),
        call(
            "timeout is a word", inputs=[a, b], raw_input_contents=raw, parameters={"timeout": {"string_param": "soon"}}
        ),
        call(
            "sequence_id is a boolean",
            inputs=[a, b],
            raw_input_contents=raw,
            parameters={"sequence_id": {"bool_param": True}},
        ),
        call(
            "sequence_start is a number",
            inputs=[a, b],
            raw_input_contents=raw,
            parameters={"sequence_start": {"int64_param": 1}},
        ),
        call("parameter without value", inputs=[a, b], raw_input_contents=raw, parameters={"empty": {}}),
        call(
            "id and parameters",
            model="seen",
            id="g1",
            inputs=[x],
            raw_input_contents=x_raw,
            parameters={
                "s": {"string_param": "t"},
                "i": {"int64_param": "-5"},
                "b": {"bool_param": True},
                "d": {"double_param": 0.5},
            },
        ),
        call(
            "custom unsigned parameter",
            model="seen",
            inputs=[x],
            raw_input_contents=x_raw,
            parameters={"u": {"uint64_param": "7"}},
        ),
        call("nothing", model="seen", inputs=[x], raw_input_contents=x_raw),
        call(
            "sequence",
            model="seen",
            inputs=[x],
            raw_input_contents=x_raw,
            parameters={"sequence_id": {"int64_param": 9}, "sequence_end": {"bool_param": True}},
        ),
        call("run", model="raises", inputs=[g("X", "FP32", [1])], raw_input_contents=[b64(floats(1))]),
        call("run", model="miscount", inputs=[g("X", "FP32", [1])], raw_input_contents=[b64(floats(1))]),
        call("batch", model="linear", inputs=[g("x", "FP32", [2, 3])], raw_input_contents=[b64(A_RAW + B_RAW)]),
        call("highest", model="versions", inputs=[g("IN", "INT32", [1])], raw_input_contents=x_raw),
        call("one", model="versions", model_version="3", inputs=[g("IN", "INT32", [1])], raw_input_contents=x_raw),
        call("JSON", model="auto", inputs=[g("X", "INT32", [1, 2], contents={"int_contents": [4, 5]})]),
        call("raw", model="text", inputs=[g("TEXT", "BYTES", [1, 2])], raw_input_contents=[b64(strings(b"ab", b"c"))]),
        call(
            "typed",
            model="text",
            inputs=[g("TEXT", "BYTES", [1, 2], contents={"bytes_contents": [b64(b"ab"), b64(b"\xff")]})],
        ),
        call(
            "typed, too few",
            model="text",
            inputs=[g("TEXT", "BYTES", [1, 2], contents={"bytes_contents": [b64(b"ab")]})],
        ),
        call(
            "one string missing",
            model="text",
            inputs=[g("TEXT", "BYTES", [1, 2])],
            raw_input_contents=[b64(strings(b"ab"))],
        ),
        call(
            "one string too many",
            model="text",
            inputs=[g("TEXT", "BYTES", [1, 2])],
            raw_input_contents=[b64(strings(b"a", b"b", b"c"))],
        ),
        call(
            "length cut off",
            model="text",
            inputs=[g("TEXT", "BYTES", [1, 2])],
            raw_input_contents=[b64(strings(b"a") + b"\x01")],
        ),
        call(
            "string cut off",
            model="text",
            inputs=[g("TEXT", "BYTES", [1, 2])],
            raw_input_contents=[b64(strings(b"a") + b"\x09\x00\x00\x00z")],
        ),
    ]
    both += [
        call(f"code {n}", model="errors", inputs=[x], raw_input_contents=[b64(struct.pack("<i", n))]) for n in range(8)
    ]
    contents: dict[str, tuple[str, list[Json]]] = {
        "BOOL": ("bool_contents", [True, False]),
        "UINT8": ("uint_contents", [0, 255]),
        "UINT16": ("uint_contents", [0, 65535]),
        "UINT32": ("uint_contents", [0, 4294967295]),
        "UINT64": ("uint64_contents", ["0", "18446744073709551615"]),
        "INT8": ("int_contents", [-128, 127]),
        "INT16": ("int_contents", [-32768, 32767]),
        "INT32": ("int_contents", [-1, 1]),
        "INT64": ("int64_contents", ["-9223372036854775808", "1"]),
        "FP64": ("fp64_contents", [0.1, -2]),
    }
    for datatype, (where, values) in contents.items():
        both.append(
            call(
                f"typed {datatype}",
                model="types",
                inputs=[g(f"INPUT_{datatype}", datatype, [2], contents={where: values})],
            )
        )
    both.append(
        call("typed FP16", model="types", inputs=[g("INPUT_FP16", "FP16", [1], contents={"fp32_contents": [1]})])
    )
    both.append(
        call("raw FP16", model="types", inputs=[g("INPUT_FP16", "FP16", [1])], raw_input_contents=[b64(b"\x00\x3c")])
    )
    both.append(call("no inputs", model="types"))
    return both


def control() -> list[Case]:
    """Against a server in explicit mode that has loaded `add_sub` alone; the order matters."""
    load, unload, index = "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload", "/v2/repository/index"

    def config(value: str) -> dict[str, Json]:
        return {"parameters": {"config": value}}

    override = json.dumps(
        {
            "name": "counted",
            "backend": "python",
            "max_batch_size": 6,
            "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [2]}],
            "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": ["2"]}],
        }
    )
    return [
        post("explicit: index at the start", index, b""),
        get("explicit: ready at the start", "/v2/health/ready"),
        get("explicit: metadata of a model that is not loaded", "/v2/models/versions"),
        infer("explicit, not loaded", "versions", {"inputs": [tensor("IN", "INT32", [1], data=[1])]}),
        post("explicit: load", load.format("versions"), b""),
        post("explicit: load again", load.format("versions"), b"{}"),
        get("explicit: metadata after the load", "/v2/models/versions"),
        post("explicit: index after the load", index, {"ready": True}),
        post("explicit: load an unknown model", load.format("nobody"), b""),
        post("explicit: load malformed", load.format("counted"), b"{"),
        post("explicit: load, unknown parameter", load.format("counted"), {"parameters": {"colour": "red"}}),
        post("explicit: load, config is no string", load.format("counted"), {"parameters": {"config": {}}}),
        post("explicit: load, config malformed", load.format("counted"), config("{nope")),
        post("explicit: load, config with an unknown field", load.format("counted"), config('{"colour": "red"}')),
        post(
            "explicit: load, file without config",
            load.format("counted"),
            {"parameters": {"file:1/model.py": b64(b"x")}},
        ),
        post("explicit: load with a config", load.format("counted"), config(override)),
        get("explicit: config after the override", "/v2/models/counted/config"),
        infer("explicit, after the override", "counted", {"inputs": [tensor("X", "FP32", [2, 2], data=[1, 2, 3, 4])]}),
        post("explicit: load without the config", load.format("counted"), b""),
        get("explicit: metadata without the override", "/v2/models/counted"),
        post("explicit: load a model that fails", load.format("fails"), b""),
        post("explicit: load bad syntax", load.format("bad_syntax"), b""),
        post("explicit: load bad field", load.format("bad_field"), b""),
        post("explicit: load bad name", load.format("bad_name"), b""),
        post("explicit: load bad dims", load.format("bad_dims"), b""),
        post("explicit: index after failures", index, b""),
        get("explicit: ready after failures", "/v2/health/ready"),
        get("explicit: ready of the failed model", "/v2/models/fails/ready"),
        infer("explicit, failed model", "fails", {"inputs": [tensor("X", "FP32", [1], data=[1])]}),
        post("explicit: unload the failed model", unload.format("fails"), b"", settle=True),
        post("explicit: unload", unload.format("versions"), b"", settle=True),
        post("explicit: unload again", unload.format("versions"), b"", settle=True),
        post("explicit: unload an unknown model", unload.format("nobody"), b""),
        post("explicit: unload malformed", unload.format("counted"), b"["),
        post(
            "explicit: unload, dependents is no boolean",
            unload.format("counted"),
            {"parameters": {"unload_dependents": "yes"}},
        ),
        post(
            "explicit: unload with dependents",
            unload.format("counted"),
            {"parameters": {"unload_dependents": True}},
            settle=True,
        ),
        get("explicit: metadata after the unload", "/v2/models/versions"),
        get("explicit: model ready after the unload", "/v2/models/versions/ready"),
        infer("explicit, after the unload", "versions", {"inputs": [tensor("IN", "INT32", [1], data=[1])]}),
        post("explicit: index after the unload", index, b""),
        Grpc("grpc explicit: load", "RepositoryModelLoad", {"model_name": "auto"}),
        Grpc("grpc explicit: load an unknown model", "RepositoryModelLoad", {"model_name": "nobody"}),
        Grpc("grpc explicit: load no model", "RepositoryModelLoad", {"model_name": ""}),
        Grpc(
            "grpc explicit: load of a named repository",
            "RepositoryModelLoad",
            {"repository_name": "here", "model_name": "auto"},
        ),
        Grpc(
            "grpc explicit: load, unknown parameter",
            "RepositoryModelLoad",
            {"model_name": "auto", "parameters": {"colour": {"string_param": "red"}}},
        ),
        Grpc(
            "grpc explicit: load, config is a number",
            "RepositoryModelLoad",
            {"model_name": "auto", "parameters": {"config": {"int64_param": 3}}},
        ),
        Grpc(
            "grpc explicit: load with a config",
            "RepositoryModelLoad",
            {"model_name": "counted", "parameters": {"config": {"string_param": override}}},
        ),
        Grpc("grpc explicit: config after the override", "ModelConfig", {"name": "counted"}),
        Grpc("grpc explicit: load a model that fails", "RepositoryModelLoad", {"model_name": "fails"}),
        Grpc("grpc explicit: index after failures", "RepositoryIndex"),
        Grpc("grpc explicit: unload", "RepositoryModelUnload", {"model_name": "counted"}, settle=True),
        Grpc(
            "grpc explicit: unload, dependents is a word",
            "RepositoryModelUnload",
            {"model_name": "auto", "parameters": {"unload_dependents": {"string_param": "yes"}}},
        ),
        Grpc("grpc explicit: unload an unknown model", "RepositoryModelUnload", {"model_name": "nobody"}),
        Grpc("grpc explicit: index at the end", "RepositoryIndex", {"ready": True}),
    ]


#: Against a server that loads everything, and one in explicit mode.
NONE: tuple[Case, ...] = tuple(
    health() + metadata() + statistics() + http_json() + http_binary() + http_types() + http_models() + grpc_infer()
)
EXPLICIT: tuple[Case, ...] = tuple(control())
EXPLICIT_FLAGS = ("--model-control-mode=explicit", "--load-model=add_sub")
