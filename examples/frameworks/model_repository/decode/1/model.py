"""The bytes of images to numbers from 0 to 1."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
        try:
            pixels = np.stack([_pixels(image) for image in images])
        except ValueError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])


def _pixels(image):
    """PGM: `P5 <width> <height> <brightest>`, a line break, and a byte for each pixel."""
    head, _, body = image.partition(b"\n")
    words = head.split()
    if len(words) != 4 or words[:3] != [b"P5", b"8", b"8"] or len(body) != 64:
        raise ValueError(f"'image' must be a PGM file of 8 x 8 pixels, it begins with {image[:12]!r}")
    return np.frombuffer(body, np.uint8).astype(np.float32) / int(words[3])
