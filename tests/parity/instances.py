"""Instance groups, warm-up, the rate limiter and changes in place: what a load says, and what serves then."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from parity.cases import Case, Grpc, get, infer, post, strings, tensor

FLAGS = (
    "--model-control-mode=explicit",
    "--rate-limit=execution_count",
    "--rate-limit-resource=R1:4",
    "--rate-limit-resource=R2:2:0",
    "--rate-limit-resource=R3:3:1",
)

#: Says of each execution so far how many requests it had, and shape, type and (where it is known) content of X.
MODEL = """import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.seen = []
        self.broken = "broken" in args["model_name"]
        self.random = "random" in args["model_name"]

    def execute(self, requests):
        line = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X")
            if x is None:
                line.append("no X")
                continue
            x = x.as_numpy()
            content = "?" if self.random and x.dtype != object else str(x.tolist())
            line.append(f"{x.shape} {x.dtype} {content}")
        self.seen.append(line)
        if self.broken:
            error = pb_utils.TritonError("it is cold", pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=error) for _ in requests]
        text = json.dumps(self.seen).encode()
        answers = []
        for request in requests:
            shape = [1, 1] if %(batch)d else [1]
            tensor = pb_utils.Tensor("SEEN", np.array([text], dtype=object).reshape(shape))
            answers.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return answers
"""

CONFIG = """
backend: "python"
max_batch_size: %(batch)d
input [ { name: "X" data_type: TYPE_%(type)s dims: [ %(dims)s ] } ]
output [ { name: "SEEN" data_type: TYPE_STRING dims: [ 1 ] } ]
%(more)s
"""

GROUPS = {
    "gpu": "{ kind: KIND_GPU }",
    "gpu_list": "{ kind: KIND_GPU gpus: [ 0, 3 ] }",
    "cpu_gpus": "{ kind: KIND_CPU gpus: [ 0 ] }",
    "model": "{ kind: KIND_MODEL }",
    "model_gpus": "{ kind: KIND_MODEL gpus: [ 1 ] }",
    "auto_gpus": "{ gpus: [ 0 ] }",
    "auto": "{ count: 2 }",
    "profile": '{ kind: KIND_CPU profile: [ "0" ] }',
    "two": '{ name: "a" kind: KIND_CPU }, { kind: KIND_CPU count: 2 }',
    "negative": "{ kind: KIND_CPU count: -1 }",
}


def claims(*resources: tuple[str, int, bool], priority: int = 1, count: int = 1) -> str:
    listed = ", ".join(
        f'{{ name: "{name}" count: {much} {"global: true" if wide else ""} }}' for name, much, wide in resources
    )
    limits = f"rate_limiter {{ resources [ {listed} ] priority: {priority} }}"
    return f"{{ kind: KIND_CPU count: {count} {limits} }}"


RATES = {
    "enough": claims(("R1", 4, False)),
    "enough_wide": claims(("R4", 1, True)),
    "too_many": claims(("R1", 5, False)),
    "lower_case": claims(("r1", 1, False)),
    "of_device": claims(("R2", 2, False)),
    "of_other_device": claims(("R3", 1, False)),
    "of_other_device_wide": claims(("R3", 3, True)),
    "unknown_zero": claims(("R9", 0, False)),
    "two_kinds": claims(("R1", 1, False), ("R1", 1, True)),
    "two_groups": f"{claims(('R1', 1, False))}, {claims(('R1', 6, False))}",
    "twice": claims(("R1", 9, False), ("R1", 2, False)),
}


def sample(body: str, size: int = 1, count: int | None = None, name: str = "s") -> str:
    times = "" if count is None else f"count: {count}"
    inputs = f'inputs {{ key: "X" value: {{ {body} }} }}' if body else ""
    return f'{{ name: "{name}" batch_size: {size} {times} {inputs} }}'


ZERO = "data_type: TYPE_FP32 dims: [ 2 ] zero_data: true"
#: Name -> samples, and what differs from FP32 X of dims [ -1 ] with batches up to 8.
WARMUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero": (sample(ZERO), {}),
    "random": (sample("data_type: TYPE_FP32 dims: [ 3 ] random_data: true"), {}),
    "file": (sample('data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "floats"'), {}),
    "file_longer": (sample('data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "floats"'), {}),
    "file_shorter": (sample('data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "floats"'), {}),
    "file_missing": (sample('data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "nothing"'), {}),
    "string_zero": (sample("data_type: TYPE_STRING dims: [ 2 ] zero_data: true"), {"type": "STRING"}),
    "string_file": (sample('data_type: TYPE_STRING dims: [ 2 ] input_data_file: "strings"'), {"type": "STRING"}),
    "batch": (sample(ZERO, 3), {}),
    "no_batch": (sample(ZERO, 0), {}),
    "count": (sample(ZERO, 2, 3), {}),
    "two": (f"{sample(ZERO)}, {sample(ZERO, 2, name='t')}", {}),
    "shape_open": (sample("data_type: TYPE_FP32 dims: [ -1 ] zero_data: true"), {}),
    "no_data": (sample("data_type: TYPE_FP32 dims: [ 2 ]"), {}),
    "no_type": (sample("dims: [ 2 ] zero_data: true"), {}),
    "no_inputs": (sample(""), {}),
    "wrong_type": (sample("data_type: TYPE_INT32 dims: [ 2 ] zero_data: true"), {}),
    "wrong_dims": (sample("data_type: TYPE_FP32 dims: [ 2 ] zero_data: true"), {"dims": "3"}),
    "wrong_rank": (sample("data_type: TYPE_FP32 dims: [ 2, 2 ] zero_data: true"), {}),
    "unknown_input": (sample(ZERO).replace('"X"', '"Z"'), {}),
    "broken": (sample(ZERO), {}),
}
#: Warm models that serve: their first answer tells what they were warmed up with.
ASKED = (
    "zero", "random", "file", "file_longer", "string_zero", "string_file", "batch", "no_batch", "count", "two",
)  # fmt: skip

STEADY = {"batch": 8, "type": "FP32", "dims": "-1"}


def write(root: Path, oracle: bool) -> None:
    """The same models for both servers."""
    for name, groups in GROUPS.items():
        _model(root / f"group_{name}", {"more": f"instance_group [ {groups} ]"})
    for name, groups in RATES.items():
        _model(root / f"rate_{name}", {"more": f"instance_group [ {groups} ]"})
    for name, (samples, changes) in WARMUPS.items():
        place = root / f"warm_{name}"
        _model(place, {**changes, "more": f"instance_group [ {{ kind: KIND_CPU }} ] model_warmup [ {samples} ]"})
        (place / "warmup").mkdir()
        (place / "warmup" / "floats").write_bytes(struct.pack("<2f", 1.5, 2.5))
        (place / "warmup" / "strings").write_bytes(strings(b"abc", b""))
    _model(root / "counted", {"more": "instance_group [ { kind: KIND_CPU } ]"})


def _model(place: Path, values: dict[str, Any]) -> None:
    chosen = {**STEADY, "more": "", **values}
    code = MODEL.replace("%(batch)d", str(chosen["batch"]))
    (place / "1").mkdir(parents=True)
    (place / "1" / "model.py").write_text(code)
    (place / "config.pbtxt").write_text(CONFIG % chosen)


def load(model: str, config: Any = None, name: str = "") -> Case:
    body = b"" if config is None else {"parameters": {"config": json.dumps(config)}}
    return post(f"instances: load {model}{name}", f"/v2/repository/models/{model}/load", body)


def ask(model: str) -> Case:
    batch = [] if "unbatched" in model else [1]
    size = 3 if model == "warm_wrong_dims" else 1
    if "string" in model:
        x = tensor("X", "BYTES", [*batch, size], data=["now"] * size)
    else:
        x = tensor("X", "FP32", [*batch, size], data=[9.0] * size)
    return infer("instances: what it has seen", model, {"inputs": [x]})


def groups() -> list[Case]:
    cases: list[Case] = []
    for name in GROUPS:
        cases += [
            load(f"group_{name}"),
            get(f"instances: config of group_{name}", f"/v2/models/group_{name}/config"),
        ]
    return [*cases, load("group_two", name=" again"), ask("group_two")]


def rates() -> list[Case]:
    served = ("enough", "of_device", "of_other_device_wide")
    cases: list[Case] = [load(f"rate_{name}") for name in RATES]
    return [*cases, *(ask(f"rate_{name}") for name in served)]


def warmups() -> list[Case]:
    cases: list[Case] = [load(f"warm_{name}") for name in WARMUPS]
    for name in ASKED:
        cases += [get(f"instances: statistics of warm_{name}", f"/v2/models/warm_{name}/stats"), ask(f"warm_{name}")]
    return cases


def changes() -> list[Case]:
    """Statistics begin anew with a load, and go on when the instances alone change."""
    config: dict[str, Any] = {
        "name": "counted",
        "backend": "python",
        "max_batch_size": 8,
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "SEEN", "data_type": "TYPE_STRING", "dims": [1]}],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
    }

    def with_groups(*groups: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**config, "instance_group": list(groups), **more}

    cases: list[Case] = [load("counted"), load("counted", config, ": a config"), ask("counted")]
    for number, (title, changed) in enumerate(
        (
            ("three", with_groups({"kind": "KIND_CPU", "count": 3})),
            ("one", with_groups({"kind": "KIND_CPU", "count": 1})),
            ("another name", with_groups({"kind": "KIND_CPU", "count": 1, "name": "other"})),
            ("another kind", with_groups({"kind": "KIND_MODEL", "count": 1})),
            ("a group more", with_groups({"kind": "KIND_CPU"}, {"kind": "KIND_CPU", "count": 2})),
            ("an impossible group", with_groups({"kind": "KIND_CPU", "gpus": [0]})),
            ("another batch size", with_groups({"kind": "KIND_CPU", "count": 1}, max_batch_size=4)),
        )
    ):
        cases += [
            load("counted", changed, f": {title}"),
            get(f"instances: statistics after {number}, {title}", "/v2/models/counted/stats"),
            get(f"instances: config after {number}, {title}", "/v2/models/counted/config"),
        ]
    return cases


CASES: list[Case] = [
    *groups(),
    *rates(),
    *warmups(),
    *changes(),
    post("instances: index", "/v2/repository/index", b""),
    Grpc("grpc instances: config", "ModelConfig", {"name": "group_auto"}),
]
