"""Python models that call other models, keep metrics, and release requests to be run again.

Refusals of metrics and of loading are not among the cases: the recorded release now and then aborts over them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from parity.cases import Case, infer, tensor
from parity.models import HEAD

#: Runs the code in its input "CODE" with `request` in reach, and answers with the text of its variable `answer`.
#: The code may `await`.
SCRIPT = """import asyncio


def call(name="double", value=(1, 2), outputs=("OUT",), inputs=None, **more):
    if inputs is None:
        inputs = [pb_utils.Tensor("IN", np.array([value], dtype=np.float32))]
    return pb_utils.InferenceRequest(model_name=name, requested_output_names=list(outputs), inputs=inputs, **more)


def show(response):
    if response.has_error():
        return "error: " + response.error().message()
    return [
        [t.name(), str(t.as_numpy().dtype), list(t.as_numpy().shape), t.as_numpy().tolist()]
        for t in response.output_tensors()
    ]


def shown(thing, *arguments, **keywords):
    try:
        return str(thing(*arguments, **keywords))
    except Exception as error:
        return type(error).__name__ + ": " + str(error)


class TritonPythonModel:
    def initialize(self, args):
        self.kept = {}
        self.early = shown(lambda: call().exec())

    async def execute(self, requests):
        responses = []
        for request in requests:
            code = pb_utils.get_input_tensor_by_name(request, "CODE").as_numpy()[0].decode()
            names = {**globals(), "request": request, "kept": self.kept, "early": self.early}
            exec("async def run():\\n" + "".join("    " + line + "\\n" for line in code.splitlines()), names)
            answer = await names["run"]()
            tensor = pb_utils.Tensor("ANSWER", np.array([str(answer).encode()], dtype=object))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
"""

SCRIPT_CONFIG = """
backend: "python"
input [ { name: "CODE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "ANSWER" data_type: TYPE_STRING dims: [ 1 ] } ]
"""

DOUBLE = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if (value < -8).any():
                raise ValueError("too small")
            if (value < 0).any():
                code = int(-value.min())
                codes = ["UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED",
                         "ALREADY_EXISTS", "CANCELLED"]
                error = pb_utils.TritonError("negative", getattr(pb_utils.TritonError, codes[code - 1]))
                responses.append(pb_utils.InferenceResponse([], error=error))
                continue
            outputs = [pb_utils.Tensor("OUT", value * 2), pb_utils.Tensor("ALSO", value + 1)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""

DOUBLE_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }, { name: "ALSO" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""

#: Answers with what it was told about the request.
TOLD = """class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for r in requests:
            told = [r.request_id(), r.correlation_id(), r.flags(), r.timeout(), json.loads(r.parameters()),
                    sorted(r.requested_output_names())]
            tensor = pb_utils.Tensor("TOLD", np.array([[json.dumps(told).encode()]], dtype=object))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
"""

TOLD_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "TOLD" data_type: TYPE_STRING dims: [ 1 ] } ]
"""

#: As many responses as its input says, then a final one.
COUNT = """class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
            sender = request.get_response_sender()
            for number in range(count):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([number], np.int32))]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

COUNT_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""

#: Releases every request to be run again, and answers it all the same.
AGAIN_TOO = """class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        tensor = pb_utils.Tensor("Y", np.zeros(1, np.float32))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]
"""

AGAIN_CONFIG = """
backend: "python"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""

#: Counts down from its input, one run at a time, and answers with the number of runs.
ITERATIVE = """class TritonPythonModel:
    def initialize(self, args):
        self.runs = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            start = int(pb_utils.get_input_tensor_by_name(request, "X").as_numpy()[0])
            key = request.correlation_id()
            runs = self.runs[key] = self.runs.get(key, 0) + 1
            if runs < start:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
                continue
            del self.runs[key]
            tensor = pb_utils.Tensor("Y", np.array([runs], np.float32))
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
"""

ITERATIVE_CONFIG = AGAIN_CONFIG + "sequence_batching { iterative_sequence: true }\n"

MODELS = {
    "script": (SCRIPT, SCRIPT_CONFIG),
    "double": (DOUBLE, DOUBLE_CONFIG),
    "told": (TOLD, TOLD_CONFIG),
    "count": (COUNT, COUNT_CONFIG),
    "again_too": (AGAIN_TOO, AGAIN_CONFIG),
    "iterative": (ITERATIVE, ITERATIVE_CONFIG),
}


def write(folder: Path, triton: bool) -> None:
    for name, (source, config) in MODELS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(HEAD + source)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')


def script(name: str, code: str) -> Case:
    return infer(name, "script", {"inputs": [tensor("CODE", "BYTES", [1], data=[textwrap.dedent(code).strip()])]})


def number(model: str, name: str, value: float) -> Case:
    return infer(name, model, {"inputs": [tensor("X", "FP32", [1], data=[value])]})


def calls() -> list[Case]:
    return [
        script("exec", "return show(call().exec())"),
        script("exec, all outputs", "return show(call(outputs=()).exec())"),
        script("exec, outputs in another order", "return show(call(outputs=('ALSO', 'OUT')).exec())"),
        script("exec, a version", "return show(call(model_version=1).exec())"),
        script("exec, an unknown version", "return show(call(model_version=7).exec())"),
        script("exec, an unknown model", "return show(call('nobody').exec())"),
        script("exec, an unknown output", "return show(call(outputs=['NONE']).exec())"),
        script("exec, no inputs", "return show(call(inputs=[]).exec())"),
        script(
            "exec, an unknown input", "return show(call(inputs=[pb_utils.Tensor('X', np.zeros((1, 1), 'f'))]).exec())"
        ),
        script("exec, a wrong type", "return show(call(inputs=[pb_utils.Tensor('IN', np.zeros((1, 1), 'i'))]).exec())"),
        script("exec, a wrong shape", "return show(call(inputs=[pb_utils.Tensor('IN', np.zeros(1, 'f'))]).exec())"),
        script(
            "exec, too many rows", "return show(call(inputs=[pb_utils.Tensor('IN', np.zeros((5, 1), 'f'))]).exec())"
        ),
        *(
            script(
                f"exec, the model's error {code}",
                f"r = call(value=(-{code},)).exec()\nreturn r.has_error(), r.error().message()",
            )
            for code in range(1, 9)
        ),
        script("exec, an exception", "return 'ValueError: too small' in call(value=(-9,)).exec().error().message()"),
        script("exec, twice with one request", "r = call()\nreturn show(r.exec()), show(r.exec())"),
        script(
            "exec, outputs of one as inputs of the next",
            "a = call().exec().output_tensors()[0]\n"
            "return show(call(inputs=[pb_utils.Tensor('IN', a.as_numpy())]).exec())",
        ),
        script("exec, large", "r = call(value=[3] * 100000).exec()\nreturn r.output_tensors()[0].as_numpy().sum()"),
        script("exec, in initialize", "return early"),
        script("async_exec", "return show(await call().async_exec())"),
        script(
            "async_exec, many",
            "rs = await asyncio.gather(*(call(value=(n,)).async_exec() for n in range(20)))\n"
            "return [r.output_tensors()[0].as_numpy().tolist() for r in rs]",
        ),
        script("async_exec, an unknown model", "return show(await call('nobody').async_exec())"),
    ]


def streams() -> list[Case]:
    count = "def count(n, **k):\n    return call('count', inputs=[pb_utils.Tensor('IN', np.array([n], 'i'))], **k)\n"
    return [
        *(
            script(f"decoupled, {n} responses", count + f"return [show(r) for r in count({n}).exec(decoupled=True)]")
            for n in (0, 1, 3)
        ),
        script("decoupled, async", count + "return [show(r) for r in await count(3).async_exec(decoupled=True)]"),
        script("decoupled, iterated twice",
               count + "it = count(2).exec(decoupled=True)\nreturn [len(list(it)), len(list(it))]"),
        script("decoupled, not said so", count + "return show(count(2).exec())"),
        script("decoupled, of a model that is not", "return [show(r) for r in call().exec(decoupled=True)]"),
        script("decoupled, an unknown model", "return [show(r) for r in call('nobody').exec(decoupled=True)]"),
    ]  # fmt: skip


def requests() -> list[Case]:
    def told(name: str, **arguments: Any) -> Case:
        keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return script(
            f"told, {name}",
            f"return call('told', outputs=['TOLD'], {keywords}).exec().output_tensors()[0].as_numpy()[0, 0].decode()",
        )

    return [
        told("nothing"),
        told("an id", request_id="a b"),
        told("a correlation id and flags", correlation_id=7, flags=1),
        told("a correlation id of letters", correlation_id="seven", flags=2),
        told("a timeout", timeout=1_000_000),
        told("parameters", parameters={"a": 1, "b": True, "c": "\u00e4", "d": -5}),
        script("own parameters", "return call(parameters={'a': 1, 'b': True, 'c': 'x'}).parameters()"),
        script("own attributes", "r = call(request_id='i', correlation_id=3, flags=1, timeout=9)\n"
               "return r.request_id(), r.correlation_id(), r.flags(), r.timeout(), sorted(r.requested_output_names())"),
        script("empty input", "return shown(call, inputs=[None])"),
        script("empty output name", "return shown(call, outputs=[''], request_id='r')"),
        script("a correlation id of another kind", "return shown(call, correlation_id=1.5)"),
        script("parameters of another kind", "return shown(call, parameters={'a': [1]})"),
        script("parameters with other keys", "return shown(call, parameters={1: 1})"),
        script("trace", "return call().trace().get_context(), request.trace().get_context()"),
        script("preferred memory",
               "m = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)\n"
               "return show(call(preferred_memory=m).exec())"),
        script("ready", "return [pb_utils.is_model_ready(n) for n in ('double', 'nobody')]"),
        script("ready, versions", "return [pb_utils.is_model_ready('double', v) for v in ('1', '3')]"),
        script("load, files of another kind", "return shown(pb_utils.load_model, 'double', files=[1])"),
    ]  # fmt: skip


def metrics() -> list[Case]:
    make = (
        "F = pb_utils.MetricFamily\ndef make(kind, name='own_' ):\n    return F(name + kind.name, 'what it is', kind)\n"
    )
    return [
        script("metric, counter",
               make + "kept['c'] = f = make(F.COUNTER)\nm = f.Metric(labels={'a': 'b'})\nkept['m'] = m\n"
               "m.increment(2)\nm.increment(0.5)\nreturn m.value()"),
        script("metric, counter again", make + "f = make(F.COUNTER)\nreturn f.Metric(labels={'a': 'b'}).value()"),
        script("metric, counter with other labels",
               make + "f = make(F.COUNTER)\nreturn f.Metric(labels={'a': 'c'}).value()"),
        script("metric, gauge",
               make + "f = make(F.GAUGE)\nm = f.Metric()\nm.set(5)\nm.increment(-7)\nreturn m.value()"),
        script("metric, buckets of a counter", make + "f = make(F.COUNTER)\nreturn shown(f.Metric, buckets=[1.0])"),
        script("metric, labels of another kind", make + "f = make(F.COUNTER)\nreturn shown(f.Metric, labels=[1])"),
        script("metric, family gone", make + "m = make(F.COUNTER, 'gone').Metric()\nreturn shown(m.increment, 1)"),
    ]  # fmt: skip


CASES: list[Case] = [
    *calls(),
    *streams(),
    *requests(),
    *metrics(),
    number("again_too", "released, with a response", 1),
    number("iterative", "three runs", 3),
    number("iterative", "one run", 1),
]
