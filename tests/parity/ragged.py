"""Which requests of different shapes share a batch, optional inputs, and what a load says of ragged batches.

A stream sends requests in order to a model that waits a moment for a full batch, and each answer tells the batch that
its request was in.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

from parity.cases import Case, Grpc, Stream, get, infer, post, tensor

FLAGS = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=3")

#: Tells each request of a batch what all of its requests had.
MODEL = """import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        batch = [sorted(f"{t.name()}{list(t.as_numpy().shape)}" for t in r.inputs()) for r in requests]
        answers = []
        for request in requests:
            rows = request.inputs()[0].as_numpy().shape[0]
            seen = np.array([[json.dumps(batch).encode()]] * rows, dtype=object)
            answers.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("SEEN", seen)]))
        return answers
"""
HEAD = """
backend: "python"
max_batch_size: 4
output [ { name: "SEEN" data_type: TYPE_STRING dims: [ 1 ] } ]
dynamic_batching { max_queue_delay_microseconds: 400000 }
"""


def entry(name: str, dims: str = "-1", more: str = "") -> str:
    return f'input [ {{ name: "{name}" data_type: TYPE_INT32 dims: [ {dims} ] {more} }} ]\n'


RAGGED = "allow_ragged_batch: true"
OPTIONAL = "optional: true"
MODELS = {
    "open": entry("X"),
    "ragged": entry("X", more=RAGGED),
    "ragged_wide": entry("X", "-1, -1", RAGGED),
    "beside_ragged": entry("X", more=RAGGED) + entry("Y"),
    "partly_fixed": entry("X", "2, -1"),
    "fixed": entry("X", "2"),
    "optional": entry("X", "2") + entry("Y", "2", OPTIONAL) + entry("Z", "2", OPTIONAL),
    "all_optional": entry("Y", "2", OPTIONAL) + entry("Z", "2", OPTIONAL),
    "optional_open": entry("X") + entry("Y", more=OPTIONAL),
    "optional_ragged": entry("X", more=RAGGED) + entry("Y", more=f"{OPTIONAL} {RAGGED}"),
    "reshaped": entry("X", "-1", "reshape { shape: [ 1, -1 ] }"),
    "made": entry("X", more=RAGGED)
    + 'batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "N" data_type: TYPE_INT32 source_input: "X" } ]\n'
    + 'batch_output [ { target_name: "SEEN" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "X" } ]\n',
}


def write(root: Path, triton: bool) -> None:
    for name, inputs in MODELS.items():
        folder = root / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
        (root / name / "config.pbtxt").write_text(HEAD + inputs)


def message(model: str, number: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    inputs, blobs = [], []
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        inputs.append({"name": name, "datatype": "INT32", "shape": list(shape)})
        blobs.append(base64.b64encode(struct.pack(f"<{count}i", *range(count))).decode())
    return {"model_name": model, "id": f"{number}", "inputs": inputs, "raw_input_contents": blobs}


def batches(name: str, model: str, *requests: dict[str, tuple[int, ...]]) -> Case:
    """Requests of one stream, in order; answers by their ids."""
    messages = tuple([message(model, number, **shapes) for number, shapes in enumerate(requests)])
    return Stream(f"ragged batches of {model}: {name}", messages, by_id=True)


def x(*sizes: int) -> dict[str, tuple[int, ...]]:
    return {"X": (1, *sizes)}


def meeting() -> list[Case]:
    both = {"X": (1, 2), "Y": (1, 2)}
    return [
        batches("equal shapes meet", "open", *[x(3)] * 4),
        batches("another shape closes the batch", "open", x(3), x(3), x(5), x(3)),
        batches("rows are not part of the shape", "open", {"X": (3, 2)}, x(2)),
        batches("no shape separates", "ragged", x(3), x(1), x(5), x(0)),
        batches("rows of different lengths", "ragged", {"X": (2, 3)}, {"X": (2, 5)}),
        batches("several dimensions", "ragged_wide", x(1, 2), x(2, 1), x(3, 3), x(1, 1)),
        batches(
            "the other input decides", "beside_ragged", *[{**x(n), "Y": (1, y)} for n, y in ((1, 7), (2, 7), (2, 8))]
        ),
        batches("a dimension that is open", "partly_fixed", x(2, 1), x(2, 1), x(2, 2)),
        batches("all sizes fixed", "fixed", *[x(2)] * 4),
        batches("without the optional ones", "optional", *[x(2)] * 4),
        batches("the same set", "optional", both, both, both, both),
        batches("another set closes the batch", "optional", x(2), x(2), both, x(2)),
        batches("as many, but others", "optional", both, {"X": (1, 2), "Z": (1, 2)}),
        batches("none is required", "all_optional", {"Y": (1, 2)}, {"Y": (1, 2)}, {"Z": (1, 2)}),
        batches("optional and open", "optional_open", {**x(1), "Y": (1, 2)}, {**x(1), "Y": (1, 3)}),
        batches("optional and ragged", "optional_ragged", *[{**x(n), "Y": (1, 5 - n)} for n in (1, 2, 3, 4)]),
        batches("ragged, then without", "optional_ragged", {**x(1), "Y": (1, 2)}, x(2), x(3)),
        batches("reshaped", "reshaped", x(2), x(2), x(3)),
        batches("batch inputs are for others", "made", x(3), x(1), x(5), x(2)),
    ]


def asked() -> list[Case]:
    def ints(name: str, *shape: int, datatype: str = "INT32") -> dict[str, Any]:
        count = 1
        for size in shape:
            count *= size
        return tensor(name, datatype, list(shape), data=[0] * count)

    required = ints("X", 1, 2)
    return [
        infer("required one missing", "optional", {"inputs": [ints("Y", 1, 2)]}),
        infer("required one missing, others enough", "optional", {"inputs": [ints("Y", 1, 2), ints("Z", 1, 2)]}),
        infer("no inputs", "optional", {"inputs": []}),
        infer("unknown one", "optional", {"inputs": [required, ints("W", 1, 2)]}),
        infer("optional one of a wrong type", "optional", {"inputs": [required, ints("Y", 1, 2, datatype="INT64")]}),
        infer("optional one of a wrong shape", "optional", {"inputs": [required, ints("Y", 1, 3)]}),
        infer("all there", "optional", {"inputs": [required, ints("Y", 1, 2), ints("Z", 1, 2)]}),
        infer("wrong rank", "ragged", {"inputs": [ints("X", 1, 2, 2)]}),
        infer("no elements", "ragged", {"inputs": [ints("X", 1, 0)]}),
        get("ragged: config", "/v2/models/made/config"),
        Grpc("ragged: metadata", "ModelMetadata", {"name": "made"}),
    ]


def loads() -> list[Case]:
    base: dict[str, Any] = {
        "backend": "python",
        "max_batch_size": 4,
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [-1], "allow_ragged_batch": True}],
        "output": [{"name": "SEEN", "data_type": "TYPE_STRING", "dims": [1]}],
    }
    into = {"kind": "BATCH_ELEMENT_COUNT", "target_name": ["N"], "data_type": "TYPE_INT32", "source_input": ["X"]}
    out = {"target_name": ["SEEN"], "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "source_input": ["X"]}
    cases: list[Case] = []

    def load(name: str, **changes: Any) -> None:
        config = json.dumps({**base, **changes})
        cases.append(
            post(f"load ragged: {name}", "/v2/repository/models/ragged/load", {"parameters": {"config": config}})
        )

    for kind in (
        "BATCH_ELEMENT_COUNT",
        "BATCH_ACCUMULATED_ELEMENT_COUNT",
        "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
        "BATCH_ITEM_SHAPE",
        "BATCH_ITEM_SHAPE_FLATTEN",
    ):
        load(f"{kind}", batch_input=[{**into, "kind": kind}])
        load(f"{kind} of two sources", batch_input=[{**into, "kind": kind, "source_input": ["X", "X"]}])
    load("batch input without a source", batch_input=[{**into, "source_input": []}])
    load("batch input of another type", batch_input=[{**into, "data_type": "TYPE_INT64"}])
    load("batch input without a type", batch_input=[{key: into[key] for key in into if key != "data_type"}])
    load("batch input of an unknown source", batch_input=[{**into, "source_input": ["Q"]}])
    load("batch input without a target", batch_input=[{**into, "target_name": []}])
    load("batch input with two targets", batch_input=[{**into, "target_name": ["N", "M"]}])
    load("two batch inputs of one target", batch_input=[into, into])
    load("batch output", batch_output=[out])
    load("batch output without a source", batch_output=[{**out, "source_input": []}])
    load("batch output of two sources", batch_output=[{**out, "source_input": ["X", "X"]}])
    load("batch output of an unknown source", batch_output=[{**out, "source_input": ["Q"]}])
    load("batch output of an unknown target", batch_output=[{**out, "target_name": ["Q"]}])
    load("batch output twice", batch_output=[{**out, "target_name": ["SEEN", "SEEN"]}])
    load("batch output in two entries", batch_output=[out, out])
    load("ragged without batching", max_batch_size=0)
    load("ragged and optional", input=[{**base["input"][0], "optional": True}])
    return cases


CASES: tuple[Case, ...] = (*meeting(), *asked(), *loads())
