"""Trace and log settings over both protocols, without a trace file. The order matters: settings stay."""

from __future__ import annotations

from typing import Any

from parity.cases import Case, Grpc, get, post

GLOBAL, MODEL = "/v2/trace/setting", "/v2/models/seen/trace/setting"


def trace_http() -> list[Case]:
    def change(name: str, body: Any, path: str = GLOBAL) -> Case:
        return post(f"trace: {name}", path, body)

    return [
        get("trace: all", GLOBAL),
        get("trace: of a model", MODEL),
        get("trace: of an unknown model", "/v2/models/nobody/trace/setting"),
        get("trace: of a version", "/v2/models/seen/versions/1/trace/setting"),
        change("an empty body", b""),
        change("nothing", {}),
        change("malformed", b"{"),
        change("an array", []),
        change("rate", {"trace_rate": "50"}),
        get("trace: of a model that follows", MODEL),
        change("rate is a number", {"trace_rate": 50}),
        change("rate is a word", {"trace_rate": "often"}),
        change("rate is negative", {"trace_rate": "-3"}),
        change("rate after that", {"trace_rate": "50"}),
        change("rate is too large", {"trace_rate": "99999999999999999999999"}),
        change("rate is empty", {"trace_rate": ""}),
        change("rate with a tail", {"trace_rate": "5x"}),
        change("rate 0", {"trace_rate": "0"}),
        change("count", {"trace_count": "12"}),
        change("count -1", {"trace_count": "-1"}),
        change("count -2", {"trace_count": "-2"}),
        change("count is a word", {"trace_count": "x"}),
        change("log frequency", {"log_frequency": "7"}),
        change("log frequency is a word", {"log_frequency": "x"}),
        change("log frequency is negative", {"log_frequency": "-1"}),
        change("log frequency after that", {"log_frequency": "7"}),
        change("level off", {"trace_level": ["OFF"]}),
        change("level off and on", {"trace_level": ["OFF", "TIMESTAMPS"]}),
        change("level is a word", {"trace_level": "OFF"}),
        change("level of numbers", {"trace_level": [1]}),
        change("level is empty", {"trace_level": []}),
        change("level is unknown", {"trace_level": ["EVERYTHING"]}),
        change("level on without a file", {"trace_level": ["TIMESTAMPS"]}),
        change("levels on without a file", {"trace_level": ["TIMESTAMPS", "TENSORS"]}),
        change("off again", {"trace_level": ["OFF"]}),
        change("file", {"trace_file": "/tmp/x"}),
        change("mode", {"trace_mode": "opentelemetry"}),
        change("unknown setting", {"colour": "red"}),
        change("several", {"trace_rate": "3", "trace_count": "4", "log_frequency": "5"}),
        get("trace: after several", GLOBAL),
        change("a model's rate", {"trace_rate": "9"}, MODEL),
        change("everybody's rate", {"trace_rate": "70"}),
        get("trace: of the model with its own rate", MODEL),
        change("a model's rate cleared", {"trace_rate": None}, MODEL),
        change("a model's everything", {"trace_rate": "1", "trace_count": "2", "log_frequency": "3"}, MODEL),
        change("a model's everything cleared",
               {"trace_level": None, "trace_rate": None, "trace_count": None, "log_frequency": None}, MODEL),
        change("everything cleared",
               {"trace_level": None, "trace_rate": None, "trace_count": None, "log_frequency": None}),
        change("an unknown model's", {"trace_rate": "9"}, "/v2/models/nobody/trace/setting"),
        get("trace: at the end", GLOBAL),
    ]  # fmt: skip


def trace_grpc() -> list[Case]:
    def change(name: str, model: str = "", **settings: Any) -> Case:
        message: dict[str, Any] = {"settings": {k: {"value": v} for k, v in settings.items()}}
        return Grpc(f"grpc trace: {name}", "TraceSetting", {**message, "model_name": model})

    return [
        change("all"),
        change("of a model", "seen"),
        change("of an unknown model", "nobody"),
        change("rate", trace_rate=["50"]),
        change("rate is a word", trace_rate=["often"]),
        change("rate is negative", trace_rate=["-3"]),
        change("rate after that", trace_rate=["50"]),
        change("two rates", trace_rate=["1", "2"]),
        change("two counts", trace_count=["1", "2"]),
        change("two frequencies", log_frequency=["1", "2"]),
        change("count", trace_count=["12"]),
        change("count -2", trace_count=["-2"]),
        change("count is a word", trace_count=["x"]),
        change("log frequency", log_frequency=["7"]),
        change("log frequency is a word", log_frequency=["x"]),
        change("level off", trace_level=["OFF"]),
        change("level off and on", trace_level=["OFF", "TIMESTAMPS"]),
        change("level is unknown", trace_level=["EVERYTHING"]),
        change("level on without a file", trace_level=["TIMESTAMPS"]),
        change("off again", trace_level=["OFF"]),
        change("file", trace_file=["/tmp/x"]),
        change("file cleared", trace_file=[]),
        change("unknown setting", colour=["red"]),
        change("a model's rate", "seen", trace_rate=["9"]),
        change("everybody's rate", trace_rate=["70"]),
        change("of the model with its own rate", "seen"),
        change("a model's rate cleared", "seen", trace_rate=[]),
        change("everything cleared", trace_level=[], trace_rate=[], trace_count=[], log_frequency=[]),
        change("an unknown model's", "nobody", trace_rate=["9"]),
        change("at the end"),
    ]


def log_http() -> list[Case]:
    path = "/v2/logging"

    def change(name: str, body: Any) -> Case:
        return post(f"log: {name}", path, body)

    return [
        get("log: all", path),
        change("an empty body", b""),
        change("nothing", {}),
        change("malformed", b"{"),
        change("an array", []),
        change("info off", {"log_info": False}),
        change("info on", {"log_info": True}),
        change("info is a word", {"log_info": "no"}),
        change("info is a number", {"log_info": 1}),
        change("info is null", {"log_info": None}),
        change("warning off", {"log_warning": False}),
        change("error off", {"log_error": False}),
        change("both on", {"log_warning": True, "log_error": True}),
        change("verbose", {"log_verbose_level": 1}),
        change("verbose off", {"log_verbose_level": 0}),
        change("verbose is negative", {"log_verbose_level": -1}),
        change("verbose is a word", {"log_verbose_level": "1"}),
        change("verbose is a boolean", {"log_verbose_level": True}),
        change("verbose is a fraction", {"log_verbose_level": 0.5}),
        change("verbose is huge", {"log_verbose_level": 2**32}),
        change("format", {"log_format": "ISO8601"}),
        change("format default", {"log_format": "default"}),
        change("format is unknown", {"log_format": "xml"}),
        change("format is a number", {"log_format": 1}),
        change("file", {"log_file": "/tmp/x"}),
        change("file is null", {"log_file": None}),
        change("unknown setting", {"colour": "red"}),
        change("several", {"log_info": True, "log_verbose_level": 0, "log_format": "default"}),
        change("right and wrong", {"log_info": False, "log_format": "xml"}),
        change("as before", {"log_info": True}),
        get("log: at the end", path),
        get("log: of a model", "/v2/models/seen/logging"),
    ]


def log_grpc() -> list[Case]:
    def change(name: str, **settings: Any) -> Case:
        return Grpc(f"grpc log: {name}", "LogSettings", {"settings": settings})

    return [
        change("all"),
        change("info off", log_info={"bool_param": False}),
        change("info on", log_info={"bool_param": True}),
        change("info is a word", log_info={"string_param": "no"}),
        change("info is a number", log_info={"uint32_param": 1}),
        change("info is nothing", log_info={}),
        change("warning is a word", log_warning={"string_param": "no"}),
        change("error is a word", log_error={"string_param": "no"}),
        change("verbose", log_verbose_level={"uint32_param": 1}),
        change("verbose off", log_verbose_level={"uint32_param": 0}),
        change("verbose is a word", log_verbose_level={"string_param": "1"}),
        change("verbose is a boolean", log_verbose_level={"bool_param": True}),
        change("format", log_format={"string_param": "ISO8601"}),
        change("format default", log_format={"string_param": "default"}),
        change("format is unknown", log_format={"string_param": "xml"}),
        change("format is a number", log_format={"uint32_param": 1}),
        change("file", log_file={"string_param": "/tmp/x"}),
        change("unknown setting", colour={"string_param": "red"}),
        change("at the end"),
    ]


CASES: list[Case] = trace_http() + trace_grpc() + log_http() + log_grpc()
