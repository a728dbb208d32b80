"""The pipeline in Python: each step is a request to another model of the server (business logic scripting)."""

import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*[self._answer(request) for request in requests])

    async def _answer(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text")
        try:
            ids, mask = await _ask("tokenizer", [text], ["input_ids", "attention_mask"])
            (hidden,) = await _ask("encoder", [ids, mask], ["last_hidden_state"])
            (embedding,) = await _ask("pooling", [hidden, mask], ["embedding"])
        except pb_utils.TritonModelException as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([embedding])


async def _ask(model, inputs, outputs):
    """Another model's output tensors, in the order of their names in `outputs`."""
    request = pb_utils.InferenceRequest(model_name=model, inputs=inputs, requested_output_names=outputs)
    response = await request.async_exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return [pb_utils.get_output_tensor_by_name(response, name) for name in outputs]
