"""Sequences: controls, slots, order, time-outs, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parity.cases import Case, Grpc, Http, Stream, b64, get, infer, tensor
from parity.models import HEAD

Message = dict[str, Any]

#: Keeps a sum per sequence and shows what it saw: controls, flags and the id by the API, rows of the execution.
ACCUMULATE = """class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = {t.name(): t.as_numpy() for t in request.inputs()}
            key = request.correlation_id()
            start = bool(request.flags() & 1)
            ready = not ("READY" in tensors and not tensors["READY"].any())
            if ready:
                before = 0 if start else self.sums.get(key, -1000)
                self.sums[key] = before + int(tensors["X"].sum())
            seen = {n: [str(t.dtype), list(t.shape), str(t.reshape(-1)[0])] for n, t in tensors.items() if n != "X"}
            seen.update(id=key, flags=request.flags(), rows=len(requests), ready=ready)
            text = json.dumps(seen, sort_keys=True)
            total = np.array([self.sums.get(key, -1)], dtype=np.int32)
            shape = [1, 1] if len(tensors["X"].shape) == 2 else [1]
            outputs = [
                pb_utils.Tensor("SUM", total.reshape(shape)),
                pb_utils.Tensor("SEEN", np.array([text], dtype=object).reshape(shape)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""
#: Takes twice the first value's milliseconds to answer with it.
NAP = """import time


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            time.sleep(int(x.reshape(-1)[0]) / 500)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("Y", x)]))
        return responses
"""
#: Counts down from the first value, one execution after the other, and answers how many there were.
COUNTDOWN = """class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = {t.name(): t.as_numpy() for t in request.inputs()}
            key = int(tensors["CORRID"].reshape(-1)[0])
            start = int(tensors["START"].reshape(-1)[0])
            if start:
                self.left[key] = [int(tensors["X"].reshape(-1)[0]), 0, []]
            state = self.left[key]
            state[0] -= 1
            state[1] += 1
            state[2].append([start, request.flags(), request.correlation_id() == key])
            if state[0] > 0:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
                continue
            outputs = [
                pb_utils.Tensor("SUM", np.array([[state[1]]], dtype=np.int32)),
                pb_utils.Tensor("SEEN", np.array([[json.dumps(state[2])]], dtype=object)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""
OUT = """
output [ { name: "SUM" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "SEEN" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
X = 'backend: "python"\ninput [ { name: "X" data_type: TYPE_INT32 dims: [ %s ] } ]\n'


def controls(kind: str, corrid: str = "") -> str:
    values = {"int32": "int32_false_true: [ 0, 1 ]", "fp32": "fp32_false_true: [ 0.5, 2 ]",
              "bool": "bool_false_true: [ false, true ]"}[kind]  # fmt: skip
    lines = [
        f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{name} {values} }} }}'
        for name in ("START", "END", "READY")
    ]
    if corrid:
        lines.append(
            f'control_input {{ name: "CORRID" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{corrid} }} }}'
        )
    return "\n".join(lines)


LONG = "max_sequence_idle_microseconds: 30000000\n"


def config(batch: int, inside: str, dims: str = "1") -> str:
    return X % dims + OUT + f"max_batch_size: {batch}\nsequence_batching {{ {inside} }}\n"


CONFIGS = {
    "direct": config(4, LONG + "direct { }\n" + controls("int32", "UINT64")),
    "oldest": config(4, LONG + "oldest { max_candidate_sequences: 8 }\n" + controls("fp32", "INT32")),
    "strings": config(4, LONG + "oldest { max_candidate_sequences: 4 }\n" + controls("bool", "STRING")),
    "small": config(0, LONG + "direct { }\n" + controls("bool", "UINT32")),
    "single": config(0, LONG + "oldest { max_candidate_sequences: 1 }\n" + controls("int32", "INT64"), "-1"),
    "bare": config(2, LONG),
    "open": config(4, LONG + "direct { }\n" + controls("int32"), "-1"),
    "counted": config(4, LONG + "direct { }\n" + controls("int32")),
    "counted_oldest": config(4, LONG + "oldest { max_candidate_sequences: 4 }\n" + controls("int32")),
    "brief": config(1, "max_sequence_idle_microseconds: 1500000\ndirect { }\n" + controls("int32")),
    "brief_oldest": config(
        1, "max_sequence_idle_microseconds: 1500000\noldest { max_candidate_sequences: 1 }\n" + controls("int32")
    ),
    "defaults": config(4, ""),
    "defaults_oldest": config(4, "oldest { max_candidate_sequences: 2 }"),
}
ITERATIVE = {
    "countdown": LONG + "iterative_sequence: true\ndirect { }\n" + controls("int32", "UINT64"),
    "countdown_oldest": LONG
    + "iterative_sequence: true\noldest { max_candidate_sequences: 4 }\n"
    + controls("int32", "UINT64"),
}
SLOW_CONFIG = config(1, "max_sequence_idle_microseconds: 500000\ndirect { }\n")
NAP_CONFIG = X % "1" + 'output [ { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] } ]\n'


def write(root: Path, triton: bool) -> None:
    del triton
    for name, text in CONFIGS.items():
        _write(root, name, text, ACCUMULATE)
    _write(root, "nap", NAP_CONFIG, NAP)
    _write(root, "slow", SLOW_CONFIG, "import time\n\n\n" + ACCUMULATE.replace(
        "        responses = []\n", "        time.sleep(1.2)\n        responses = []\n", 1))  # fmt: skip
    for name, inside in ITERATIVE.items():
        _write(root, name, config(4, inside), COUNTDOWN)


def _write(root: Path, name: str, text: str, source: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(text)
    (root / name / "1" / "model.py").write_text(HEAD + source)


def step(value: int = 1, shape: tuple[int, ...] = (1, 1), id: str = "", **parameters: object) -> dict[str, Any]:
    count = 1
    for size in shape:
        count *= size
    body: dict[str, Any] = {"inputs": [tensor("X", "INT32", list(shape), data=[value] * count)]}
    if id:
        body["id"] = id
    if parameters:
        body["parameters"] = parameters
    return body


def start(id: int | str) -> dict[str, object]:
    return {"sequence_id": id, "sequence_start": True}


def go_on(id: int | str) -> dict[str, object]:
    return {"sequence_id": id}


def end(id: int | str) -> dict[str, object]:
    return {"sequence_id": id, "sequence_end": True}


def message(model: str, value: int, id: str, shape: tuple[int, ...] = (1, 1), **given: object) -> Message:
    """One request of a stream. The sequence's id is a number or a string, `timeout` microseconds."""
    parameters = {}
    for key, each in given.items():
        kind = "bool_param" if isinstance(each, bool) else "int64_param" if isinstance(each, int) else "string_param"
        parameters[key] = {kind: each}
    count = 1
    for size in shape:
        count *= size
    return {
        "model_name": model,
        "id": id,
        "inputs": [tensor("X", "INT32", list(shape))],
        "raw_input_contents": [b64(struct.pack(f"<{count}i", *[value] * count))],
        "parameters": parameters,
    }


def nap(ms: int, why: str) -> Http:
    return infer(why, "nap", step(ms, (1,)))


def whole(model: str, id: int | str, shape: tuple[int, ...] = (1, 1)) -> Iterator[Case]:
    """START, two more, END, and one that comes too late."""
    yield infer(f"start of {id!r}", model, step(5, shape, **start(id)))
    yield infer(f"second of {id!r}", model, step(7, shape, **go_on(id)))
    yield infer(f"third of {id!r}", model, step(-2, shape, **go_on(id)))
    yield infer(f"end of {id!r}", model, step(100, shape, **end(id)))
    yield infer(f"after the end of {id!r}", model, step(1, shape, **go_on(id)))


def lives() -> Iterator[Case]:
    for model in ("direct", "oldest", "bare"):
        yield from whole(model, 7)
        yield infer("start and end in one", model, step(9, **start(8), sequence_end=True))
        yield infer("after start and end in one", model, step(9, **go_on(8)))
        yield infer("start", model, step(1, **start(9)))
        yield infer("start again", model, step(2, **start(9)))
        yield infer("after the second start", model, step(3, **go_on(9)))
        yield infer("end", model, step(4, **end(9)))
    for model in ("small", "single"):
        yield from whole(model, 3, (1,))
    # The recorded release fails for shorter ones.
    yield from whole("strings", "n" * 128)


def identifiers() -> Iterator[Case]:
    for name in (1, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1):
        yield infer(f"id {name}", "direct", step(1, **start(name), sequence_end=True))
        yield infer(f"id {name}", "oldest", step(1, **start(name), sequence_end=True))
        yield infer(f"id {name}", "small", step(1, (1,), **start(name), sequence_end=True))
        yield infer(f"id {name}", "bare", step(1, **start(name), sequence_end=True))
    yield infer("string id", "bare", step(1, **start("ann"), sequence_end=True))
    yield infer("string id for a number", "direct", step(1, **start("ann"), sequence_end=True))
    yield infer("string id for a number, with an id", "direct", step(1, id="r", **start("ann"), sequence_end=True))
    yield infer("string of digits for a number", "direct", step(1, **start("12"), sequence_end=True))
    yield infer("string id for 32 bits", "oldest", step(1, **start("ann"), sequence_end=True))
    yield infer("short string id", "strings", step(1, **start("ann"), sequence_end=True))
    yield infer("number for a string", "strings", step(1, **start(12), sequence_end=True))
    yield infer("empty string", "strings", step(1, **start("")))
    yield infer("id of 128 characters", "strings", step(1, **start("x" * 128), sequence_end=True))
    yield infer("id of 129 characters", "strings", step(1, **start("x" * 129), sequence_end=True))


def refused() -> Iterator[Case]:
    for model in ("direct", "oldest"):
        yield infer("no id", model, step(1))
        yield infer("no id, with a request id", model, step(1, id="r"))
        yield infer("id 0", model, step(1, **start(0)))
        yield infer("no start", model, step(1, **go_on(55)))
        yield infer("no start, with a request id", model, step(1, id="r", **go_on(55)))
        yield infer("end without start", model, step(1, **end(55)))
        yield infer("batch of two", model, step(1, (2, 1), **start(56)))
        yield infer("batch of two, with a request id", model, step(1, (2, 1), id="r", **start(56)))
        yield infer("batch of two, no id", model, step(1, (2, 1)))
        yield infer("batch too large", model, step(1, (9, 1), **start(56)))
    yield infer("no start, string", "strings", step(1, **go_on("nobody")))
    for name in ("direct", "oldest", "strings", "small", "defaults", "defaults_oldest"):
        yield get(f"metadata {name}", f"/v2/models/{name}")
        yield get(f"config {name}", f"/v2/models/{name}/config")
    yield get("extensions", "/v2")


def rows() -> Iterator[Case]:
    """Slots of the direct strategy are rows: those without a request are there, and not ready."""
    yield infer("first sequence", "direct", step(1, **start(101)))
    yield infer("second sequence", "direct", step(2, **start(102)))
    yield infer("third sequence", "direct", step(3, **start(103)))
    yield infer("second again", "direct", step(10, **go_on(102)))
    yield infer("first ends", "direct", step(10, **end(101)))
    yield infer("a fourth gets the slot of the first", "direct", step(4, **start(104)))
    yield infer("third ends", "direct", step(10, **end(103)))
    yield infer("fourth ends", "direct", step(10, **end(104)))
    yield infer("second ends", "direct", step(10, **end(102)))
    yield infer("first shape", "open", step(1, (1, 2), **start(1)))
    yield infer("second shape", "open", step(2, (1, 3), **start(2)))
    yield infer("first goes on", "open", step(1, (1, 4), **end(1)))
    yield infer("second goes on", "open", step(1, (1, 1), **end(2)))
    for model in ("counted", "counted_oldest"):
        yield infer("one", model, step(1, **start(1)))
        yield infer("two", model, step(1, **start(2)))
        yield infer("two ends", model, step(1, **end(2)))
        yield infer("refused", model, step(1, **go_on(2)))
        yield infer("one ends", model, step(1, **end(1)))
        yield get(f"statistics {model}", f"/v2/models/{model}/stats")


def idle() -> Iterator[Case]:
    for model in ("brief", "brief_oldest"):
        yield infer("start", model, step(1, **start(1)))
        yield nap(20, f"short nap, {model}")
        yield infer("in time", model, step(1, **go_on(1)))
        yield nap(1200, f"long nap, {model}")
        yield infer("too late", model, step(1, **go_on(1)))
        yield infer("new start", model, step(4, **start(1)))
        yield nap(1200, f"second long nap, {model}")
        yield infer("another sequence gets the slot", model, step(5, **start(2)))
        yield infer("and ends", model, step(5, **end(2)))
        yield infer("nobody is left", model, step(5, **go_on(1)))


def slow() -> Iterator[Case]:
    """Executions take longer than a sequence may be idle."""
    yield infer("start", "slow", step(1, **start(1)))
    yield infer("next", "slow", step(2, **go_on(1)))
    yield infer("end", "slow", step(3, **end(1)))


def streams() -> Iterator[Case]:
    def talk(name: str, *messages: Message) -> Stream:
        return Stream(f"grpc sequences {name}", messages, by_id=True)

    for model in ("direct", "oldest"):
        yield Grpc(f"grpc one request, {model}", "ModelInfer",
                   message(model, 3, "a", **start(31), sequence_end=True))  # fmt: skip
        yield Grpc(f"grpc no start, {model}", "ModelInfer", message(model, 3, "a", **go_on(31)))
        yield talk(f"one after the other, {model}",
                   message(model, 1, "1", **start(41)), message(model, 2, "2", **go_on(41)),
                   message(model, 3, "3", **end(41)))  # fmt: skip
    for model in ("single", "brief"):
        shape = (1,) if model == "single" else (1, 1)
        yield talk(f"a second sequence waits in the backlog, {model}",
                   message(model, 1, "1", shape, **start(51)), message(model, 10, "2", shape, **start(52)),
                   message(model, 2, "3", shape, **go_on(51)), message(model, 20, "4", shape, **go_on(52)),
                   message(model, 3, "5", shape, **end(51)), message(model, 30, "6", shape, **end(52)))  # fmt: skip
        yield talk(f"three in turn, {model}",
                   *[message(model, n, f"{n}", shape, **start(60 + n), sequence_end=True)
                     for n in (1, 2, 3)])  # fmt: skip
        yield talk(f"an id is used again while it waits, {model}",
                   message(model, 1, "1", shape, **start(51)), message(model, 10, "2", shape, **start(52)),
                   message(model, 20, "3", shape, **end(52)), message(model, 30, "4", shape, **start(52)),
                   message(model, 40, "5", shape, **end(52)), message(model, 3, "6", shape, **end(51)))  # fmt: skip
    yield talk("no start", message("oldest", 1, "1", **go_on(99)))
    yield talk("no id", message("oldest", 1, "1"))
    yield Stream("grpc sequences time-out in the backlog",
                 (message("single", 1, "1", (1,), **start(71)),
                  message("single", 10, "2", (1,), **start(72), timeout=100_000),
                  message("single", 11, "3", (1,), **go_on(72)),
                  message("nap", 600, "4", (1,)),
                  ))  # fmt: skip
    yield infer("what timed out is gone", "single", step(1, (1,), **go_on(72)))
    yield infer("what held the slot goes on", "single", step(1, (1,), **end(71)))


def iterative() -> Iterator[Case]:
    for model in ITERATIVE:
        yield infer("once", model, step(1))
        yield infer("four times", model, step(4))
        yield infer("with an id", model, step(3, **start(5)))
        yield infer("with an id that goes on", model, step(3, **go_on(5)))


CASES: tuple[Case, ...] = (
    *lives(), *identifiers(), *refused(), *rows(), *idle(), *slow(), *streams(), *iterative(),
)  # fmt: skip
