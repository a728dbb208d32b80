"""Restricted APIs, header forwarding and a trace file: what flags bring."""

from __future__ import annotations

import struct
from typing import Any

from parity.cases import Case, Grpc, Http, Stream, b64, get, infer, post, tensor, x_int

FLAGS = (
    "--http-restricted-api=model-config,logging:admin-key=secret",
    "--http-restricted-api=statistics:other-key=word",
    "--grpc-restricted-protocol=model-config,logging:admin-key=secret",
    "--grpc-restricted-protocol=statistics:other-key=word",
    "--http-header-forward-pattern=^x-|colou?r|sequence_id|triton",
    "--grpc-header-forward-pattern=^x-|colou?r|sequence_id|triton_z",
    "--trace-config=triton,file=/tmp/conch_parity_trace",
    "--trace-config=rate=1000000",
)
SEEN = {"inputs": [x_int()]}
MESSAGE: dict[str, Any] = {
    "model_name": "seen",
    "inputs": [tensor("X", "INT32", [1])],
    "raw_input_contents": [b64(struct.pack("<i", 1))],
}


def restricted() -> list[Case]:
    key, other = {"admin-key": "secret"}, {"other-key": "word"}
    wire = (("triton-grpc-protocol-admin-key", "secret"),)

    def ask(title: str, rpc: str, metadata: Any = (), **message: Any) -> Case:
        return Grpc(f"grpc restricted: {title}", rpc, message, metadata=metadata)

    return [
        get("restricted: config", "/v2/models/seen/config"),
        get("restricted: config with the key", "/v2/models/seen/config", key),
        get("restricted: config with the key in capitals", "/v2/models/seen/config", {"ADMIN-KEY": "secret"}),
        get("restricted: config with a wrong key", "/v2/models/seen/config", {"admin-key": "Secret"}),
        get("restricted: config with the other key", "/v2/models/seen/config", other),
        get("restricted: config of an unknown model", "/v2/models/nobody/config"),
        get("restricted: config of an unknown model with the key", "/v2/models/nobody/config", key),
        get("restricted: logging", "/v2/logging"),
        get("restricted: logging with the key", "/v2/logging", key),
        post("restricted: change of logging", "/v2/logging", {"log_info": False}),
        get("restricted: statistics", "/v2/models/counted/stats"),
        get("restricted: statistics with the key", "/v2/models/counted/stats", other),
        get("restricted: metadata is free", "/v2/models/seen"),
        get("restricted: wrong path", "/v2/models/seen/configs"),
        Http("http restricted: config by POST", "POST", "/v2/models/seen/config"),
        ask("config", "ModelConfig", name="seen"),
        ask("config with the key", "ModelConfig", wire, name="seen"),
        ask("config with the bare key", "ModelConfig", (("admin-key", "secret"),), name="seen"),
        ask("config with a wrong key", "ModelConfig", (("triton-grpc-protocol-admin-key", "x"),), name="seen"),
        ask("logging", "LogSettings"),
        ask("logging with the key", "LogSettings", wire),
        ask("statistics", "ModelStatistics", name="counted"),
        ask(
            "statistics with the key", "ModelStatistics", (("triton-grpc-protocol-other-key", "word"),), name="counted"
        ),
        ask("metadata is free", "ModelMetadata", name="seen"),
    ]


def forwarded() -> list[Case]:
    headers: dict[str, dict[str, str]] = {
        "one": {"x-user": "ann"},
        "in capitals": {"X-USER": "ann"},
        "mixed case by another part": {"My-Color": "red", "MyColour2": "blue"},
        "that does not match": {"user": "ann"},
        "several": {"x-a": "1", "x-b": "2", "z": "3"},
        "empty": {"x-a": ""},
        "with spaces": {"x-a": "  a b  "},
        "that is reserved": {"sequence_id": "5"},
        "that begins with triton_": {"triton_y": "5"},
        "in latin-1": {"x-a": "\u00e9"},
    }
    body = {"parameters": {"x-user": "body"}, **SEEN}
    cases: list[Case] = [infer(f"header {name}", "seen", SEEN, value) for name, value in headers.items()]
    cases += [
        infer("header and parameter of one name", "seen", body, {"x-user": "header"}),
        infer("header and other parameter", "seen", body, {"x-other": "header"}),
        post("generate seen: headers are not forwarded", "/v2/models/seen/generate", {"X": 1}, {"x-user": "ann"}),
    ]
    for name, metadata in {
        "one": (("x-user", "ann"),),
        "another": (("my-color", "red"), ("user", "ann")),
        "reserved": (("sequence_id", "5"),),
        "triton_": (("triton_z", "5"),),
        "several": (("x-b", "2"), ("x-a", "1")),
        "empty": (("x-a", ""),),
    }.items():
        cases.append(Grpc(f"grpc header {name}", "ModelInfer", MESSAGE, metadata=metadata))
        cases.append(Stream(f"grpc stream header {name}", (MESSAGE,), metadata))
    both = {**MESSAGE, "parameters": {"x-user": {"string_param": "body"}}}
    cases.append(Grpc("grpc header and parameter of one name", "ModelInfer", both, metadata=(("x-user", "header"),)))
    return cases


def traced() -> list[Case]:
    """With a trace file, levels can be switched on. The rate keeps anything from being written."""
    path, model = "/v2/trace/setting", "/v2/models/counted/trace/setting"

    def change(name: str, body: Any, where: str = path) -> Case:
        return post(f"traced: {name}", where, body)

    def call(name: str, model: str = "", **settings: Any) -> Case:
        message = {"settings": {k: {"value": v} for k, v in settings.items()}, "model_name": model}
        return Grpc(f"grpc traced: {name}", "TraceSetting", message)

    return [
        get("traced: all", path),
        change("on", {"trace_level": ["TIMESTAMPS"]}),
        change("two levels", {"trace_level": ["TENSORS", "TIMESTAMPS"]}),
        change("levels in small letters", {"trace_level": ["timestamps"]}),
        change("on and unknown", {"trace_level": ["TIMESTAMPS", "ALL"]}),
        change("on and off", {"trace_level": ["TIMESTAMPS", "OFF"]}),
        change("the same level twice", {"trace_level": ["TIMESTAMPS", "TIMESTAMPS"]}),
        change("rate 0 while on", {"trace_rate": "0"}),
        get("traced: after that", path),
        change("a model's level", {"trace_level": ["TENSORS"]}, model),
        get("traced: of the model", model),
        change("a model off", {"trace_level": ["OFF"]}, model),
        get("traced: of the model when off", model),
        change("a model's level cleared", {"trace_level": None}, model),
        change("file", {"trace_file": "/tmp/x"}),
        change("file cleared", {"trace_file": None}),
        change("level cleared", {"trace_level": None}),
        call("on", trace_level=["TIMESTAMPS"]),
        call("two levels", trace_level=["TENSORS", "TIMESTAMPS"]),
        call("a model's", "counted", trace_level=["TENSORS"]),
        call("a model's cleared", "counted", trace_level=[]),
        call("off", trace_level=["OFF"]),
        call("cleared", trace_level=[]),
    ]


CASES: list[Case] = restricted() + forwarded() + traced()
