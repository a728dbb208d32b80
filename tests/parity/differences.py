"""Where Conch answers otherwise than the recorded Triton (2.51) on purpose, and why.

Conch follows the newest Triton where releases differ, and does better where Triton's behaviour is plainly a defect.
Each entry says which cases it concerns and turns Triton's answer into ours, so it holds word for word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parity.models import PYTHON_MODELS

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
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
]
STATUSES = {"0": 400, "1": 500, "2": 404, "3": 400, "4": 503, "5": 501, "6": 400, "7": 400}
#: What the model `seen` saw of a request with these parameters and nothing else.
SEEN = '{"correlation_id": 0, "flags": 0, "id": "", "outputs": ["SEEN", "SIZE"], "parameters": %s, "timeout": 0}'
#: What adding A and B gives, whichever way they came.
ADDED = {
    "status": 200,
    "headers": {"Content-Type": "application/json"},
    "body": {
        "model_name": "add_sub",
        "model_version": "1",
        "outputs": [
            {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 3], "data": [11.0, 22.0, 33.5]},
            {"name": "OUTPUT1", "datatype": "FP32", "shape": [1, 3], "data": [-9.0, -18.0, -27.5]},
        ],
    },
}


def status(code: int) -> Callable[[Answer], Answer]:
    return lambda golden: {**golden, "status": code}


def becomes(answer: Answer) -> Callable[[Answer], Answer]:
    """Our answer, whatever Triton's is."""
    return lambda golden: answer


def output(model: str, name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> Answer:
    """An inference with this one output in JSON."""
    tensor = {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
    body = {"model_name": model, "model_version": "1", "outputs": [tensor]}
    return {"status": 200, "headers": {"Content-Type": "application/json"}, "body": body}


def text_of(pattern: str, ours: str) -> Callable[[Answer], Answer]:
    """The answer with `pattern` replaced wherever it stands in its JSON form."""
    return lambda golden: json.loads(re.sub(pattern, ours, json.dumps(golden)))


def encoded(golden: Answer) -> Answer:
    return {**golden, "headers": {**golden["headers"], "Content-Encoding": "gzip"}}


def plain(golden: Answer) -> Answer:
    return {**golden, "headers": {k: v for k, v in golden["headers"].items() if k != "Content-Encoding"}}


def _reserved(name: str) -> Callable[[Answer], Answer]:
    """The refusal of a header, in the form of the call."""
    message = f"Header '{name}' is reserved for Triton usage and cannot be forwarded."

    def change(golden: Answer) -> Answer:
        if "status" in golden:
            return http(400, message)(golden)
        if "replies" in golden:
            return {"code": "OK", "replies": [{"error_message": message, "infer_response": {}}]}
        return grpc("INVALID_ARGUMENT", message)(golden)

    return change


def _undecodable(kind: str, why: str) -> Callable[[Answer], Answer]:
    return http(400, f"failed to decompress the {kind} request body: {why}")


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
            "http infer add_sub: generated 112, one dimension less (binary)",
        ),
        error("input 'INPUT0'", "input 'INPUT1'"),
    ),
    Difference(
        "too few elements",
        f"{NEWEST}: its text tells too few from too many",
        re.compile(r"http infer (add_sub: too few elements|\w+: generated \d+, element missing \(JSON\))"),
        http(500, "Failed to parse 'data' field: shape does not match true shape"),
        when=lambda golden: "true shape" in golden["body"].get("error", ""),
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
        re.compile(r"http infer \w+: raw(,| request).*"),
        lambda golden: error("'raw_input'", "'x'" if "'linear'" in golden["body"]["error"] else "'X'")(golden),
        when=lambda golden: "'raw_input'" in golden["body"].get("error", ""),
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
        (
            "http infer text: string cut off",
            "grpc infer text: string cut off",
            "http infer text: memory, strings cut off",
        ),
        error("^incomplete string data for inference input 'TEXT'", rf"{UNKNOWN_ID}\g<0> for model 'text'"),
    ),
    Difference(
        "failures in a Python model name the instance",
        f"{NEWEST}: its text goes before the old one, which stays whole",
        re.compile(
            r"(http|grpc) infer (raises|miscount|not_a_list|wrong_item): run|grpc stream with an exception|"
            r"http generate(_stream)? raises: an exception"
        ),
        text_of(r"Failed to process the request\(s\) for model '(\w+)', message: ", _INSTANCE),
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
    Difference(
        "FP16 may be JSON",
        "nothing speaks against it",
        ("http infer types: FP16 in JSON", "http infer types: FP16 in binary, JSON out"),
        becomes(output("types", "OUTPUT_FP16", "FP16", [1.0])),
    ),
    Difference(
        "FP16 may be generated",
        "as above",
        ("http generate types: FP16",),
        lambda golden: {
            "status": 200,
            "headers": golden["headers"],
            "body": {"OUTPUT_FP16": 1.5, "model_name": "types", "model_version": "1"},
        },
    ),
    Difference(
        "FP16 may be streamed",
        "as above",
        ("http generate_stream types: FP16",),
        becomes(
            {
                "status": 200,
                "headers": {"Content-Type": "text/event-stream; charset=utf-8"},
                "text": 'data: {"OUTPUT_FP16":1.5,"model_name":"types","model_version":"1"}\n\n',
            }
        ),
    ),
    Difference(
        "a type that the model has not is refused as such",
        "asking for binary data would not help",
        ("http infer types: generated 150, datatype (JSON)",),
        http(
            400, "[request id: a b] inference input 'INPUT_FP32' data-type is 'FP16', but model 'types' expects 'FP32'"
        ),
    ),
    Difference(
        "more classes than fit in 32 bits are all classes",
        "Triton cuts the number off: 2^33 is 0 and means no classification",
        ("http infer classes: classify 8589934592 classes",),
        becomes(
            output(
                "classes",
                "SCORES",
                "BYTES",
                ["2.000000:1:dog", "0.500000:3", "0.250000:0:cat", "-1.500000:2:the quick: \u00e9 fox"],
                [1, 4],
            )
        ),
    ),
    *(
        Difference(
            f"a header length of {value}",
            "digits alone are a length",
            (f"http infer linear: header length {value}",),
            http(400, f"Unable to parse Inference-Header-Content-Length, got: {value}"),
        )
        for value in ("+0", "0x0")
    ),
    Difference(
        "an object among a tensor's data holds base64",
        "an extension of ours; anything else is still refused",
        ("http generate chat: an object for a tensor",),
        http(400, 'an object among the data of input \'text_input\' must be {"b64": "<base64 text>"}'),
    ),
    Difference(
        "an unsigned integer stays one",
        "Triton makes a double of what is beyond 63 bits",
        ("http generate chat: a huge integer parameter",),
        text_of(r"9\.223372036854776e\+18", "9223372036854775808"),
    ),
    *(
        Difference(
            f"generate gives an error of kind {code} its status",
            f"{NEWEST}; the recorded release says 400 to everything",
            (f"http generate errors: error {code}", f"http generate_stream errors: error {code}"),
            status(STATUSES[code]),
            when=lambda golden: golden["status"] == 400,
        )
        for code in ("1", "2", "4", "5")
    ),
    Difference(
        "generate gives a failed model its status",
        "as above",
        re.compile("http generate(_stream)? (raises: an exception|repeat: input missing)"),
        status(500),
    ),
    Difference(
        "generate gives a decoupled model's error its status",
        "as above",
        re.compile("http generate(_stream)? repeat: an error (alone|first).*"),
        status(404),
        when=lambda golden: golden["status"] == 400,
    ),
    Difference(
        "of two members of one name the last counts",
        "as most readers of JSON have it, and as it is in every other body; Triton takes both",
        ("http generate chat: a name twice",),
        lambda golden: {
            "status": 200,
            "headers": golden["headers"],
            "body": {"model_name": "chat", "model_version": "1", "seen": "{}", "text_output": "b"},
        },
    ),
    Difference(
        "of two parameters of one name the last counts",
        "as above; Triton hands on both, and the model sees the first",
        ("http generate chat: a parameter twice",),
        text_of(r"(k\W+)1", r"\g<1>2"),
    ),
    Difference(
        "a generate body may be compressed",
        "as every other body; this one is not, whatever its header says",
        ("http generate chat: gzip said", "http generate_stream chat: gzip said"),
        _undecodable("gzip", "incorrect header check"),
    ),
    *(
        Difference(
            f"a body that cannot be decompressed: {case}",
            "Triton goes on with nothing, or with what it has",
            (f"http infer add_sub: {case}",),
            _undecodable(kind, why),
        )
        for case, kind, why in (
            ("deflate body without zlib's head", "deflate", "incorrect header check"),
            ("gzip said, plain sent", "gzip", "incorrect header check"),
            ("deflate said, plain sent", "deflate", "incorrect header check"),
            ("gzip body cut off", "gzip", "it is cut off"),
            ("gzip body with bytes behind", "gzip", "incorrect header check"),
        )
    ),
    *(
        Difference(title, reason, (f"http infer add_sub: {case}",), becomes(ADDED))
        for case, title, reason in (
            ("empty encoding", "an empty encoding is none", "a header without value says nothing"),
            ("GZIP in capitals", "encodings have no case", "RFC 9110, 8.4.1"),
            ("x-gzip", "x-gzip is gzip", "RFC 9110, 8.4.1.3"),
            ("two gzip members", "gzip has members", "RFC 1952, 2.2"),
        )
    ),
    Difference(
        "a compressed empty body is an empty body",
        f"{NEWEST}; only a header length of 0 makes a raw request",
        ("http infer add_sub: gzip of nothing",),
        http(500, "failed to parse the request JSON buffer: The document is empty. at 0"),
    ),
    Difference(
        "every body may be compressed",
        "Triton decompresses those of infer alone and takes the others for broken JSON",
        ("http index, gzip",),
        lambda golden: {
            "status": 200,
            "headers": golden["headers"],
            "body": [
                {"name": name, "version": version, "state": "READY"}
                for name in sorted([*PYTHON_MODELS, "linear", "versions"])
                for version in (("1", "3", "10") if name == "versions" else ("1",))
            ],
        },
    ),
    Difference(
        "what a client accepts has no case and may have blanks",
        "RFC 9110, 12.5.3",
        re.compile("http infer counted: accept '(GZIP|gzip; q=1.0|gzip ; q=1)'"),
        encoded,
    ),
    Difference(
        "a weight is at most 1",
        "RFC 9110, 12.4.2: what cannot be read is not accepted",
        ("http infer counted: accept 'gzip;q=2'",),
        plain,
    ),
    Difference(
        "an unknown type is named as such",
        "one text, however the data come",
        re.compile(r"http infer \w+: generated \d+, unknown datatype \(binary\)"),
        lambda golden: http(400, "invalid datatype for input " + golden["body"]["error"].split("'")[1])(golden),
    ),
    *(
        Difference(
            f"{name} is no unsigned number",
            "Triton reads as much as it can and wraps around",
            (case,),
            http(400, message) if case.startswith("http") else grpc("INVALID_ARGUMENT", message),
        )
        for name, case, message in (
            ("-3", "http trace: rate is negative", "Unable to parse 'trace_rate', got: -3"),
            ("5x", "http trace: rate with a tail", "Unable to parse 'trace_rate', got: 5x"),
            ("-1", "http trace: log frequency is negative", "Unable to parse 'log_frequency', got: -1"),
            ("-3 over gRPC", "grpc trace: rate is negative", "Unable to parse 'trace_rate', got: -3"),
        )
    ),
    Difference(
        "a level beyond 32 bits is refused",
        "Triton cuts it off",
        ("http log: verbose is huge",),
        http(500, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
    ),
    Difference(
        "a header's value ends where its text ends",
        "RFC 9112, 5.1: blanks around it are not part of it",
        ("http infer seen: header with spaces", "http infer seen: header empty"),
        text_of(r'(a b)?  ?\\"\}', r'\1\\"}'),
    ),
    *(
        Difference(
            f"the header {name} is not forwarded",
            NEWEST,
            cases,
            _reserved(name),
        )
        for name, cases in {
            "sequence_id": (
                "http infer seen: header that is reserved",
                "grpc header reserved",
                "grpc stream header reserved",
            ),
            "triton_y": ("http infer seen: header that begins with triton_",),
            "triton_z": ("grpc header triton_", "grpc stream header triton_"),
        }.items()
    ),
    *(
        Difference(f"a key cannot be {name}", NEWEST, (f"http memory: register, {case}",), http(400, message))
        for name, case, message in (
            (
                "slashes alone",
                "a key of slashes",
                "cannot register shared memory region 'bad' - invalid shm key '//'",
            ),
            (
                "one of the backend's",
                "a reserved key",
                "cannot register shared memory region 'bad' with key '/triton_python_backend_shm_region_x' "  # noqa: ISC004
                "as the key contains the reserved prefix 'triton_python_backend_shm_region_'",
            ),
        )
    ),
    Difference(
        "a key may be registered twice",
        "Triton reuses the number of a file that it has closed",
        ("http memory: register a key again",),
        becomes({"status": 200, "headers": {"Content-Type": "application/json"}}),
    ),
    Difference(
        "an offset may be any",
        "Triton maps from the offset on, which works for whole pages alone",
        ("http memory: register with an offset within a page",),
        becomes({"status": 200, "headers": {"Content-Type": "application/json"}}),
    ),
    Difference(
        "a header that is no UTF-8",
        "Triton hands its bytes to the model, where they raise; here what cannot be read is marked",
        ("http infer seen: header in latin-1",),
        lambda golden: {
            "status": 200,
            "headers": golden["headers"],
            "body": {
                "model_name": "seen",
                "model_version": "1",
                "outputs": [
                    {"name": "SEEN", "datatype": "BYTES", "shape": [1], "data": [SEEN % '{"x-a": "\\ufffd"}']},
                    {"name": "SIZE", "datatype": "INT32", "shape": [1], "data": [7]},
                ],
            },
        },
    ),
)
