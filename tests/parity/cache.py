"""The response cache: what is remembered, what is counted, and which models may not have one."""

from __future__ import annotations

import http.client
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.cases import Case, Grpc, Http, b64, binary, floats, get, infer, post, sized, strings, tensor
from parity.models import HEAD
from parity.schedules import Schedule
from support.server import Server

FLAGS = ("--cache-config=local,size=1048576", "--exit-on-error=false", "--strict-readiness=false")

#: Y is twice X, N how many requests the model has seen: a remembered answer has an old N. Negative X is an error.
MODEL = """class TritonPythonModel:
    def initialize(self, args):
        self.seen = 0

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            self.seen += 1
            if x.size and x.flat[0] < 0:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("it is negative")))
                continue
            outputs = [pb_utils.Tensor("Y", x * 2), pb_utils.Tensor("N", np.full((x.shape[0], 1), self.seen, np.int32))]
            wanted = [each for each in outputs if each.name() in request.requested_output_names()]
            responses.append(pb_utils.InferenceResponse(output_tensors=wanted))
        return responses
"""
CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
ON = "response_cache { enable: true }\n"
MODELS = {
    "kept": CONFIG + ON,
    "kept_batched": CONFIG + ON + "dynamic_batching { max_queue_delay_microseconds: 100 }\n",
    "kept_shapes": CONFIG + ON,
    "kept_empty": CONFIG + ON,
    "kept_failing": CONFIG + ON,
    "forgotten": CONFIG,
    "kept_off": CONFIG + "response_cache { enable: false }\n",
    "kept_versions": CONFIG + ON + "version_policy { all { } }\n",
    "kept_sequence": CONFIG + ON + "sequence_batching { }\n",
    "kept_decoupled": CONFIG + ON + "model_transaction_policy { decoupled: true }\n",
}
CLASSES = [{"name": "Y", "parameters": {"classification": 2}}, {"name": "N"}]
TEXT = """class TritonPythonModel:
    def initialize(self, args):
        self.seen = 0

    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            self.seen += 1
            upper = np.array([t.upper() + b"%d" % self.seen for t in text.reshape(-1)], dtype=object)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("UPPER", upper)]))
        return responses
"""
TEXT_CONFIG = """
backend: "python"
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 2 ] } ]
output [ { name: "UPPER" data_type: TYPE_STRING dims: [ 2 ] } ]
"""


#: Metrics whose numbers are the same for both servers.
COUNTED = re.compile("num_lookups|_hits_per_model|_misses_per_model|nv_inference")


@dataclass(frozen=True)
class Page(Schedule):
    """What the metrics say of the cache and of one model, once `lookups` are counted; not how long things took."""

    lookups: int = 0

    def play(self, server: Server, repository: Path) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
            connection.close()
            # Triton looks at its cache once in a while.
            if f"nv_cache_num_lookups {self.lookups}\n" in page or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        model = f'model="{self.model}"'
        shown = [
            re.sub(r" [\d.e+-]+$", " <number>", line) if line[0] != "#" and not COUNTED.search(line) else line
            for line in page.splitlines()
            if ("nv_cache_" in line and ("{" not in line or model in line))
            or (line.startswith(("nv_inference_count{", "nv_inference_request_success{")) and model in line)
        ]
        return {"lines": shown}


def asked(*values: float, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor("X", "FP32", shape or [1, len(values)], data=list(values))], **more}


def called(name: str, *values: float, model: str = "kept", **more: Any) -> Case:
    message = {
        "model_name": model,
        "inputs": [tensor("X", "FP32", [1, len(values)])],
        "raw_input_contents": [b64(floats(*values))],
        **more,
    }
    return Grpc(f"grpc cache: {name}", "ModelInfer", message)


def remembered() -> list[Case]:
    three = asked(1, 2, 3)
    sizes = [tensor("X", "FP32", [1, 3], parameters={"binary_data_size": 12})]
    return [
        get("cache: statistics at first", "/v2/models/kept/stats"),
        infer("cache: first", "kept", three),
        infer("cache: again", "kept", three),
        infer("cache: again with an id", "kept", {"id": "seven", **three}),
        get("cache: statistics of hits", "/v2/models/kept/stats"),
        infer("cache: other values", "kept", asked(1, 2, 4)),
        infer("cache: the first once more", "kept", three),
        binary("cache: binary in", "kept", {"inputs": sizes}, floats(1, 2, 3)),
        binary(
            "cache: binary in and out",
            "kept",
            {"inputs": sizes, "parameters": {"binary_data_output": True}},
            floats(1, 2, 3),
        ),
        called("the same", 1, 2, 3),
        called("the same with an id", 1, 2, 3, id="eight"),
        called("other values", 5, 6),
        called("those again", 5, 6),
        infer("cache: version given", "kept", three),
        post("cache: explicit version", "/v2/models/kept/versions/1/infer", three),
        infer("cache: a priority", "kept", {**three, "parameters": {"priority": 2}}),
        infer("cache: a time-out", "kept", {**three, "parameters": {"timeout": 1_000_000}}),
        infer("cache: classes of a hit", "kept", {**three, "outputs": CLASSES}),
        infer("cache: two rows", "kept", asked(9, 9, 9, 9, shape=[2, 2])),
        infer("cache: two rows again", "kept", asked(9, 9, 9, 9, shape=[2, 2])),
        get("cache: statistics of rows", "/v2/models/kept/stats"),
        Grpc("grpc cache: statistics", "ModelStatistics", {"name": "kept"}),
        infer("cache: a refused request", "kept", {"inputs": [tensor("X", "INT8", [1, 1], data=[1])]}),
    ]


def told_apart() -> list[Case]:
    """What Triton's key leaves out."""
    two = asked(20, 21)
    return [
        infer("cache: all outputs", "kept_batched", two),
        infer("cache: one output", "kept_batched", {**two, "outputs": [{"name": "Y"}]}),
        infer("cache: the other output", "kept_batched", {**two, "outputs": [{"name": "N"}]}),
        infer("cache: a parameter", "kept_batched", {**two, "parameters": {"mine": 1}}),
        infer("cache: one output, asked first", "kept_batched", {**asked(22), "outputs": [{"name": "Y"}]}),
        infer("cache: all outputs, asked then", "kept_batched", asked(22)),
        infer("cache: a shape", "kept_shapes", asked(9, 9, 9, 9, shape=[2, 2])),
        infer("cache: the same bytes in another shape", "kept_shapes", asked(9, 9, 9, 9, shape=[4, 1])),
        infer("cache: empty", "kept_empty", asked(shape=[1, 0])),
        infer("cache: empty again", "kept_empty", asked(shape=[1, 0])),
    ]


def failures() -> list[Case]:
    return [
        infer("cache: a value", "kept_failing", asked(1)),
        infer("cache: that again", "kept_failing", asked(1)),
        infer("cache: an error", "kept_failing", asked(-1)),
        infer("cache: the error again", "kept_failing", asked(-1)),
        get("cache: statistics with an error", "/v2/models/kept_failing/stats"),
    ]


def others() -> list[Case]:
    text = {"inputs": [tensor("TEXT", "BYTES", [2], data=["ab", "c"])]}
    cases: list[Case] = [
        infer("cache: text", "kept_text", text),
        infer("cache: text again", "kept_text", text),
        infer("cache: the same letters", "kept_text", {"inputs": [tensor("TEXT", "BYTES", [2], data=["a", "bc"])]}),
        binary("cache: binary text", "kept_text", {"inputs": [sized("TEXT", "BYTES", [2], 11)]}, strings(b"ab", b"c")),
        infer("cache: no cache", "forgotten", asked(1)),
        infer("cache: no cache, again", "forgotten", asked(1)),
        get("cache: statistics without a cache", "/v2/models/forgotten/stats"),
        infer("cache: off", "kept_off", asked(1)),
        infer("cache: off, again", "kept_off", asked(1)),
        post("cache: version 1", "/v2/models/kept_versions/versions/1/infer", asked(1)),
        post("cache: version 2", "/v2/models/kept_versions/versions/2/infer", asked(1)),
        post("cache: version 2 by default", "/v2/models/kept_versions/infer", asked(1)),
        get("cache: statistics of versions", "/v2/models/kept_versions/stats"),
    ]
    return cases + [get(f"cache: config of {name}", f"/v2/models/{name}/config") for name in ("kept", "kept_off")]


CASES: tuple[Case, ...] = (
    Http("http cache: index", "POST", "/v2/repository/index"),
    *remembered(),
    *told_apart(),
    *failures(),
    *others(),
    Page("cache: metrics", "kept", (), lookups=39),
)


def write(root: Path, oracle: bool) -> None:
    for name, config in MODELS.items():
        for version in ("1", "2") if name == "kept_versions" else ("1",):
            _write(root / name, version, MODEL, config)
    _write(root / "kept_text", "1", TEXT, TEXT_CONFIG + ON)


def _write(place: Path, version: str, code: str, config: str) -> None:
    (place / version).mkdir(parents=True)
    (place / version / "model.py").write_text(HEAD + code)
    (place / "config.pbtxt").write_text(config)
