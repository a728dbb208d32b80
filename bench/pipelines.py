"""The repositories' models for scheduling: a pipeline as an ensemble and as BLS, sequences, a cache, a queue delay."""

from __future__ import annotations

#: Every model's tensors: 16 floats in, 16 out.
TENSORS = """
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
"""
BATCHED = f"""
backend: "python"
max_batch_size: 64
{TENSORS}
"""

STEPS = ("step_a", "step_b", "step_c")
STEP_CONFIG = BATCHED + "dynamic_batching { }\n"
STEP = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor("OUTPUT0", pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() + 1)
                ]
            )
            for r in requests
        ]
"""


def _step(number: int) -> str:
    source = "INPUT0" if number == 0 else f"value_{number}"
    target = "OUTPUT0" if number == len(STEPS) - 1 else f"value_{number + 1}"
    return (
        f'{{ model_name: "{STEPS[number]}" model_version: -1 '
        f'input_map {{ key: "INPUT0" value: "{source}" }} output_map {{ key: "OUTPUT0" value: "{target}" }} }}'
    )


ENSEMBLE_CONFIG = f"""
platform: "ensemble"
max_batch_size: 64
{TENSORS}
ensemble_scheduling {{ step [ {", ".join(map(_step, range(len(STEPS))))} ] }}
"""

#: The three steps as their callers write them: one after the other, in the plain form that waits for each answer ...
BLS_CONFIG = BATCHED + "dynamic_batching { }\n"
BLS = f"""import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
        for step in {STEPS}:
            call = pb_utils.InferenceRequest(
                model_name=step,
                inputs=[pb_utils.Tensor("INPUT0", tensor.as_numpy())],
                requested_output_names=["OUTPUT0"],
            )
            response = call.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            tensor = pb_utils.get_output_tensor_by_name(response, "OUTPUT0")
        return pb_utils.InferenceResponse(output_tensors=[tensor])
"""
#: ... and with a coroutine per request, so that the requests of a batch wait together.
BLS_ASYNC = (
    BLS.replace("import triton", "import asyncio\n\nimport triton")
    .replace("    def execute", "    async def execute")
    .replace(
        "return [self.answer(request) for request in requests]",
        "return await asyncio.gather(*map(self.answer, requests))",
    )
    .replace("    def answer", "    async def answer")
    .replace("call.exec()", "await call.async_exec()")
)

#: A sum for each live sequence, kept by the model under the number of the sequence. Load generators leave sequences
#: unfinished behind: the next run finds their slots free.
SEQUENCE_CONFIG = (
    BATCHED
    + """
sequence_batching {
  max_sequence_idle_microseconds: 2000000
  oldest { max_candidate_sequences: 64 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""
)
SEQUENCE = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value, start, end, number = [
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "START", "END", "CORRID")
        ]
        key = int(number.reshape(-1)[0])
        total = value if start.reshape(-1)[0] else self.sums[key] + value
        if end.reshape(-1)[0]:
            self.sums.pop(key, None)
        else:
            self.sums[key] = total
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", total)])
"""

#: Every request is the same one: after the first, the server answers by itself.
CACHED_CONFIG = STEP_CONFIG + "response_cache { enable: true }\n"
#: [3, 224, 224] FP32, as a camera's or a web page's images come again.
CACHED_IMAGE_CONFIG = CACHED_CONFIG.replace("[ 16 ]", "[ 3, 224, 224 ]")
CACHE_FLAGS = ("--cache-config=local,size=67108864",)

#: A batch may wait for others for 5 ms.
DELAY_CONFIG = BATCHED + "dynamic_batching { max_queue_delay_microseconds: 5000 }\n"

MODELS = {
    **dict.fromkeys(STEPS, (STEP_CONFIG, STEP)),
    "ensemble": (ENSEMBLE_CONFIG, None),
    "bls": (BLS_CONFIG, BLS),
    "bls_async": (BLS_CONFIG, BLS_ASYNC),
    "sequence": (SEQUENCE_CONFIG, SEQUENCE),
    "cached": (CACHED_CONFIG, STEP),
    "cached_image": (CACHED_IMAGE_CONFIG, STEP),
    "delay": (DELAY_CONFIG, STEP),
}
#: Which others a model needs.
NEEDS = dict.fromkeys(("ensemble", "bls", "bls_async"), STEPS)
