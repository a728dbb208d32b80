"""The repositories of the comparison: the same models for both servers, each in the form that the server can run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pipelines
from models import write_cnn

IDENTITY_CONFIG = """
backend: "python"
max_batch_size: 64
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
dynamic_batching { }
"""

IDENTITY = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("OUTPUT0", pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy())]
            )
            for r in requests
        ]
"""


#: Large tensors: [3, 224, 224] FP32 is 602 KB, 4 Mi floats are 16 MB; and text, element by element.
IMAGE_CONFIG = IDENTITY_CONFIG.replace("max_batch_size: 64", "max_batch_size: 8").replace("[ 16 ]", "[ 3, 224, 224 ]")
LARGE_CONFIG = """
backend: "python"
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4194304 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4194304 ] } ]
"""
STRINGS_CONFIG = """
backend: "python"
input [ { name: "INPUT0" data_type: TYPE_STRING dims: [ 10000 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_STRING dims: [ 10000 ] } ]
"""

STREAM_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
"""

#: A hundred small responses per request, as a language model sends its tokens.
STREAM = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            for _ in range(100):
                sender.send(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("OUTPUT0", x)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

MODELS = {
    "identity": (IDENTITY_CONFIG, IDENTITY),
    "image": (IMAGE_CONFIG, IDENTITY),
    "large": (LARGE_CONFIG, IDENTITY),
    "strings": (STRINGS_CONFIG, IDENTITY),
    "stream": (STREAM_CONFIG, STREAM),
    **pipelines.MODELS,
}


def write_repositories(place: Path, models: Collection[str]) -> tuple[Path, Path]:
    """Conch's repository and Triton's, under `place`, with these models and those that they need."""
    ours, theirs = place / "conch", place / "triton"
    wanted = set(models).union(*(pipelines.NEEDS.get(name, ()) for name in models))
    for root in (ours, theirs):
        root.mkdir(parents=True)
        for name in MODELS.keys() & wanted:
            write_model(root / name, *MODELS[name])
    if "cnn" in models:
        write_cnn(ours, theirs)
    return ours, theirs


def write_identities(root: Path, count: int) -> None:
    """`count` models of the built-in identity backend."""
    for number in range(count):
        write_model(root / f"identity_{number}", IDENTITY_CONFIG.replace('"python"', '"identity"'), None)


def write_model(place: Path, config: str, code: str | None) -> None:
    (place / "1").mkdir(parents=True)
    (place / "config.pbtxt").write_text(config)
    if code is not None:
        (place / "1" / "model.py").write_text(code)
