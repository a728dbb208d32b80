"""Where Conch answers otherwise than the recorded Triton (2.51) on purpose, and why.

Conch follows the newest Triton where releases differ, and does better where Triton's behaviour is plainly a defect.
Each entry says which cases it concerns and turns Triton's answer into ours, so it holds word for word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """`cases` are names, or one pattern that matches names in full; `change` gives our answer from Triton's."""

    title: str
    reason: str
    cases: tuple[str, ...] | re.Pattern[str]
    change: Callable[[Answer], Answer]
    #: Narrows a pattern to the answers that it is about.
    when: Callable[[Answer], bool] = lambda answer: True

    def concerns(self, mode: str, name: str, golden: Answer) -> bool:
        named = self.cases.fullmatch(name) if isinstance(self.cases, re.Pattern) else name in self.cases
        return bool(named) and self.when(golden)

    def apply(self, golden: Answer) -> Answer:
        return self.change(golden)


def http(status: int, error: str, content_type: str = "application/json") -> Callable[[Answer], Answer]:
    """Our answer is this refusal."""
    return lambda golden: {"status": status, "headers": {"Content-Type": content_type}, "body": {"error": error}}


def grpc(code: str, message: str) -> Callable[[Answer], Answer]:
    return lambda golden: {"code": code, "message": message}


def fields(**values: Any) -> Callable[[Answer], Answer]:
    """Our answer has these values in its body (HTTP) or message (gRPC); members keep their place, new ones follow."""

    def change(golden: Answer) -> Answer:
        where = "body" if "status" in golden else "message"
        return {**golden, where: {**golden[where], **values}}

    return change


def error(pattern: str, ours: str) -> Callable[[Answer], Answer]:
    """Triton's error text with `pattern` replaced; all else is the same."""

    def change(golden: Answer) -> Answer:
        if "status" in golden:
            return {**golden, "body": {"error": re.sub(pattern, ours, golden["body"]["error"])}}
        return {**golden, "message": re.sub(pattern, ours, golden["message"])}

    return change


def _typed_as_json(golden: Answer) -> Answer:
    return {**golden, "headers": {**golden["headers"], "Content-Type": "application/json"}}


def _error_typed_as_text(golden: Answer) -> bool:
    """An HTTP error with a body that Triton calls text/plain (to HEAD the body is only announced)."""
    headers = golden.get("headers", {})
    return headers.get("Content-Type") == "text/plain" and ("body" in golden or golden["status"] == 405)


def _onnx_config(golden: Answer) -> Answer:
    config = golden["body"] if "status" in golden else golden["message"]["config"]
    values = {"platform": "onnxruntime_onnx", "backend": "onnxruntime", "default_model_filename": "model.onnx"}
    # `platform` is the second field of the message; protobuf leaves it out where it is empty.
    ours = {"name": config["name"], "platform": "", **config} | values
    return {**golden, "body": ours} if "status" in golden else {**golden, "message": {"config": ours}}


def _config_reasons(golden: Answer) -> Answer:
    """The index with the reasons of the models whose config.pbtxt cannot be used."""
    reasons = {
        "bad_field": "Invalid argument: failed to read text proto from <repository>/bad_field/config.pbtxt:5:1: "
        "unknown field 'no_such_field' in ModelConfig",
        "bad_name": "Invalid argument: unexpected directory name 'bad_name' for model 'other', "
        "directory name must equal model name",
        "bad_syntax": "Invalid argument: failed to read text proto from <repository>/bad_syntax/config.pbtxt:2:53: "
        "expected '}', found the end of the text",
    }

    def explain(lines: list[Any]) -> list[Any]:
        return [
            {**line, "state": "UNAVAILABLE", "reason": reasons[line["name"]]} if line["name"] in reasons else line
            for line in lines
        ]

    if "status" in golden:
        return {**golden, "body": explain(golden["body"])}
    return {**golden, "message": {"models": explain(golden["message"]["models"])}}


def _unloaded(golden: Answer) -> Answer:
    lines = [{**line, "reason": "unloaded"} if line["name"] == "fails" else line for line in golden["body"]]
    return {**golden, "body": lines}


_INSTANCE = r"Failed to process the request(s) for model instance '\1', message: \g<0>"
NEWEST = "the newest Triton says so"
UNKNOWN_ID = "[request id: <id_unknown>] "
EXTENSIONS = [
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
]

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "errors are typed as JSON",
        "the body is JSON; Triton calls it text/plain wherever its handler had not come to name a type yet",
        re.compile("http .*"),
        _typed_as_json,
        when=_error_typed_as_text,
    ),
    Difference(
        "extensions name what is there",
        "a client that reads an extension's name may use it",
        ("http server metadata", "grpc server metadata"),
        fields(extensions=EXTENSIONS),
    ),
    Difference(
        "an ONNX model is an ONNX model",
        "the recorded Triton has no ONNX backend and got an equal Python model",
        ("http config linear", "grpc config linear"),
        _onnx_config,
    ),
    Difference(
        "an ONNX model's platform",
        "as above",
        ("http metadata linear", "grpc metadata linear"),
        fields(platform="onnxruntime_onnx"),
    ),
    *(
        Difference(
            f"{name} is not found", f"{NEWEST}: 404 and NOT_FOUND with the text of other look-ups", (name,), change
        )
        for name, change in {
            "http model ready, unknown model": http(404, "Request for unknown model: 'nobody' is not found"),
            "http model ready, unknown version": http(
                404, "Request for unknown model: 'add_sub' version 7 is not found"
            ),
            "grpc model ready, unknown model": grpc("NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
            "grpc model ready, unknown version": grpc(
                "NOT_FOUND", "Request for unknown model: 'add_sub' version 7 is not found"
            ),
            "http explicit: ready of the failed model": http(
                404, "Request for unknown model: 'fails' has no available versions"
            ),
            "http explicit: model ready after the unload": http(
                404, "Request for unknown model: 'versions' has no available versions"
            ),
        }.items()
    ),
    Difference(
        "unknown methods are named",
        "an empty message helps nobody",
        ("grpc unknown method",),
        grpc("UNIMPLEMENTED", "there is no method /inference.GRPCInferenceService/NoSuchMethod"),
    ),
    Difference(
        "unknown services are named",
        "an empty message helps nobody",
        ("grpc unknown service",),
        grpc("UNIMPLEMENTED", "there is no method /grpc.health.v2.Health/Check"),
    ),
    Difference(
        "a version is all digits",
        "'3x' is a mistake of the client; Triton reads the 3 and drops the x",
        ("grpc metadata, bad version",),
        grpc(
            "INVALID_ARGUMENT",
            "failed to get model version from specified version string '3x' (details: stol), version should be an "
            "integral value > 0",
        ),
    ),
    Difference(
        "the index says what was wrong",
        NEWEST,
        ("http index, ready is no boolean",),
        http(400, "Invalid value for 'ready': expected a boolean"),
    ),
    Difference(
        "an empty body is no raw request",
        f"{NEWEST}; only a header length of 0 makes a raw request",
        ("http infer add_sub: empty body",),
        http(500, "failed to parse the request JSON buffer: The document is empty. at 0"),
    ),
    Difference(
        "an id is UTF-8",
        "Triton sends the bytes back inside its JSON, which no client can then parse",
        ("http infer add_sub: invalid UTF-8",),
        http(500, "Unable to parse 'id': Invalid encoding in string."),
    ),
    Difference(
        "the first bad shape is named",
        "Triton names the one that its hash map comes to first",
        ("http infer add_sub: no batch dimension", "http infer add_sub: batch of nothing"),
        error("input 'INPUT1'", "input 'INPUT0'"),
    ),
    Difference(
        "the input that differs is named",
        "batch sizes are held against the first input's; Triton holds them against its hash map's first",
        (
            "http infer add_sub: batches differ",
            "grpc infer add_sub: batches differ",
            "grpc infer add_sub: no batch dimension",
        ),
        error("input 'INPUT0'", "input 'INPUT1'"),
    ),
    Difference(
        "too few elements",
        f"{NEWEST}: its text tells too few from too many",
        ("http infer add_sub: too few elements",),
        http(500, "Failed to parse 'data' field: shape does not match true shape"),
    ),
    Difference(
        "inputs are listed as sent",
        "Triton lists them in the order of a hash map and closes an empty list without opening it",
        ("http infer add_sub: input too many",),
        error(
            r"\['INPUT2','INPUT1','INPUT0'\], but missing required input\(s\) \]",
            "['INPUT0','INPUT1','INPUT2'], but missing required input(s) []",
        ),
    ),
    Difference(
        "an output asked for twice is refused over HTTP",
        NEWEST,
        ("http infer add_sub: output twice",),
        http(400, UNKNOWN_ID + "output 'OUTPUT0' already exists in request"),
    ),
    Difference(
        "an output asked for twice is refused over gRPC",
        NEWEST,
        ("grpc infer add_sub: output twice",),
        grpc("INVALID_ARGUMENT", UNKNOWN_ID + "output 'OUTPUT0' already exists in request"),
    ),
    *(
        Difference(
            f"a header length of {name}",
            f"{NEWEST}; the recorded release takes it for 0",
            (f"http infer add_sub: {case}",),
            http(400, f"Unable to parse Inference-Header-Content-Length, {text}"),
        )
        for name, case, text in (
            ("nothing", "no header length", "got: "),
            ("letters", "header length is a word", "got: many"),
            (
                "41 bits",
                "header length beyond 32 bits",
                "value is out of range [ -2147483648, 2147483647 ], got: 1099511627776",
            ),
        )
    ),
    Difference(
        "a raw request's input has its own name",
        "'raw_input' is not the name of any input",
        ("http infer linear: raw, wrong size",),
        error("'raw_input'", "'x'"),
    ),
    Difference(
        "the type is checked first",
        "the model has no BF16 input, so asking for binary data would not help",
        ("http infer types: BF16, which the model has not",),
        http(400, UNKNOWN_ID + "inference input 'INPUT_FP32' data-type is 'BF16', but model 'types' expects 'FP32'"),
    ),
    Difference(
        "a string that is cut off is found before the model runs",
        f"{NEWEST}: one bad request does not spoil a batch",
        ("http infer text: string cut off", "grpc infer text: string cut off"),
        error("^incomplete string data for inference input 'TEXT'", rf"{UNKNOWN_ID}\g<0> for model 'text'"),
    ),
    Difference(
        "failures in a Python model name the instance",
        f"{NEWEST}: its text goes before the old one, which stays whole",
        re.compile(r"(http|grpc) infer (raises|miscount|not_a_list|wrong_item): run"),
        error(r"^Failed to process the request\(s\) for model '(\w+)', message: ", _INSTANCE),
    ),
    Difference(
        "more raw contents than inputs",
        "a request that cannot be meant is refused, not half read",
        ("grpc infer add_sub: too many raw",),
        grpc("INVALID_ARGUMENT", "expected 2 raw_input_contents for model 'add_sub', one per input, got 3"),
    ),
    *(
        Difference(name, NEWEST, (f"http explicit: load, {name}",), http(400, text))
        for name, text in {
            "config malformed": "Invalid config override: not JSON: JSON is malformed: object keys must be strings "
            "(byte 1)",
            "config with an unknown field": "Invalid config override: no such field: 'colour'",
            "file without config": "Load parameter 'config' must be specified for model file override",
        }.items()
    ),
    Difference(
        "a model without a name cannot be loaded",
        NEWEST,
        ("grpc explicit: load no model",),
        grpc("INVALID_ARGUMENT", "Model name cannot be empty. Please enter a valid name to deploy."),
    ),
    Difference(
        "the index tells why a config cannot be used",
        "Triton leaves it in the log",
        (
            "http explicit: index after failures",
            "http explicit: index after the unload",
            "grpc explicit: index after failures",
        ),
        _config_reasons,
    ),
    Difference(
        "a failed model that is unloaded is unloaded",
        f"{NEWEST}: it no longer holds back readiness",
        ("http explicit: index after the unload",),
        _unloaded,
    ),
    Difference(
        "an unload's body is read",
        "Triton unloads whatever the body says",
        ("http explicit: unload malformed",),
        http(500, "failed to parse the request JSON buffer: Invalid value. at 1"),
    ),
    Difference(
        "an unload's parameters are read",
        "as above",
        ("http explicit: unload, dependents is no boolean",),
        http(500, "attempt to access JSON non-boolean as boolean"),
    ),
)
