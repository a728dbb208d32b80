"""Conversations over ModelStreamInfer."""

from __future__ import annotations

import struct
from typing import Any

from parity.cases import A_RAW, B_RAW, Case, Grpc, Stream, b64, floats, tensor

Message = dict[str, Any]
EMPTY_FINAL = {"triton_enable_empty_final_response": {"bool_param": True}}


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def add(id: str = "", **more: Any) -> Message:
    both = [tensor("INPUT0", "FP32", [1, 3]), tensor("INPUT1", "FP32", [1, 3])]
    return {
        "model_name": "add_sub",
        "id": id,
        "inputs": both,
        "raw_input_contents": [b64(A_RAW), b64(B_RAW)],
        "outputs": [{"name": "OUTPUT0"}],
        **more,
    }


def repeat(*values: int, id: str = "", last: bool | None = None, **more: Any) -> Message:
    inputs, raw = [tensor("IN", "INT32", [len(values)])], [b64(ints(*values))]
    if last is not None:
        inputs.append(tensor("LAST", "BOOL", [1]))
        raw.append(b64(bytes([last])))
    return {"model_name": "repeat", "id": id, "inputs": inputs, "raw_input_contents": raw, **more}


def seen(id: str = "", **parameters: Any) -> Message:
    return {
        "model_name": "seen",
        "id": id,
        "inputs": [tensor("X", "INT32", [1])],
        "raw_input_contents": [b64(ints(1))],
        "parameters": parameters,
    }


def errors(code: int, id: str = "") -> Message:
    return {
        "model_name": "errors",
        "id": id,
        "inputs": [tensor("X", "INT32", [1])],
        "raw_input_contents": [b64(ints(code))],
    }


def plain() -> list[Case]:
    def talk(name: str, *messages: Message, **more: Any) -> Stream:
        return Stream(f"grpc stream {name}", messages, **more)

    return [
        talk("of nothing"),
        talk("of one", add()),
        talk("with an id", add("a")),
        talk("of three, in order", add("1"), add("2"), add("3")),
        talk("of three without ids", add(), seen(), add()),
        talk("of two models", add("1"), seen("2"), add("3")),
        talk(
            "with typed contents",
            {
                "model_name": "types",
                "id": "t",
                "inputs": [tensor("INPUT_INT8", "INT8", [2], contents={"int_contents": [1, -2]})],
            },
        ),
        talk("with a version", {**add("v"), "model_version": "1"}),
        talk("with an unknown version", {**add("v"), "model_version": "9"}),
        talk("with a bad version", {**add("v"), "model_version": "new"}),
        talk(
            "with all parameters", seen("p", s={"string_param": "t"}, i={"int64_param": "-5"}, b={"bool_param": True})
        ),
        talk("with an empty final wished", add("e", parameters=EMPTY_FINAL)),
        talk(
            "with an empty final of the wrong kind",
            add("e", parameters={"triton_enable_empty_final_response": {"int64_param": "1"}}),
        ),
        talk("with a reserved parameter", add("e", parameters={"triton_other": {"bool_param": True}})),
        talk("with an unknown model", {**add("u"), "model_name": "nobody"}),
        talk("with no model", {"id": "u"}),
        talk("with an error between", add("1"), {**add("2"), "model_name": "nobody"}, add("3")),
        talk(
            "with a bad tensor", add("1", inputs=[tensor("INPUT0", "INT32", [1, 3])], raw_input_contents=[b64(A_RAW)])
        ),
        talk("with no inputs", add("1", inputs=[], raw_input_contents=[])),
        talk("with an unknown output", add("1", outputs=[{"name": "NONE"}])),
        talk("with an unknown parameter kind", seen("1", u={"uint64_param": "3"})),
        talk(
            "with classification",
            {
                "model_name": "classes",
                "id": "c",
                "inputs": [tensor("X", "FP32", [1, 4])],
                "raw_input_contents": [b64(floats(1, 3, 2, 0))],
                "outputs": [{"name": "SCORES", "parameters": {"classification": {"int64_param": "2"}}}],
            },
        ),
        *(talk(f"with the model's error {code}", errors(code, "x")) for code in range(8)),
        talk(
            "with an exception",
            {
                **add("x"),
                "model_name": "raises",
                "outputs": [],
                "inputs": [tensor("X", "FP32", [1])],
                "raw_input_contents": [b64(floats(1))],
            },
        ),
        talk("with errors and answers", errors(2, "1"), add("2"), errors(3, "3"), add("4")),
        talk("compressed", add("z"), add("y"), compression="gzip"),
        talk("of many", *(add(str(n)) for n in range(40))),
    ]


def decoupled() -> list[Case]:
    def talk(name: str, *messages: Message, **more: Any) -> Stream:
        return Stream(f"grpc decoupled {name}", messages, **more)

    wish = {"parameters": EMPTY_FINAL}
    return [
        talk("of three", repeat(5, 6, 7, id="a")),
        talk("of three, final with the last", repeat(5, 6, 7, id="a", last=True)),
        talk("of three, empty final wished", repeat(5, 6, 7, id="a", **wish)),
        talk("final with the last, empty final wished", repeat(5, 6, id="a", last=True, **wish)),
        talk("of none", repeat(id="n")),
        talk("of none, empty final wished", repeat(id="n", **wish)),
        talk("of none without id, empty final wished", repeat(**wish)),
        talk("of none with a version, empty final wished", repeat(id="n", model_version="1", **wish)),
        talk(
            "empty final not wished",
            repeat(1, parameters={"triton_enable_empty_final_response": {"bool_param": False}}),
        ),
        talk("of one", repeat(9)),
        talk("of one output", repeat(9, 8, outputs=[{"name": "IDX"}])),
        talk("of many", repeat(*range(60), id="m", **wish)),
        talk("error alone", repeat(-1, id="e")),
        talk("error alone, final with it", repeat(-1, id="e", last=True)),
        talk("error alone, empty final wished", repeat(-1, id="e", **wish)),
        talk("error in the middle", repeat(1, -2, 3, id="e")),
        talk("error in the middle, empty final wished", repeat(1, -2, 3, id="e", **wish)),
        talk("two requests", repeat(1, 2, id="a", **wish), repeat(3, 4, 5, id="b", **wish), by_id=True),
        talk("and not", repeat(1, 2, id="a", **wish), add("b"), repeat(3, id="c"), seen("d"), by_id=True),
        talk("and refused", repeat(1, id="a"), repeat(2, id="b", model_version="7"), repeat(3, id="c"), by_id=True),
        talk("ten requests", *(repeat(*range(n), id=str(n), **wish) for n in range(10)), by_id=True),
        talk("input missing", {"model_name": "repeat", "id": "i"}),
        talk("wrong type", {**repeat(1, id="i"), "inputs": [tensor("IN", "FP32", [1])]}),
        talk(
            "classification",
            repeat(3, 4, id="k", outputs=[{"name": "OUT", "parameters": {"classification": {"int64_param": "1"}}}]),
        ),
        Grpc("grpc decoupled by ModelInfer", "ModelInfer", repeat(1)),
        Grpc("grpc empty final by ModelInfer", "ModelInfer", add("u", parameters=EMPTY_FINAL)),
    ]


def grpc_errors() -> list[Case]:
    """With `triton_grpc_error: true` the first error ends the stream with its status."""
    asked = (("triton_grpc_error", "true"),)

    def talk(name: str, *messages: Message, metadata: Any = asked) -> Stream:
        return Stream(f"grpc stream, errors as status: {name}", messages, metadata)

    return [
        talk("no error", add("1")),
        talk("unknown model", {**add("1"), "model_name": "nobody"}),
        talk("bad tensor", add("1", inputs=[])),
        *(talk(f"the model's error {code}", errors(code, "x")) for code in (0, 2, 3, 4, 5, 6)),
        talk("an error alone", repeat(-1, id="e", last=True)),
        talk("an error after answers", repeat(1, 2, -3, id="e", last=True)),
        talk("false", {**add("1"), "model_name": "nobody"}, metadata=(("triton_grpc_error", "false"),)),
        talk("TRUE", {**add("1"), "model_name": "nobody"}, metadata=(("triton_grpc_error", "TRUE"),)),
        talk("1", {**add("1"), "model_name": "nobody"}, metadata=(("triton_grpc_error", "1"),)),
    ]


CASES: list[Case] = plain() + decoupled() + grpc_errors()
