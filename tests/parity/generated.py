"""Requests made by chance from a fixed seed: a valid one for some model, with at most one thing wrong with it."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable
from typing import Any

from parity.cases import Case, Grpc, binary, infer, strings

SEED = 20240611
HOW_MANY = 160

PACK = {
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "FP32": "f", "FP64": "d", "BOOL": "?",
}  # fmt: skip
FIELD = {
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents",
}  # fmt: skip
Tensor = dict[str, Any]


def value(chance: random.Random, datatype: str) -> Any:
    if datatype == "BYTES":
        return "".join(chance.choice('abz \u00e9"\\') for _ in range(chance.randrange(5)))
    if datatype == "BOOL":
        return chance.random() < 0.5
    if datatype in ("FP32", "FP64"):
        return chance.choice([0.0, 1.5, -2.25, 1e10, 3.0, -0.5])
    bits = int(datatype.lstrip("UINT"))
    low, high = (0, 2**bits - 1) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return chance.choice([low, high, 0, 1, chance.randint(low, high)])


def some(chance: random.Random, name: str, datatype: str, shape: list[int]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return {"name": name, "datatype": datatype, "shape": shape, "data": [value(chance, datatype) for _ in range(count)]}


def requests(chance: random.Random) -> tuple[str, list[Tensor], list[str]]:
    """A model, its inputs and the names of its outputs."""
    which = chance.choice(["add_sub", "types", "text", "wide", "linear", "classes", "grid"])
    rows = chance.randint(1, 4)
    if which == "add_sub":
        return which, [some(chance, n, "FP32", [rows, 3]) for n in ("INPUT0", "INPUT1")], ["OUTPUT0", "OUTPUT1"]
    if which == "types":
        # One alone, as Triton lists what is missing in the order of a hash map.
        kind = chance.choice([*PACK, "BYTES"])
        suffix = "STRING" if kind == "BYTES" else kind
        return which, [some(chance, f"INPUT_{suffix}", kind, [chance.randint(1, 5)])], [f"OUTPUT_{suffix}"]
    if which == "text":
        return which, [some(chance, "TEXT", "BYTES", [rows, 2])], ["UPPER"]
    if which == "wide":
        return which, [some(chance, "X", "INT16", [rows, 2, chance.randint(1, 4)])], ["Y"]
    if which == "linear":
        return which, [some(chance, "x", "FP32", [rows, 3])], ["y"]
    if which == "grid":
        return which, [some(chance, "X", "INT8", [chance.randint(1, 3), chance.randint(1, 3)])], ["Y"]
    return which, [some(chance, "X", "FP32", [rows, 4])], ["SCORES", "WHOLE"]


def flaws() -> dict[str, Callable[[random.Random, Tensor], Any]]:
    """What may be wrong with one tensor."""
    return {
        "nothing": lambda c, t: None,
        "also nothing": lambda c, t: None,
        "still nothing": lambda c, t: None,
        "name": lambda c, t: t.update(name=t["name"].lower() + "_"),
        "datatype": lambda c, t: t.update(datatype="FP16" if t["datatype"] != "BYTES" else "INT64"),
        "unknown datatype": lambda c, t: t.update(datatype=c.choice(["", "STRING", "FLOAT32", "TYPE_FP32", "int8"])),
        "one dimension more": lambda c, t: t.update(shape=[*t["shape"], 1]),
        "one dimension less": lambda c, t: t.update(shape=t["shape"][1:], data=t["data"][: _count(t["shape"][1:])]),
        "element missing": lambda c, t: t.update(data=t["data"][:-1]),
        "element too many": lambda c, t: t.update(data=[*t["data"], *t["data"][:1]]),
        "last size": lambda c, t: t.update(
            shape=[*t["shape"][:-1], t["shape"][-1] + 1], data=t["data"] + t["data"][: _count(t["shape"][:-1])]
        ),
        "negative size": lambda c, t: t.update(shape=[*t["shape"][:-1], -1]),
        "zero size": lambda c, t: t.update(shape=[*t["shape"][:-1], 0], data=[]),
    }


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def raw(tensor: Tensor) -> bytes:
    """The bytes of `data`, by the type that it was made for."""
    data = tensor["data"]
    kind = tensor["kind"]
    if kind == "BYTES":
        return strings(*(v.encode() for v in data))
    return struct.pack(f"<{len(data)}{PACK[kind]}", *data)


def make(number: int, chance: random.Random) -> Case:
    model, inputs, outputs = requests(chance)
    for each in inputs:
        each["kind"] = each["datatype"]
    flaw = chance.choice(list(flaws()))
    # Triton names the first bad input by a hash map's order: with one input there is no doubt.
    flaws()[flaw](chance, inputs[-1])
    wanted = chance.choice([[], outputs, outputs[::-1], outputs[:1]])
    if len(outputs) > 1 and model == "classes":
        wanted = wanted or outputs
    name = f"generated {number}, {flaw}"
    more: dict[str, Any] = {"id": chance.choice(["x", "7", "a b"])} if chance.random() < 0.5 else {}
    return chance.choice([as_json, as_binary, as_raw, as_typed])(name, model, inputs, wanted, more)


def plain(tensor: Tensor) -> Tensor:
    return {key: tensor[key] for key in ("name", "datatype", "shape")}


def as_json(name: str, model: str, inputs: list[Tensor], outputs: list[str], more: dict[str, Any]) -> Case:
    body = {**more, "inputs": [{**plain(t), "data": t["data"]} for t in inputs]}
    return infer(f"{name} (JSON)", model, {**body, "outputs": [{"name": n} for n in outputs]} if outputs else body)


def as_binary(name: str, model: str, inputs: list[Tensor], outputs: list[str], more: dict[str, Any]) -> Case:
    blobs = [raw(t) for t in inputs]
    described = [
        {**plain(t), "parameters": {"binary_data_size": len(b)}} for t, b in zip(inputs, blobs, strict=True)
    ]  # fmt: skip
    body = {**more, "inputs": described, "parameters": {"binary_data_output": True}}
    wanted = [{"name": n, "parameters": {"binary_data": True}} for n in outputs]
    return binary(f"{name} (binary)", model, {**body, "outputs": wanted} if wanted else body, *blobs)


def as_raw(name: str, model: str, inputs: list[Tensor], outputs: list[str], more: dict[str, Any]) -> Case:
    message = {
        "model_name": model,
        **more,
        "inputs": [plain(t) for t in inputs],
        "outputs": [{"name": n} for n in outputs],
        "raw_input_contents": [base64.b64encode(raw(t)).decode() for t in inputs],
    }
    return Grpc(f"grpc {name} (raw)", "ModelInfer", message)


def as_typed(name: str, model: str, inputs: list[Tensor], outputs: list[str], more: dict[str, Any]) -> Case:
    def contents(tensor: Tensor) -> dict[str, Any]:
        data = tensor["data"]
        if tensor["kind"] == "BYTES":
            data = [base64.b64encode(v.encode()).decode() for v in data]
        return {FIELD[tensor["kind"]]: data}

    message = {
        "model_name": model,
        **more,
        "inputs": [{**plain(t), "contents": contents(t)} for t in inputs],
        "outputs": [{"name": n} for n in outputs],
    }
    return Grpc(f"grpc {name} (typed)", "ModelInfer", message)


def all_cases() -> list[Case]:
    chance = random.Random(SEED)
    return [make(number, chance) for number in range(HOW_MANY)]


CASES: list[Case] = all_cases()
