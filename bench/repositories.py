"""The repositories of the comparison: the same models for both servers, each in the form that the server can run."""

from __future__ import annotations

from pathlib import Path

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


def write_repositories(place: Path, *, cnn: bool) -> tuple[Path, Path]:
    """Conch's repository and Triton's, under `place`; with the model `cnn` in both if asked."""
    ours, theirs = place / "conch", place / "triton"
    for root in (ours, theirs):
        write_model(root / "identity", IDENTITY_CONFIG, IDENTITY)
    if cnn:
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
