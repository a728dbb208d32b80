"""gRPC, more widely: typed contents of every type, and parameters of every kind."""

from __future__ import annotations

import struct
from typing import Any

from parity.cases import Case, Grpc, b64, tensor

X = {"inputs": [tensor("X", "INT32", [1])], "raw_input_contents": [b64(struct.pack("<i", 1))]}

#: By type: the field that it belongs in and values at its borders; then values that do not fit.
CONTENTS: dict[str, tuple[str, list[Any], list[Any]]] = {
    "BOOL": ("bool_contents", [True, False, True], []),
    "UINT8": ("uint_contents", [0, 255, 7], [256, 4294967295]),
    "UINT16": ("uint_contents", [0, 65535, 7], [65536, 70000]),
    "UINT32": ("uint_contents", [0, 4294967295, 7], []),
    "UINT64": ("uint64_contents", ["0", "18446744073709551615", "7"], []),
    "INT8": ("int_contents", [-128, 127, 7], [128, -129, 2147483647]),
    "INT16": ("int_contents", [-32768, 32767, 7], [32768, -40000]),
    "INT32": ("int_contents", [-2147483648, 2147483647, 7], []),
    "INT64": ("int64_contents", ["-9223372036854775808", "9223372036854775807", "7"], []),
    "FP32": ("fp32_contents", [0.1, "Infinity", "-Infinity"], []),
    "FP64": ("fp64_contents", [0.1, 1e300, -0.0], []),
    "STRING": ("bytes_contents", [b64(b""), b64(b"abc"), b64(b"\xff\x00")], []),
}
FIELDS = {
    "bool_contents": True,
    "int_contents": 1,
    "int64_contents": "1",
    "uint_contents": 1,
    "uint64_contents": "1",
    "fp32_contents": 1.0,
    "fp64_contents": 1.0,
    "bytes_contents": b64(b"a"),
}
KINDS: dict[str, Any] = {
    "bool_param": True,
    "int64_param": "5",
    "string_param": "five",
    "double_param": 5.5,
    "uint64_param": "5",
}
NAMES = (
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output", "headers", "own",
    "triton_own", "triton_enable_empty_final_response",
)  # fmt: skip


def typed() -> list[Case]:
    cases: list[Case] = []
    for kind, (where, values, unfit) in CONTENTS.items():
        name = "BYTES" if kind == "STRING" else kind

        def one(title: str, contents: dict[str, Any], size: int, kind: str = kind, name: str = name) -> Grpc:
            message = {
                "model_name": "types",
                "inputs": [tensor(f"INPUT_{kind}", name, [size], contents=contents)],
            }
            return Grpc(f"grpc typed contents: {kind}, {title}", "ModelInfer", message)

        cases += [
            one("at the borders", {where: values}, 3),
            one("too few", {where: values[:2]}, 3),
            one("too many", {where: values}, 2),
            one("none", {where: []}, 0),
        ]
        if unfit:
            cases.append(one("out of range", {where: unfit}, len(unfit)))
        cases += [one(f"in {other}", {other: [value]}, 1) for other, value in FIELDS.items() if other != where]
    return cases


def parameters() -> list[Case]:
    cases: list[Case] = []
    for name in NAMES:
        for kind, value in KINDS.items():
            message = {"model_name": "seen", **X, "parameters": {name: {kind: value}}}
            cases.append(Grpc(f"grpc parameter {name} as {kind}", "ModelInfer", message))
    for name, kind, value in (
        ("sequence_id", "int64_param", "0"),
        ("sequence_id", "int64_param", "-5"),
        ("sequence_id", "string_param", ""),
        ("sequence_id", "string_param", "x" * 200),
        ("priority", "int64_param", "0"),
        ("priority", "uint64_param", "18446744073709551615"),
        ("timeout", "int64_param", "-1"),
        ("timeout", "int64_param", "9223372036854775807"),
        ("own", "string_param", ""),
        ("own", "string_param", "\u00e9"),
        ("own", "double_param", "NaN"),
        ("own", "double_param", 1e300),
        ("", "string_param", "no name"),
    ):
        message = {"model_name": "seen", **X, "parameters": {name: {kind: value}}}
        cases.append(Grpc(f"grpc parameter {name} is {kind} {str(value)[:24]}", "ModelInfer", message))
    return cases


def tensors() -> list[Case]:
    """Parameters of inputs and outputs that mean something, in wrong places and kinds."""

    def call(name: str, **message: Any) -> Grpc:
        return Grpc(f"grpc tensor parameters: {name}", "ModelInfer", {"model_name": "seen", **X, **message})

    def inputs(**parameters: Any) -> dict[str, Any]:
        return {"inputs": [tensor("X", "INT32", [1], parameters=parameters)]}

    def outputs(**parameters: Any) -> dict[str, Any]:
        return {"outputs": [{"name": "SIZE", "parameters": parameters}]}

    region = {"string_param": "nowhere"}
    return [
        call("unknown, of an input", **inputs(note={"string_param": "n"})),
        call("binary_data_size of an input", **inputs(binary_data_size={"int64_param": "4"})),
        call(
            "unknown region of an input",
            **inputs(shared_memory_region=region, shared_memory_byte_size={"int64_param": "4"}),
        ),
        call("region of an input is a number", **inputs(shared_memory_region={"int64_param": "4"})),
        call("region of an input without size", **inputs(shared_memory_region=region)),
        call("offset of an input without region", **inputs(shared_memory_offset={"int64_param": "4"})),
        call("size of an input without region", **inputs(shared_memory_byte_size={"int64_param": "4"})),
        call(
            "size of an input is a word",
            **inputs(shared_memory_region=region, shared_memory_byte_size={"string_param": "4"}),
        ),
        call(
            "unknown region of an output",
            **outputs(shared_memory_region=region, shared_memory_byte_size={"int64_param": "4"}),
        ),
        call("region of an output is a number", **outputs(shared_memory_region={"int64_param": "4"})),
        call("region of an output without size", **outputs(shared_memory_region=region)),
        call("offset of an output without region", **outputs(shared_memory_offset={"int64_param": "4"})),
        call("size of an output without region", **outputs(shared_memory_byte_size={"int64_param": "4"})),
    ]


CASES: list[Case] = typed() + parameters() + tensors()
