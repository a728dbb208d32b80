"""The pipeline in Python: each step is a request to another model of the server (business logic scripting)."""

import asyncio

import triton_python_backend_utils as pb_utils

#: Model, what its input is called, and its output.
STEPS = (("decode", "image", "pixels"), ("features", "x", "features"), ("judge", "input__0", "output__0"))


class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*[self._answer(request) for request in requests])

    async def _answer(self, request):
        tensor = pb_utils.get_input_tensor_by_name(request, "image")
        for model, given, wanted in STEPS:
            step = pb_utils.InferenceRequest(
                model_name=model,
                inputs=[pb_utils.Tensor.from_dlpack(given, tensor) if tensor.name() != given else tensor],
                requested_output_names=[wanted],
            )
            response = await step.async_exec()
            if response.has_error():
                return pb_utils.InferenceResponse([], response.error())
            tensor = pb_utils.get_output_tensor_by_name(response, wanted)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("probabilities", tensor)])
