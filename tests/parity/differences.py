"""Where Conch answers otherwise than the recorded Triton (2.51) on purpose, and why.

Conch follows the newest Triton where releases differ, and does better where Triton's behaviour is plainly a defect.
Each entry says which cases it concerns and turns Triton's answer into ours, so it holds word for word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


def _replace(*pairs: tuple[str, str]) -> Callable[[Answer], Answer]:
    """Other words, wherever they stand."""

    def change(golden: Answer) -> Answer:
        text = json.dumps(golden)
        for theirs, ours in pairs:
            text = text.replace(json.dumps(theirs)[1:-1], json.dumps(ours)[1:-1])
        answer: Answer = json.loads(text)
        return answer

    return change


def grpc(code: str, message: str) -> Callable[[Answer], Answer]:
    return lambda golden: {"code": code, "message": message}


def _summed(total: int) -> Callable[[Answer], Answer]:
    """The model `summed` of parity.reloads answers."""
    output = {"name": "Y", "datatype": "INT32", "shape": [1], "data": [total]}
    body = {"model_name": "summed", "model_version": "1", "outputs": [output]}
    return lambda golden: {**golden, "status": 200, "body": body}


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


def _kept(golden: Answer, *, y: tuple[list[int], list[float]] | None, n: list[int] | None) -> Answer:
    """An answer of the models with a response cache: Y's shape and values, N's values; None for an output left out."""
    outputs: list[Any] = []
    if y is not None:
        outputs.append({"name": "Y", "datatype": "FP32", "shape": y[0], "data": y[1]})
    if n is not None:
        outputs.append({"name": "N", "datatype": "INT32", "shape": [len(n), 1], "data": n})
    return {**golden, "body": {**golden["body"], "outputs": outputs}}


def _failures_not_kept(golden: Answer) -> Answer:
    """Statistics after a value, a hit and two errors that were both executed."""
    (stats,) = golden["body"]["model_stats"]
    counts = {"success": 2, "fail": 2, "queue": 2, "cache_hit": 1, "cache_miss": 1}
    times = {name: {"count": counts.get(name, 1), "ns": "<ns>"} for name in stats["inference_stats"]}
    three = {name: {"count": 3, "ns": "<ns>"} for name in ("compute_input", "compute_infer", "compute_output")}
    ours = {"inference_count": 1, "execution_count": 3, "inference_stats": times}
    ours["batch_stats"] = [{"batch_size": 1, **three}]
    return {**golden, "body": {"model_stats": [{**stats, **ours}]}}


def _reasons_of_caches(golden: Answer) -> Answer:
    text = "Invalid argument: Response Cache does not currently support model {} {}. Please disable the response cache."
    why = {"kept_sequence": "with sequence batching scheduler", "kept_decoupled": "with 'decoupled' transaction policy"}
    lines = [
        {**line, "state": "UNAVAILABLE", "reason": text.format(line["name"], why[line["name"]])}
        if line["name"] in why
        else line
        for line in golden["body"]
    ]
    return {**golden, "body": lines}


def _outputs_reversed(golden: Answer) -> Answer:
    """The outputs of an answer, and of each answer of a stream, the other way round."""
    if "body" in golden:
        return {**golden, "body": {**golden["body"], "outputs": golden["body"]["outputs"][::-1]}}
    turned: list[Any] = []
    for reply in golden["replies"]:
        response = dict(reply["infer_response"])
        for name in ("outputs", "raw_output_contents"):
            if name in response:
                response[name] = response[name][::-1]
        turned.append({**reply, "infer_response": response})
    return {**golden, "replies": turned}


def _of_both(name: str, value: float) -> Answer:
    """What the ensemble `both` says of one of its outputs."""
    answer = output("both", name, "FP32", [value], [1, 1])
    body = answer["body"]
    parameters = {"sequence_end": False, "sequence_id": 0, "sequence_start": False}
    ours = {"model_name": "both", "model_version": "1", "parameters": parameters, "outputs": body["outputs"]}
    return {**answer, "body": ours}


def _with_inflight_limit(golden: Answer) -> Answer:
    config = golden["body"]
    steps = {**config["ensemble_scheduling"], "max_inflight_requests": 0}
    return {**golden, "body": {**config, "ensemble_scheduling": steps}}


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


def _slow_sequence(total: int, flags: int, golden: Answer) -> Answer:
    seen = json.dumps({"flags": flags, "id": 1, "ready": True, "rows": 1})
    outputs = [
        {"name": "SUM", "datatype": "INT32", "shape": [1, 1], "data": [total]},
        {"name": "SEEN", "datatype": "BYTES", "shape": [1, 1], "data": [seen]},
    ]
    body = {"model_name": "slow", "model_version": "1", "outputs": outputs}
    return {"status": 200, "headers": golden["headers"], "body": body}


#: What the model saw of a sequence that is one request long and named `ann`.
SHORT_NAME = json.dumps(
    {"CORRID": ["object", [1, 1], "b'ann'"], "END": ["bool", [1, 1], "True"], "READY": ["bool", [1, 1], "True"],
     "START": ["bool", [1, 1], "True"], "flags": 3, "id": "ann", "ready": True, "rows": 1}
)  # fmt: skip


def _cold(golden: Answer) -> Answer:
    """Statistics of a model that has not been asked yet."""
    (model,) = golden["body"]["model_stats"]
    counts = {name: {**each, "count": 0} for name, each in model["inference_stats"].items()}
    none = {"last_inference": 0, "inference_count": 0, "execution_count": 0, "batch_stats": []}
    return {**golden, "body": {"model_stats": [{**model, **none, "inference_stats": counts}]}}


#: Models that a polled repository has got, and that cannot be understood.
MISTAKEN = {
    "empty": "Invalid argument: Invalid model name: Could not determine backend for model 'empty' with no backend in "
    "model configuration. Expected model name of the form 'model.<backend_name>'.",
    "mistaken": "Invalid argument: failed to read text proto from <repository>/one/mistaken/config.pbtxt:1:9: "
    "expected a text in quotes, found the end of the line",
}
#: Why the newest files of models do not serve.
OLDER = {
    "edited": "Internal: SyntaxError: invalid syntax (model.py, line 1)",
    "shrunk": "Invalid argument: at least one version must be available under the version policy of model 'shrunk'",
    "touched": "Invalid argument: failed to read text proto from <repository>/one/touched/config.pbtxt:6:1: unknown "
    "field 'colour' in ModelConfig",
}


def _with_mistakes(golden: Answer) -> Answer:
    lines = [
        line if "state" in line else {**line, "state": "UNAVAILABLE", "reason": MISTAKEN[line["name"]]}
        for line in golden["body"]
    ]
    return {**golden, "body": lines}


def _mistakes_unavailable(golden: Answer) -> Answer:
    return {"states": [[name, version, state or "UNAVAILABLE"] for name, version, state in golden["states"]]}


def _with_failures(golden: Answer) -> Answer:
    lines = [
        {**line, "reason": f"load of a newer one failed: {OLDER[line['name']]}"} if line["name"] in OLDER else line
        for line in _with_mistakes(golden)["body"]
    ]
    return {**golden, "body": lines}


#: The head of the refusal of a load.
_GIVEN = "load failed for model 'given': version 1 is at UNAVAILABLE state: Internal: "


def _without_versions(name: str) -> Callable[[Answer], Answer]:
    """The index after a load of this model whose version policy chose nothing."""
    why = f"at least one version must be available under the version policy of model '{name}'"
    reason = {"reason": f"load of a newer one failed: Invalid argument: {why}"}
    return lambda golden: {
        **golden,
        "body": [
            {**line, **reason} if (line["name"], line.get("state")) == (name, "READY") else line
            for line in golden["body"]
        ],
    }


def _ready_alone(golden: Answer) -> Answer:
    return {**golden, "body": [line for line in golden["body"] if line["state"] == "READY"]}


def _asked_once(golden: Answer) -> Answer:
    """Statistics of a model that has answered one request."""
    (model,) = golden["body"]["model_stats"]
    one = {"count": 1, "ns": "<ns>"}
    asked = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    counts = {name: one if name in asked else each for name, each in model["inference_stats"].items()}
    batch = {"batch_size": 1, "compute_input": one, "compute_infer": one, "compute_output": one}
    some = {"last_inference": "<ms>", "inference_count": 1, "execution_count": 1, "batch_stats": [batch]}
    return {**golden, "body": {"model_stats": [{**model, **some, "inference_stats": counts}]}}


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "what a full queue refuses is counted",
        "as REJECTED, like what times out in it: Triton's page does not show that clients are turned away",
        ("queue: full, each level by itself",),
        lambda golden: {**golden, "counted": {**golden["counted"], "request_failure REJECTED": 2}},
    ),
    Difference(
        "errors are typed as JSON",
        "the body is JSON; Triton calls it text/plain wherever its handler had not come to name a type yet",
        re.compile("http .*"),
        _typed_as_json,
        when=_error_typed_as_text,
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
            r"http generate(_stream)? raises: an exception|http infer raising: plain|http infer again_too: .*"
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
    Difference(
        "the index says why a model may have no cache",
        "as of every other config that cannot be used; Triton says so in its log alone",
        ("http cache: index",),
        _reasons_of_caches,
    ),
    *(
        Difference(
            f"the cache tells apart: {case}",
            "Triton's key has names and bytes of the inputs alone, so it gives the answer of another question",
            (f"http infer {model}: cache: {case}",),
            partial(_kept, y=y, n=n),
        )
        for model, case, y, n in (
            ("kept_batched", "one output", ([1, 2], [40.0, 42.0]), None),
            ("kept_batched", "the other output", None, [3]),
            ("kept_batched", "a parameter", ([1, 2], [40.0, 42.0]), [4]),
            ("kept_batched", "all outputs, asked then", ([1, 1], [44.0]), [6]),
            ("kept_shapes", "the same bytes in another shape", ([4, 1], [18.0] * 4), [2] * 4),
        )
    ),
    Difference(
        "an empty output can be kept",
        "Triton fails to insert it",
        ("http infer kept_empty: cache: empty again",),
        partial(_kept, y=([1, 0], []), n=[1]),
    ),
    Difference(
        "errors are not kept",
        "Triton keeps an error as an answer without outputs, and counts it as a success",
        ("http infer kept_failing: cache: the error again",),
        http(500, "it is negative"),
    ),
    Difference(
        "errors are counted as failures",
        "as above",
        ("http cache: statistics with an error",),
        _failures_not_kept,
    ),
    Difference(
        "a sequence named by a string, where the model takes numbers",
        "the recorded release gives the model the string's bytes as a number; the newest refuses",
        re.compile(r"http infer direct: string .*for a number"),
        http(
            400,
            "[request id: <id_unknown>] sequence batching control 'CORRID' data-type is 'BYTES', but model 'direct' "
            "expects 'UINT64'",
        ),
        lambda golden: golden.get("body", {}).get("id") is None,
    ),
    Difference(
        "a sequence named by a string, where the model takes numbers, with a request id",
        "as above",
        ("http infer direct: string id for a number, with an id",),
        http(
            400,
            "[request id: r] sequence batching control 'CORRID' data-type is 'BYTES', but model 'direct' expects "
            "'UINT64'",
        ),
    ),
    Difference(
        "a sequence named by a string, where the model takes 32 bits",
        "as above",
        ("http infer oldest: string id for 32 bits",),
        http(
            400,
            "[request id: <id_unknown>] sequence batching control 'CORRID' data-type is 'BYTES', but model 'oldest' "
            "expects 'INT32'",
        ),
    ),
    Difference(
        "a sequence named by a number, where the model takes strings",
        "as above",
        ("http infer strings: number for a string",),
        http(
            400,
            "[request id: <id_unknown>] sequence batching control 'CORRID' data-type is 'UINT64', but model 'strings' "
            "expects 'BYTES'",
        ),
    ),
    *(
        Difference(
            f"a sequence that is executed is not idle: {case}",
            "Triton counts from the last request, so a slow execution ends the sequence that it is part of",
            (f"http infer slow: {case}",),
            partial(_slow_sequence, total, flags),
        )
        for case, total, flags in (("next", 3, 0), ("end", 6, 2))
    ),
    Difference(
        "names of sequences may be short",
        "the recorded release pads the control tensor of a name below 128 characters with bytes that it then refuses",
        ("http infer strings: short string id",),
        lambda golden: {
            "status": 200,
            "headers": golden["headers"],
            "body": {
                "model_name": "strings",
                "model_version": "1",
                "outputs": [
                    {"name": "SUM", "datatype": "INT32", "shape": [1, 1], "data": [1]},
                    {"name": "SEEN", "datatype": "BYTES", "shape": [1, 1], "data": [SHORT_NAME]},
                ],
            },
        },
    ),
    Difference(
        "an ensemble's outputs come in the order of its config, or of the request",
        "Triton's order is that of a hash table",
        re.compile("http infer both: all|grpc streamed(, empty final wished)?"),
        _outputs_reversed,
    ),
    *(
        Difference(
            f"steps run whose outputs are not asked for, where others need them: {which} of two",
            "Triton leaves such steps out when one of their outputs is an unrequested output of the ensemble, and ends "
            "in 'unexpected deadlock'",
            (f"http infer both: {which}",),
            becomes(_of_both(name, value)),
        )
        for which, name, value in (("the first", "M", 2.0), ("the last", "Y", 3.0))
    ),
    Difference(
        "ensembles have max_inflight_requests",
        NEWEST,
        re.compile("http config (chain|nested|optional|streaming|with_whole)"),
        _with_inflight_limit,
    ),
    Difference(
        "both ensembles of a circle are told so",
        "Triton says of the second that nothing of it has changed, and that it has no version",
        ("http load circle_b",),
        http(
            400,
            "load failed for model 'circle_b': circular dependency between ensembles: circle_b -> ... -> circle_a -> "
            "circle_b\n",
        ),
    ),
    Difference(
        "a step that mixes streams is named by its model",
        "Triton names the ensemble where the step writes one of its outputs",
        ("http load two_streams",),
        error("step of model 'two_streams'", "step of model 'sum'"),
    ),
    Difference(
        "a warm-up is not counted",
        f"{NEWEST}; the recorded release counts its requests and executions",
        re.compile(r"http instances: statistics of warm_\w+"),
        _cold,
        when=lambda golden: golden["body"]["model_stats"][0]["execution_count"] > 0,
    ),
    *(
        Difference(
            f"{name} in namespaces is not {'served' if unloaded else 'known'} {when}",
            f"{NEWEST}: readiness of a model that cannot be found is the error of other look-ups",
            (f"http namespaces: {name} ready {when}",),
            http(404, f"Identifier of model '{name}' is not found in global map")
            if unloaded
            else http(400, f"Request for unknown model: '{name}' is not found"),
        )
        for when, names in (
            ("before anything is loaded", ("both", "left", "right", "nobody")),
            ("with two loaded", ("right", "nobody")),
            ("after unloads", ("both", "left", "right", "nobody")),
        )
        for name in names
        for unloaded in (when == "after unloads" and name in {"both", "left"},)
    ),
    Difference(
        "an ambiguous name is not ready",
        "as above",
        ("http namespaces: both ready with two loaded",),
        http(
            400,
            "There are 2 identifiers of model 'both' in global map, model namespace must be provided to resolve "
            "ambiguity.",
        ),
    ),
    Difference(
        "an environment that cannot be used is told with its reason",
        "Triton names the function that failed, or a file that Conch does not need",
        ("http environment: load broken", "http environment: load hollow", "http environment: index"),
        _replace(
            (
                "archive_read_open_filename() failed.",
                "the environment archive '<repository>/broken/env.tar.gz' cannot be unpacked: it is no tar archive",
            ),
            (
                (
                    "Path <repository>/hollow/env/bin/activate does not exist. The Python environment should contain "
                    "an 'activate' script."
                ),
                "model 'hollow': the environment '<repository>/hollow/env' has no bin/python",
            ),
        ),
    ),
    Difference(
        "the index tells why a polled config cannot be used",
        "Triton leaves it in the log, at every poll",
        ("http poll: index after mistakes",),
        _with_mistakes,
    ),
    Difference(
        "states tell which polled configs cannot be used",
        "as above",
        ("poll: mistakes", "poll: bad changes"),
        _mistakes_unavailable,
    ),
    Difference(
        "the index tells why the newest files do not serve",
        "what served goes on serving, and who looks only at the state would take it for the newest",
        ("http poll: index after bad changes", "http poll: index of what is ready after bad changes"),
        _with_failures,
    ),
    Difference(
        "the index of what is ready has nothing else",
        "Triton adds models that lie in two repositories",
        ("http poll: index of what is ready after bad changes",),
        _ready_alone,
    ),
    Difference(
        "files that were merely touched load nothing",
        "changes are found by content, so the model and its statistics go on",
        ("http poll: statistics after the touch",),
        _asked_once,
    ),
    Difference(
        "a sequence goes on across a reload",
        "Triton forgets the sequences of the version that is replaced; here they go on there until their END",
        ("http infer summed: reload, first goes on after it",),
        _summed(1002),
    ),
    Difference(
        "a sequence ends across a reload",
        "as above",
        ("http infer summed: reload, first ends after it",),
        _summed(1003),
    ),
    Difference(
        "the index tells why the newest files could not be loaded",
        "what served goes on serving, and who looks only at the state would take it for the newest",
        ("http reload: index after broken files",),
        lambda golden: {
            **golden,
            "body": [
                {
                    **golden["body"][0],
                    "reason": "load of a newer one failed: Internal: ValueError: not today\n\nAt:\n"
                    "  <repository>/summed/1/model.py(8): initialize\n",
                }
            ],
        },
    ),
    *(
        Difference(
            f"a load is told what is wrong with it: {name}",
            NEWEST,
            (f"http control: load given, {name}",),
            http(400, text),
        )
        for name, text in {
            "config: empty": "Invalid config override: not JSON: Input data was truncated",
            "config: no object": "Invalid config override: the config: expected an object, got a list",
            "config: no JSON": "Invalid config override: not JSON: JSON is malformed: object keys must be strings "
            "(byte 1)",
            "config: cut off": "Invalid config override: not JSON: Input data was truncated",
            "config: a word for a number": "Invalid config override: max_batch_size: expected a whole number, "
            "got 'many'",
            "config: an unknown type": "Invalid config override: input[0].data_type: unknown value 'TYPE_LONG' for "
            "DataType",
            "a config by number": "Invalid config override: the config: expected an object, got a number",
            "files: no base64": "failed to decode load parameter 'file:1/model.py': expected base64 text, Only base64 "
            "data is allowed",
            "files: out of the folder": "Invalid file parameter 'file:../x/model.py' with normalized path "
            "'../x/model.py' must stay within model directory.",
            "files: an absolute path": "Invalid file parameter 'file:/1/model.py' with normalized path '/1/model.py' "
            "must stay within model directory.",
            "files: the folder itself": "Invalid file parameter 'file:.' with normalized path '.' must stay within "
            "model directory.",
            "files without config": "Load parameter 'config' must be specified for model file override",
        }.items()
    ),
    *(
        Difference(
            f"files that come with a load are loaded: {name}",
            "Triton takes the second set of files in a row for the first, and loads nothing",
            (case,),
            change,
        )
        for name, case, change in (
            (
                "a broken model",
                "http control: load given, files: a broken model",
                http(400, _GIVEN + "SyntaxError: invalid syntax (model.py, line 1);\n"),
            ),
            ("so none serves", "http infer given: control: after bad files", text_of('"file"', '"first"')),
        )
    ),
    *(
        Difference(
            f"the index tells why a load of '{name}' was given up", "as where the repository is polled", (case,), change
        )
        for name, case, change in (
            ("given", "http control: index after bad configs", _without_versions("given")),
            ("policy", "http control: index with specific { versions: 8 }", _without_versions("policy")),
        )
    ),
    Difference(
        "what was asked for stays when an ensemble goes",
        "Triton takes no notice of a load of a member that the ensemble's load has brought already",
        ("http control: index with a member that was asked for",),
        lambda golden: {
            **golden,
            "body": [
                {"name": "member", "version": "1", "state": "READY"} if line["name"] == "member" else line
                for line in golden["body"]
            ],
        },
    ),
)
