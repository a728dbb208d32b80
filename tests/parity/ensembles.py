"""Ensembles: what they answer, what they refuse, and what loading and unloading does to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parity import models
from parity.cases import Case, Grpc, Http, Json, Stream, b64, floats, get, infer, post, tensor
from parity.streams import EMPTY_FINAL, ints

FLAGS = ("--model-control-mode=explicit", "--exit-on-error=false")

#: Applies what stands in the model's parameter `code` to its inputs, by name; outputs that come out None are left out.
COMPUTE = """class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.code = compile(config["parameters"]["code"]["string_value"], "code", "exec")
        self.outputs = [output["name"] for output in config["output"]]

    def execute(self, requests):
        responses = []
        for request in requests:
            names = {t.name(): t.as_numpy() for t in request.inputs()}
            names.update(np=np, request=request)
            exec(self.code, names)
            tensors = [pb_utils.Tensor(n, names[n]) for n in self.outputs if names.get(n) is not None]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""


def io(kind: str, tensors: Mapping[str, str]) -> str:
    """`tensors`: name -> type, dims and more, as `FP32 -1 optional: true`."""
    lines = []
    for name, text in tensors.items():
        datatype, dims, *more = text.split(" ", 2)
        lines.append(f'{kind} [ {{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] {"".join(more)} }} ]')
    return "\n".join(lines) + "\n"


def computing(code: str, inputs: Mapping[str, str], outputs: Mapping[str, str], batch: int = 8, more: str = "") -> str:
    return (
        f'backend: "python"\nmax_batch_size: {batch}\n{io("input", inputs)}{io("output", outputs)}'
        f'parameters [ {{ key: "code" value: {{ string_value: "{code}" }} }} ]\n{more}\n'
    )


def ensemble(
    inputs: Mapping[str, str], outputs: Mapping[str, str], *steps: tuple[str, str, str], batch: int = 8, more: str = ""
) -> str:
    """A step is a model (`name` or `name:version`) and its maps, as `X=a,Y=b` (the model's name first)."""
    text = f'platform: "ensemble"\nmax_batch_size: {batch}\n{io("input", inputs)}{io("output", outputs)}{more}\n'
    text += "ensemble_scheduling { step [\n"
    parts = []
    for model, reads, writes in steps:
        name, _, version = model.partition(":")
        part = f'{{ model_name: "{name}" model_version: {version or -1}'
        for field, pairs in (("input_map", reads), ("output_map", writes)):
            for pair in pairs.split(","):
                key, _, value = pair.partition("=")
                part += f' {field} {{ key: "{key}" value: "{value}" }}'
        parts.append(part + " }")
    return text + ",\n".join(parts) + "\n] }\n"


X, Y = {"X": "FP32 -1"}, {"Y": "FP32 -1"}
DOUBLE, INC = ("double", "X=X,Y=M"), ("inc", "X=M,Y=Y")
MEMBERS = {
    "double": computing("Y = X * 2", X, Y),
    "inc": computing("Y = X + 1", X, Y),
    "add": computing("S = A + B", {"A": "FP32 -1", "B": "FP32 -1"}, {"S": "FP32 -1"}),
    "split": computing("P = X; Q = -X", X, {"P": "FP32 -1", "Q": "FP32 -1"}),
    "either": computing(
        "Y = A + 100 if 'B' not in globals() else A + B", {"A": "FP32 -1", "B": "FP32 -1 optional: true"}, Y
    ),
    "partial": computing("P = X; Q = X if X.sum() > 0 else None", X, {"P": "FP32 -1", "Q": "FP32 -1"}),
    "whole": computing("Y = X * 10", X, Y, batch=0),
    "fixed": computing("Y = X * 10", {"X": "FP32 2"}, {"Y": "FP32 2"}, batch=0),
    "small": computing("Y = X", X, Y, batch=2),
    "many": computing("OUT = IN * 10", {"IN": "INT32 1"}, {"OUT": "INT32 1"}, batch=0),
    "strange": computing("Y = X.astype(np.int32)", X, Y),
}
IN_STREAM = {"IN": "INT32 -1"}
GOOD = {
    "chain": ensemble(X, Y, ("double", "X=X", "Y=M"), ("inc", "X=M", "Y=Y")),
    "diamond": ensemble(
        X,
        {"S": "FP32 -1"},
        ("add", "A=c,B=d", "S=S"),
        ("double", "X=a", "Y=c"),
        ("inc", "X=b", "Y=d"),
        ("split", "X=X", "P=a,Q=b"),
    ),
    "nested": ensemble(X, Y, ("chain", "X=X", "Y=T"), ("inc", "X=T", "Y=Y")),
    "both": ensemble(X, {"M": "FP32 -1", "Y": "FP32 -1"}, ("double", "X=X", "Y=M"), ("inc", "X=M", "Y=Y")),
    "apart": ensemble(X, {"M": "FP32 -1", "Y": "FP32 -1"}, ("double", "X=X", "Y=M"), ("inc", "X=X", "Y=Y")),
    "optional": ensemble({"A": "FP32 -1", "B": "FP32 -1 optional: true"}, Y, ("either", "A=A,B=B", "Y=Y")),
    "left_out": ensemble({"A": "FP32 -1", "B": "FP32 -1 optional: true"}, {"S": "FP32 -1"}, ("add", "A=A,B=B", "S=S")),
    "unmapped_optional": ensemble({"A": "FP32 -1"}, Y, ("either", "A=A", "Y=Y")),
    "partial_optional": ensemble(X, Y, ("partial", "X=X", "P=P,Q=Q"), ("either", "A=P,B=Q", "Y=Y")),
    "partial_required": ensemble(X, {"S": "FP32 -1"}, ("partial", "X=X", "P=P,Q=Q"), ("add", "A=P,B=Q", "S=S")),
    "partial_output": ensemble(X, {"P": "FP32 -1", "Q": "FP32 -1"}, ("partial", "X=X", "P=P,Q=Q")),
    "twice": ensemble(X, {"S": "FP32 -1"}, ("add", "A=X,B=X", "S=S")),
    "unbatched": ensemble(X, Y, ("double", "X=X", "Y=M"), ("inc", "X=M", "Y=Y"), batch=0),
    "with_whole": ensemble(X, Y, ("double", "X=X", "Y=M"), ("fixed", "X=M", "Y=N"), ("inc", "X=N", "Y=Y"), batch=1),
    "old_version": ensemble(
        {"IN": "INT32 1"}, {"VERSION": "INT64 1"}, ("versions:1", "IN=IN", "VERSION=VERSION"), batch=0
    ),
    "new_version": ensemble(
        {"IN": "INT32 1"}, {"VERSION": "INT64 1"}, ("versions", "IN=IN", "VERSION=VERSION"), batch=0
    ),
    "watched": ensemble({"X": "INT32 1"}, {"SEEN": "STRING 1"}, ("seen", "X=X", "SEEN=SEEN"), batch=0),
    "watched_late": ensemble(
        {"X": "INT32 1"}, {"SEEN": "STRING 1"}, ("many", "IN=X", "OUT=M"), ("seen", "X=M", "SEEN=SEEN"), batch=0
    ),
    "erring": ensemble({"X": "INT32 1"}, {"Y": "FP32 1"}, ("errors", "X=X", "Y=Y"), batch=0),
    "raising": ensemble({"X": "FP32 -1"}, {"Y": "FP32 -1"}, ("raises", "X=X", "Y=M"), ("whole", "X=M", "Y=Y"), batch=0),
    "estranged": ensemble(X, Y, ("strange", "X=X", "Y=M"), ("inc", "X=M", "Y=Y")),
    "streaming": ensemble(
        IN_STREAM, {"OUT": "INT32 1"}, ("repeat", "IN=IN", "OUT=M"), ("many", "IN=M", "OUT=OUT"), batch=0
    ),
    "streamed": ensemble(
        IN_STREAM, {"OUT": "INT32 1", "IDX": "UINT32 1"}, ("repeat", "IN=IN", "OUT=OUT,IDX=IDX"), batch=0
    ),
    "labelled": ensemble({"X": "FP32 4"}, {"T": "FP32 4"}, ("classes", "X=X", "SCORES=T"), batch=4),
    "limited": ensemble(X, Y, ("double", "X=X", "Y=M"), ("inc", "X=M", "Y=Y")),
    "counted_chain": ensemble(X, Y, ("double", "X=X", "Y=M"), ("counted", "X=M", "Y=Y"), batch=0),
}
BAD = {
    "bad_type": ensemble({"X": "INT32 1"}, Y, ("double", "X=X", "Y=Y")),
    "bad_inner_type": ensemble(X, {"OUT": "INT32 1"}, ("double", "X=X", "Y=M"), ("many", "IN=M", "OUT=OUT"), batch=0),
    "bad_shape": ensemble({"X": "FP32 3"}, {"Y": "FP32 2"}, ("fixed", "X=X", "Y=Y"), batch=0),
    "bad_rank": ensemble({"X": "FP32 2,2"}, {"Y": "FP32 -1"}, ("double", "X=X", "Y=Y")),
    "no_such_input": ensemble(X, Y, ("double", "Z=X", "Y=Y")),
    "no_such_output": ensemble(X, Y, ("double", "X=X", "Z=Y")),
    "input_missing": ensemble(X, {"S": "FP32 -1"}, ("add", "A=X", "S=S")),
    "too_large": ensemble(X, Y, ("double", "X=X", "Y=M"), ("small", "X=M", "Y=Y"), batch=4),
    "no_model": ensemble(X, Y, ("double", "X=X", "Y=M"), ("ghost", "X=M", "Y=Y")),
    "no_models": ensemble(X, Y, ("ghost", "X=X", "Y=M"), ("wraith", "X=M", "Y=Y")),
    "no_version": ensemble(
        {"IN": "INT32 1"}, {"VERSION": "INT64 1"}, ("versions:7", "IN=IN", "VERSION=VERSION"), batch=0
    ),
    "failing_member": ensemble(X, Y, ("fails", "X=X", "Y=Y"), batch=0),
    "above_failing": ensemble(X, Y, ("failing_member", "X=X", "Y=Y"), batch=0),
    "above_bad": ensemble(X, Y, ("too_large", "X=X", "Y=Y"), batch=0),
    "circle": ensemble(X, Y, ("circle", "X=X", "Y=Y")),
    "circle_a": ensemble(X, Y, ("circle_b", "X=X", "Y=Y")),
    "circle_b": ensemble(X, Y, ("circle_a", "X=X", "Y=Y")),
    "two_streams": ensemble(
        {"A": "INT32 -1", "B": "INT32 -1"},
        {"S": "INT32 1"},
        ("repeat", "IN=A", "OUT=P"),
        ("repeat", "IN=B", "OUT=Q"),
        ("sum", "A=P,B=Q", "S=S"),
        batch=0,
    ),
    "stream_and_not": ensemble(
        IN_STREAM,
        {"OUT": "INT32 1", "TEN": "INT32 1"},
        ("repeat", "IN=IN", "OUT=OUT"),
        ("many", "IN=IN", "OUT=TEN"),
        batch=0,
    ),
    "static_unused": ensemble(X, Y, ("split", "X=X", "P=Y,Q=Z")),
    "static_unset": ensemble(X, Y, ("add", "A=X,B=Z", "S=Y")),
}
MORE = {"sum": computing("S = A + B", {"A": "INT32 1", "B": "INT32 1"}, {"S": "INT32 1"}, batch=0)}
BORROWED = ("seen", "errors", "raises", "repeat", "classes", "counted")


def write(root: Path, oracle: bool) -> None:
    models.write_repository(root, oracle, only=BORROWED)
    models.write_python(root / "versions", [1, 3, 10], models.VERSION, models.VERSION_CONFIG)
    models.write_python(root / "fails", [1], models.FAILS, models.SIMPLE_CONFIG)
    for name, config in {**MEMBERS, **MORE}.items():
        models.write_python(root / name, [1], COMPUTE, config)
    for name, config in {**GOOD, **BAD}.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)


def load(name: str) -> Http:
    return post(f"load {name}", f"/v2/repository/models/{name}/load", b"", settle=True)


def unload(name: str, *, dependents: bool = False, title: str = "") -> Http:
    body = {"parameters": {"unload_dependents": True}} if dependents else b""
    return post(f"unload {title or name}", f"/v2/repository/models/{name}/unload", body, settle=True)


def index(when: str) -> Http:
    return post(f"index {when}", "/v2/repository/index", b"")


def row(name: str, *values: float, **more: Json) -> dict[str, Json]:
    return {"inputs": [tensor(name, "FP32", [1, len(values)], data=list(values))], **more}


def number(value: int = 1, **more: Json) -> dict[str, Json]:
    return {"inputs": [tensor("X", "INT32", [1], data=[value])], **more}


def repeated(model: str, *values: int, **more: Json) -> dict[str, Json]:
    return {
        "model_name": model,
        "inputs": [tensor("IN", "INT32", [len(values)])],
        "raw_input_contents": [b64(ints(*values))],
        **more,
    }


def values() -> list[Case]:
    a, b = (tensor(name, "FP32", [1, 2], data=[1, 2]) for name in ("A", "B"))
    return [
        infer("plain", "chain", row("X", 1, 2, 3)),
        infer("with id", "chain", row("X", 1, id="some")),
        infer("two rows", "chain", {"inputs": [tensor("X", "FP32", [2, 2], data=[1, 2, 3, 4])]}),
        infer("too many rows", "chain", {"inputs": [tensor("X", "FP32", [9, 1], data=[1] * 9)]}),
        infer("wrong type", "chain", {"inputs": [tensor("X", "INT32", [1, 1], data=[1])]}),
        infer("no inputs", "chain", {"inputs": []}),
        infer("unknown output", "chain", row("X", 1, outputs=[{"name": "M"}])),
        infer("plain", "diamond", row("X", 1, 2, 3)),
        infer("plain", "nested", row("X", 1, 2, 3)),
        infer("all", "both", row("X", 1)),
        infer("the first", "both", row("X", 1, outputs=[{"name": "M"}])),
        infer("the last", "both", row("X", 1, outputs=[{"name": "Y"}])),
        infer("the other order", "both", row("X", 1, outputs=[{"name": "Y"}, {"name": "M"}])),
        infer("the first", "apart", row("X", 1, outputs=[{"name": "M"}])),
        infer("the last", "apart", row("X", 1, outputs=[{"name": "Y"}])),
        infer("both", "optional", {"inputs": [a, b]}),
        infer("one", "optional", {"inputs": [a]}),
        infer("both", "left_out", {"inputs": [a, b]}),
        infer("one", "left_out", {"inputs": [a]}),
        infer("plain", "unmapped_optional", {"inputs": [a]}),
        infer("all", "partial_optional", row("X", 1)),
        infer("part", "partial_optional", row("X", -1)),
        infer("all", "partial_required", row("X", 1)),
        infer("part", "partial_required", row("X", -1, id="p")),
        infer("part", "partial_output", row("X", -1)),
        infer("one output that is not there", "partial_output", row("X", -1, outputs=[{"name": "Q"}])),
        infer("plain", "twice", row("X", 1, 2)),
        infer("one row", "unbatched", {"inputs": [tensor("X", "FP32", [3], data=[1, 2, 3])]}),
        infer("plain", "with_whole", row("X", 1, 2)),
        infer("wrong size inside", "with_whole", row("X", 1, 2, 3, id="w")),
        infer("plain", "old_version", {"inputs": [tensor("IN", "INT32", [1], data=[1])]}),
        infer("plain", "new_version", {"inputs": [tensor("IN", "INT32", [1], data=[1])]}),
        Grpc(
            "grpc chain",
            "ModelInfer",
            {
                "model_name": "chain",
                "id": "g",
                "inputs": [tensor("X", "FP32", [1, 2])],
                "raw_input_contents": [b64(floats(1, 2))],
            },
        ),
        infer(
            "labels",
            "labelled",
            {
                "inputs": [tensor("X", "FP32", [1, 4], data=[1, 3, 2, 0])],
                "outputs": [{"name": "T", "parameters": {"classification": 2}}],
            },
        ),
    ]


def told() -> list[Case]:
    """What steps hear of the request."""
    everything = {"priority": 1, "timeout": 5000000, "sequence_id": 9, "sequence_start": True, "mine": "x", "n": 4}
    return [
        infer("plain", "watched", number()),
        infer("all", "watched", number(id="me", parameters=everything)),
        infer("text sequence", "watched", number(parameters={"sequence_id": "abc", "sequence_end": True})),
        infer("after another", "watched_late", number(id="me", parameters=everything)),
        *(infer(f"error {code}", "erring", number(code, id="e")) for code in range(8)),
        infer("plain", "raising", {"inputs": [tensor("X", "FP32", [1], data=[1])]}),
        infer("plain", "estranged", row("X", 1)),
    ]


def streams() -> list[Case]:
    wish = {"parameters": EMPTY_FINAL}

    def talk(name: str, *messages: Json) -> Stream:
        return Stream(f"grpc {name}", messages)

    return [
        talk("streamed", repeated("streamed", 5, 6, 7, id="a")),
        talk("streamed, empty final wished", repeated("streamed", 5, 6, 7, id="a", **wish)),
        talk("streamed nothing", repeated("streamed", id="a", **wish)),
        talk("streamed, one output", repeated("streamed", 5, id="a", outputs=[{"name": "IDX"}])),
        talk("streaming nothing", repeated("streaming", id="a", **wish)),
        talk("streaming nothing, no wish", repeated("streaming", id="a")),
        Grpc("grpc streaming by ModelInfer", "ModelInfer", repeated("streaming", 1)),
        infer("stream by http", "streaming", {"inputs": [tensor("IN", "INT32", [1], data=[1])]}),
    ]


def questions() -> list[Case]:
    cases: list[Case] = []
    for name in ("chain", "nested", "optional", "streaming", "with_whole"):
        cases += [
            get(f"metadata {name}", f"/v2/models/{name}"),
            get(f"config {name}", f"/v2/models/{name}/config"),
            get(f"ready {name}", f"/v2/models/{name}/ready"),
        ]
    counted = {"inputs": [tensor("X", "FP32", [2], data=[1, 2])]}
    return [
        *cases,
        Grpc("grpc config chain", "ModelConfig", {"name": "chain"}),
        get("statistics before", "/v2/models/counted_chain/stats"),
        infer("first", "counted_chain", counted),
        infer("second", "counted_chain", counted),
        infer("refused", "counted_chain", {"inputs": []}),
        get("statistics after", "/v2/models/counted_chain/stats"),
        get("statistics of a step", "/v2/models/counted/stats"),
    ]


def comings_and_goings() -> list[Case]:
    """Every model is unloaded when this begins."""
    return [
        index("of nothing"),
        load("nested"),
        index("of nested"),
        infer("loaded with its members", "nested", row("X", 1)),
        unload("inc", title="a member"),
        index("without a member"),
        infer("member is gone", "nested", row("X", 1)),
        get("ready without a member", "/v2/health/ready"),
        Http("http load a member", "POST", "/v2/repository/models/inc/load", settle=True),
        index("with the member again"),
        infer("member is back", "nested", row("X", 1)),
        unload("nested", dependents=True, title="nested and dependents"),
        index("after dependents"),
        post("load double itself", "/v2/repository/models/double/load", b"", settle=True),
        post("load chain then", "/v2/repository/models/chain/load", b"", settle=True),
        unload("chain", dependents=True, title="chain and dependents"),
        index("after dependents but one"),
        post("load chain again", "/v2/repository/models/chain/load", b"", settle=True),
        post("load nested again", "/v2/repository/models/nested/load", b"", settle=True),
        unload("nested", dependents=True, title="nested, chain stays"),
        index("chain stays"),
        unload("chain", title="chain alone"),
        index("members stay"),
        *(load(name) for name in BAD),
        get("ready with bad ones", "/v2/health/ready"),
    ]


CASES: tuple[Case, ...] = (
    *(load(name) for name in GOOD if name != "nested"),
    post("load nested first", "/v2/repository/models/nested/load", b"", settle=True),
    *values(),
    *told(),
    *streams(),
    *questions(),
    *(
        post(
            f"end {name}",
            f"/v2/repository/models/{name}/unload",
            {"parameters": {"unload_dependents": True}},
            settle=True,
        )
        for name in ("nested", *(name for name in GOOD if name != "nested"))
    ),
    *comings_and_goings(),
)
