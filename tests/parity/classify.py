"""Classification: the largest values of an output as text, over both protocols; and raw requests of every shape."""

from __future__ import annotations

import struct
from typing import Any

from parity.cases import Case, Grpc, b64, binary, floats, infer, tensor

X = [0.25, 2.0, -1.5, 0.5]
TIES = [1.0, 3.0, 3.0, 1.0]


def asked(output: str, k: Any, values: list[float] = X, rows: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "inputs": [tensor("X", "FP32", [rows, 4], data=values)],
        "outputs": [{"name": output, "parameters": {"classification": k, **more}}],
    }


def call(name: str, output: str, parameters: dict[str, Any], values: list[float] = X, rows: int = 1) -> Grpc:
    message = {
        "model_name": "classes",
        "inputs": [tensor("X", "FP32", [rows, 4])],
        "outputs": [{"name": output, "parameters": parameters}],
        "raw_input_contents": [b64(floats(*values))],
    }
    return Grpc(f"grpc classify {name}", "ModelInfer", message)


def http_classes() -> list[Case]:
    bodies: dict[str, Any] = {f"the best {k}": asked("SCORES", k) for k in (1, 2, 4, 5, 100)}
    bodies |= {f"{k!r} classes": asked("SCORES", k) for k in (0, -1, "2", 1.5, True, None, 2**33)}
    bodies |= {f"type of {name}": asked(name, 3) for name in ("WHOLE", "TINY", "DOUBLE", "GRID")}
    bodies |= {f"type of {name}, which has no classes": asked(name, 2) for name in ("HALF", "FLAG")}
    bodies["ties"] = asked("SCORES", 4, TIES)
    bodies["two rows"] = asked("SCORES", 2, X + TIES, rows=2)
    bodies["two rows of grids"] = asked("GRID", 3, X + TIES, rows=2)
    bodies["large and small values"] = asked("SCORES", 4, [1e20, 1e-20, -1e20, 123456.789])
    bodies["infinities"] = asked("SCORES", 4, [float("inf"), 1.0, float("-inf"), 2.0])
    bodies["doubles"] = asked("DOUBLE", 4, [0.1, 1e15, -0.0, 1e-7])
    bodies["and binary data"] = asked("SCORES", 2, binary_data=True)
    bodies["and JSON data"] = asked("SCORES", 2, binary_data=False)
    bodies["and binary by default"] = {**asked("SCORES", 2), "parameters": {"binary_data_output": True}}
    bodies["beside a plain output"] = {
        **asked("SCORES", 2),
        "outputs": [{"name": "WHOLE"}, {"name": "SCORES", "parameters": {"classification": 1}}],
    }
    bodies["and shared memory"] = asked("SCORES", 2, shared_memory_region="r", shared_memory_byte_size=4)
    return [infer(f"classify {name}", "classes", body) for name, body in bodies.items()]


def http_kinds() -> list[Case]:
    """Every type of the identity model, which has no batch dimension and no labels."""
    values: dict[str, list[Any]] = {
        "UINT8": [3, 255, 0],
        "UINT16": [3, 65535, 0],
        "UINT32": [3, 4294967295, 0],
        "UINT64": [3, 18446744073709551615, 0],
        "INT8": [3, -128, 127],
        "INT16": [3, -32768, 0],
        "INT32": [3, -1, 0],
        "INT64": [3, -9223372036854775808, 9223372036854775807],
        "FP32": [0.1, 0.30000001, 0.2],
        "FP64": [0.1, 0.30000000000000004, 0.3],
        "BOOL": [True, False, True],
    }
    return [
        infer(
            f"classify {kind}",
            "types",
            {
                "inputs": [tensor(f"INPUT_{kind}", kind, [3], data=data)],
                "outputs": [{"name": f"OUTPUT_{kind}", "parameters": {"classification": 2}}],
            },
        )
        for kind, data in values.items()
    ]


def grpc_classes() -> list[Case]:
    cases: list[Case] = [
        call(f"the best {k}", "SCORES", {"classification": {"int64_param": str(k)}}) for k in (1, 3, 4, 50, 0, -2)
    ]
    kinds: dict[str, Any] = {"string_param": "2", "bool_param": True, "double_param": 2.0, "uint64_param": "2"}
    cases += [call(f"count as {kind}", "SCORES", {"classification": {kind: v}}) for kind, v in kinds.items()]
    cases += [
        call(f"type of {name}", name, {"classification": {"int64_param": "2"}})
        for name in ("WHOLE", "TINY", "DOUBLE", "GRID", "HALF", "FLAG")
    ]
    two = {"classification": {"int64_param": "2"}}
    return [
        *cases,
        call("ties", "SCORES", two, TIES),
        call("two rows", "SCORES", two, X + TIES, rows=2),
        call("and shared memory", "SCORES", {**two, "shared_memory_region": {"string_param": "r"}}),
        call("binary_data means nothing here", "SCORES", {"binary_data": {"bool_param": False}}),
        call("unknown parameter of an output", "SCORES", {"colour": {"string_param": "red"}}),
    ]


def raw_requests() -> list[Case]:
    """The whole body is the one input."""
    return [
        binary("raw request", "classes", b"", floats(*X), length=0),
        binary("raw request, two rows", "classes", b"", floats(*X, *X), length=0),
        binary("raw request, too short", "classes", b"", floats(*X[:3]), length=0),
        binary("raw request, nothing", "classes", b"", length=0),
        binary("raw request, open size", "counted", b"", floats(*X), length=0),
        binary("raw request, open size, odd bytes", "counted", b"", floats(*X) + b"x", length=0),
        binary("raw request, open size, nothing", "counted", b"", length=0),
        binary("raw request, open behind a fixed one", "wide", b"", struct.pack("<6h", *range(6)), length=0),
        binary("raw request, not divisible", "wide", b"", struct.pack("<5h", *range(5)), length=0),
        binary("raw request, two open sizes", "grid", b"", b"123456", length=0),
        binary("raw request, reshaped", "reshape", b"", floats(7), length=0),
        binary("raw request, batching without config", "auto", b"", struct.pack("<2i", 1, 2), length=0),
        binary("raw request, empty string", "line", b"", length=0),
        binary("raw request, bytes of any kind", "line", b"", b"\x00\xffab", length=0),
        binary("raw request, several inputs", "types", b"", b"1234", length=0),
        binary("raw request, model that is not there", "nobody", b"", b"1234", length=0),
        binary("raw request, decoupled", "repeat", b"", b"1234", length=0),
        binary("raw request to versions", "versions", b"", struct.pack("<i", 1), length=0),
        infer("header length 00", "linear", floats(1, 2, 3), {"Inference-Header-Content-Length": "00"}),
        infer("header length +0", "linear", floats(1, 2, 3), {"Inference-Header-Content-Length": "+0"}),
        infer("header length 0x0", "linear", floats(1, 2, 3), {"Inference-Header-Content-Length": "0x0"}),
    ]


CASES: list[Case] = http_classes() + http_kinds() + grpc_classes() + raw_requests()
