"""Reloads that are told apart by clients: sequences under way, loads that fail, unloads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from parity.cases import Case, Http, infer, post, tensor
from parity.models import HEAD
from parity.polling import Change

FLAGS = ("--model-control-mode=explicit", "--load-model=summed")
SOURCE = (
    HEAD
    + """class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            x = int(pb_utils.get_input_tensor_by_name(request, "X").as_numpy()[0])
            key = request.correlation_id()
            self.sums[key] = NUMBER if request.flags() & 1 else self.sums[key] + x
            total = np.array([self.sums[key]], dtype=np.int32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", total)]))
        return answers
"""
)
CONFIG = """backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] } ]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 4 }
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
}
"""


def write(root: Path, real: bool) -> None:
    folder = root / "summed"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(SOURCE.replace("NUMBER", "1000"))


def send(name: str, id: int, value: int = 1, **flags: bool) -> Http:
    parameters = {"sequence_id": id, **flags}
    body = {"inputs": [tensor("X", "INT32", [1], data=[value])], "parameters": parameters}
    return infer(f"reload, {name}", "summed", body)


def load(name: str) -> Http:
    return post(f"reload: {name}", "/v2/repository/models/summed/load", {})


def files(name: str, source: str) -> Change:
    return Change(f"reload: {name} are written", partial(_put, source=source))


def _put(root: Path, source: str) -> None:
    (root / "summed" / "1" / "model.py").write_text(source)


def index(name: str) -> Http:
    return post(f"reload: index {name}", "/v2/repository/index", {})


CASES: tuple[Case, ...] = (
    send("first begins", 1, sequence_start=True),
    send("first goes on", 1),
    files("new files", SOURCE.replace("NUMBER", "2000")),
    load("new files"),
    index("after new files"),
    send("first goes on after it", 1),
    send("second begins after it", 2, sequence_start=True),
    send("first ends after it", 1, sequence_end=True),
    send("first goes on after its end", 1),
    send("second ends", 2, sequence_end=True),
    files("broken files", SOURCE.replace("self.sums = {}", 'raise ValueError("not today")')),
    load("broken files"),
    index("after broken files"),
    send("third begins after broken files", 3, sequence_start=True),
    files("good files", SOURCE.replace("NUMBER", "3000")),
    load("good files"),
    index("after good files"),
    send("fourth begins", 4, sequence_start=True),
    post("reload: unload under a sequence", "/v2/repository/models/summed/unload", {}),
    send("fourth goes on after the unload", 4),
)
