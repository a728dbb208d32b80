"""The repository that both servers get: small models that show one behaviour each.

The real Triton that pip can install has no ONNX backend. Where Conch gets an ONNX file, Triton gets a Python model of
the same name, tensors and config.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

HEAD = """import json
import numpy as np
import triton_python_backend_utils as pb_utils


"""

ADD_SUB = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            a = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            b = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
            outputs = [pb_utils.Tensor("OUTPUT0", a + b), pb_utils.Tensor("OUTPUT1", a - b)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
"""

ADD_SUB_CONFIG = """
backend: "python"
max_batch_size: 4
input [
  { name: "INPUT0" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "INPUT1" data_type: TYPE_FP32 dims: [ 3 ] }
]
output [
  { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ 3 ] }
]
dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100 }
"""

#: Answers each input INPUT_<TYPE> with an output OUTPUT_<TYPE>.
IDENTITY = """class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(t.name().replace("INPUT", "OUTPUT"), t.as_numpy()) for t in r.inputs()]
            )
            for r in requests
        ]
"""

TYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "STRING",
)  # fmt: skip

IDENTITY_CONFIG = 'backend: "python"\nmax_batch_size: 0\n' + "".join(
    f'input [ {{ name: "INPUT_{t}" data_type: TYPE_{t} dims: [ -1 ] optional: true }} ]\n'
    f'output [ {{ name: "OUTPUT_{t}" data_type: TYPE_{t} dims: [ -1 ] }} ]\n'
    for t in TYPES
)

#: Upper-cases text; two rows of two.
TEXT = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            upper = np.array([t.upper() for t in text.reshape(-1)], dtype=object).reshape(text.shape)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("UPPER", upper)]))
        return responses
"""

TEXT_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 2 ] } ]
output [ { name: "UPPER" data_type: TYPE_STRING dims: [ 2 ] } ]
"""

#: One BYTES element, for raw requests.
LINE = TEXT
LINE_CONFIG = """
backend: "python"
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "UPPER" data_type: TYPE_STRING dims: [ 1 ] } ]
"""

#: No config.pbtxt: the model says all.
AUTO = """class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [2]})
        config.add_output({"name": "Y", "data_type": "TYPE_INT32", "dims": [2]})
        config.set_max_batch_size(8)
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(r, "X").as_numpy() * 2)]
            )
            for r in requests
        ]
"""

#: Answers which version it is.
VERSION = """class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        answer = np.array([self.version], dtype=np.int64)
        return [pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("VERSION", answer)]) for _ in requests]
"""

VERSION_CONFIG = """
backend: "python"
version_policy { all { } }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "VERSION" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""

SIMPLE_CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""

COUNTED = """class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(r, "X").as_numpy())]
            )
            for r in requests
        ]
"""

RAISES = """class TritonPythonModel:
    def execute(self, requests):
        raise ValueError("the model says no")
"""

#: Triton makes TritonError known only after the module is imported, so the codes are looked up per call.
ERRORS = """NAMES = "UNKNOWN INTERNAL NOT_FOUND INVALID_ARG UNAVAILABLE UNSUPPORTED ALREADY_EXISTS CANCELLED".split()


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            which = int(pb_utils.get_input_tensor_by_name(request, "X").as_numpy()[0])
            error = pb_utils.TritonError("error of kind %d" % which, getattr(pb_utils.TritonError, NAMES[which]))
            responses.append(pb_utils.InferenceResponse(output_tensors=[], error=error))
        return responses
"""

ERRORS_CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""

MISCOUNT = """class TritonPythonModel:
    def execute(self, requests):
        return []
"""

NOT_A_LIST = """class TritonPythonModel:
    def execute(self, requests):
        return "responses"
"""

WRONG_ITEM = """class TritonPythonModel:
    def execute(self, requests):
        return ["response" for _ in requests]
"""

#: Answers what it saw of the request: id, parameters, names of the outputs asked for.
SEEN = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seen = {
                "id": request.request_id(),
                "parameters": json.loads(request.parameters() or "{}"),
                "outputs": sorted(request.requested_output_names()),
                "correlation_id": request.correlation_id(),
                "flags": request.flags(),
                "timeout": request.timeout(),
            }
            text = np.array([json.dumps(seen, sort_keys=True).encode()], dtype=object)
            size = np.array([7], dtype=np.int32)
            responses.append(
                pb_utils.InferenceResponse(
                    output_tensors=[pb_utils.Tensor("SEEN", text), pb_utils.Tensor("SIZE", size)]
                )
            )
        return responses
"""

SEEN_CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "SEEN" data_type: TYPE_STRING dims: [ 1 ] }, { name: "SIZE" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""

#: A batch dimension and nothing else: dims [1], which the model sees as [].
RESHAPE = COUNTED
RESHAPE_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } } ]
"""

#: Says yes to a variable dimension beside a fixed one, and batches.
WIDE_CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_INT16 dims: [ 2, -1 ] } ]
output [ { name: "Y" data_type: TYPE_INT16 dims: [ 2, -1 ] } ]
dynamic_batching { }
"""

#: y = 2x + 1: the ONNX model, and what Triton gets in its place.
LINEAR_CONFIG = """
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""

LINEAR = """class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(r, "x").as_numpy() * 2 + 1)]
            )
            for r in requests
        ]
"""

FAILS = """class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("no weights today")

    def execute(self, requests):
        return []
"""

#: Decoupled: one response per element of IN, each with its index. A negative element is an error instead. Where
#: LAST is true the last response is the final one; else an empty final follows.
REPEAT = """class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)
            last = pb_utils.get_input_tensor_by_name(request, "LAST")
            sender = request.get_response_sender()
            for index, value in enumerate(values):
                if value < 0:
                    error = pb_utils.TritonError("no answer to %d" % value, pb_utils.TritonError.NOT_FOUND)
                    response = pb_utils.InferenceResponse(output_tensors=[], error=error)
                else:
                    out = pb_utils.Tensor("OUT", np.array([value], dtype=np.int32))
                    idx = pb_utils.Tensor("IDX", np.array([index], dtype=np.uint32))
                    response = pb_utils.InferenceResponse(output_tensors=[out, idx])
                final = last is not None and last.as_numpy()[0] and index == len(values) - 1
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
            if last is None or not last.as_numpy()[0] or not len(values):
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

REPEAT_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [
  { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] },
  { name: "LAST" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
]
output [
  { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "IDX" data_type: TYPE_UINT32 dims: [ 1 ] }
]
"""

#: X under several types, for classification; only three of the four classes have a label.
CLASSES = """KINDS = {
    "SCORES": np.float32, "WHOLE": np.int32, "TINY": np.uint8, "DOUBLE": np.float64, "HALF": np.float16, "FLAG": bool
}


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            wanted = request.requested_output_names()
            tensors = [pb_utils.Tensor(n, x.astype(t)) for n, t in KINDS.items() if n in wanted]
            if "GRID" in wanted:
                tensors.append(pb_utils.Tensor("GRID", x.reshape(-1, 2, 2)))
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""

CLASSES_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  { name: "SCORES" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" },
  { name: "WHOLE" data_type: TYPE_INT32 dims: [ 4 ] label_filename: "labels.txt" },
  { name: "TINY" data_type: TYPE_UINT8 dims: [ 4 ] },
  { name: "DOUBLE" data_type: TYPE_FP64 dims: [ 4 ] },
  { name: "HALF" data_type: TYPE_FP16 dims: [ 4 ] },
  { name: "FLAG" data_type: TYPE_BOOL dims: [ 4 ] },
  { name: "GRID" data_type: TYPE_FP32 dims: [ 2, 2 ] label_filename: "labels.txt" }
]
"""

LABELS = "cat\ndog\nthe quick: \u00e9 fox\n"

#: A language model's tensors, for generate: the answer is the prompt `max_tokens` times; parameters are echoed.
CHAT = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            prompt = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)
            times = pb_utils.get_input_tensor_by_name(request, "max_tokens")
            times = 1 if times is None else int(times.as_numpy().reshape(-1)[0])
            text = np.array([p * times for p in prompt], dtype=object)
            seen = json.dumps(json.loads(request.parameters() or "{}"), sort_keys=True).encode()
            responses.append(
                pb_utils.InferenceResponse(
                    output_tensors=[
                        pb_utils.Tensor("text_output", text),
                        pb_utils.Tensor("seen", np.array([seen], dtype=object)),
                    ]
                )
            )
        return responses
"""

CHAT_CONFIG = """
backend: "python"
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "max_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "seen" data_type: TYPE_STRING dims: [ 1 ] }
]
"""
#: The same without a tensor that has the name of generate's keyword.
PLAIN_CHAT_CONFIG = CHAT_CONFIG.replace(
    """,
  { name: "parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }""",
    "",
)

#: Two open dimensions.
GRID_CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_INT8 dims: [ -1, -1 ] } ]
output [ { name: "Y" data_type: TYPE_INT8 dims: [ -1, -1 ] } ]
"""

PYTHON_MODELS = {
    "add_sub": (ADD_SUB, ADD_SUB_CONFIG),
    "types": (IDENTITY, IDENTITY_CONFIG),
    "text": (TEXT, TEXT_CONFIG),
    "line": (LINE, LINE_CONFIG),
    "auto": (AUTO, None),
    "counted": (COUNTED, SIMPLE_CONFIG),
    "raises": (RAISES, SIMPLE_CONFIG),
    "errors": (ERRORS, ERRORS_CONFIG),
    "miscount": (MISCOUNT, SIMPLE_CONFIG),
    "not_a_list": (NOT_A_LIST, SIMPLE_CONFIG),
    "wrong_item": (WRONG_ITEM, SIMPLE_CONFIG),
    "seen": (SEEN, SEEN_CONFIG),
    "reshape": (RESHAPE, RESHAPE_CONFIG),
    "wide": (COUNTED, WIDE_CONFIG),
    "repeat": (REPEAT, REPEAT_CONFIG),
    "classes": (CLASSES, CLASSES_CONFIG),
    "chat": (CHAT, PLAIN_CHAT_CONFIG),
    "chat_parameters": (CHAT, CHAT_CONFIG),
    "grid": (COUNTED, GRID_CONFIG),
}

#: Present in the explicit repository only: a server that must load all its models would not start.
BROKEN_MODELS = {
    "fails": (FAILS, SIMPLE_CONFIG),
    "bad_syntax": (COUNTED, 'backend: "python"\ninput [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] \n'),
    "bad_field": (COUNTED, SIMPLE_CONFIG + "no_such_field: 1\n"),
    "bad_name": (COUNTED, 'name: "other"\n' + SIMPLE_CONFIG),
    "bad_dims": (COUNTED, SIMPLE_CONFIG.replace("[ -1 ]", "[ 0 ]")),
}


def write_repository(root: Path, oracle: bool, *, broken: bool = False, only: Sequence[str] | None = None) -> None:
    """Writes the models under `root`: all, or `only` some Python models.

    `oracle` for the real Triton, `broken` adds the models that cannot load.
    """
    for name, (code, config) in {**PYTHON_MODELS, **(BROKEN_MODELS if broken else {})}.items():
        if only is None or name in only:
            write_python(root / name, [1], code, config)
    if only is None or "classes" in only:
        (root / "classes" / "labels.txt").write_text(LABELS)
    if only is not None:
        return
    write_python(root / "versions", [1, 3, 10], VERSION, VERSION_CONFIG)
    if oracle:
        write_python(root / "linear", [1], LINEAR, 'backend: "python"\n' + LINEAR_CONFIG)
    else:
        (root / "linear" / "1").mkdir(parents=True)
        (root / "linear" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\n' + LINEAR_CONFIG)
        (root / "linear" / "1" / "model.onnx").write_bytes(linear_onnx())


def write_python(place: Path, versions: list[int], code: str, config: str | None) -> None:
    for version in versions:
        (place / str(version)).mkdir(parents=True)
        (place / str(version) / "model.py").write_text(HEAD + code)
    if config is not None:
        (place / "config.pbtxt").write_text(config)


def linear_onnx() -> bytes:
    """y = 2x + 1 for x of shape [batch, 3]."""
    from onnx import TensorProto, helper

    shape = ["batch", 3]
    constant = [helper.make_tensor(n, TensorProto.FLOAT, [1], [v]) for n, v in (("two", 2.0), ("one", 1.0))]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["scaled"]), helper.make_node("Add", ["scaled", "one"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constant,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())
