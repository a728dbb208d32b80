"""The mean of a text's token vectors, scaled to length 1."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        hidden = pb_utils.get_input_tensor_by_name(request, "last_hidden_state").as_numpy()
        mask = pb_utils.get_input_tensor_by_name(request, "attention_mask").as_numpy().astype(np.float32)
        # [texts, 1, tokens] x [texts, tokens, 384]: the sum over the tokens that are there. The mean is a multiple of
        # it, and the multiple goes with the scaling.
        total = (mask[:, None, :] @ hidden)[:, 0, :]
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", total / np.maximum(length, 1e-12))])
