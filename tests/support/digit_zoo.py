"""The models of examples/frameworks: trained in each framework that is installed, served together, asked by clients."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from support.server import Server

TRAIN = Path(__file__).parent.parent.parent / "examples" / "frameworks" / "train.py"
#: Model -> the library that trains it, and the backend that serves it.
MODELS = {
    "onnx": ("onnxruntime", "onnxruntime"),
    "torchscript": ("torch", "pytorch"),
    "exported": ("torch", "pytorch"),
    "openvino": ("openvino", "openvino"),
    "tensorflow": ("tensorflow", "tensorflow"),
    "xgboost": ("xgboost", "fil"),
    "lightgbm": ("lightgbm", "fil"),
    "sklearn": ("sklearn", "python"),
    "pipeline": ("xgboost", ""),
    "pipeline_bls": ("xgboost", "python"),
}
#: Probabilities in FP32: batches of other sizes, and graphs with folded constants, add in another order.
TOLERANCE = 1e-5
CLIENTS = {"http": httpclient, "grpc": grpcclient}

Array = np.ndarray[Any, Any]


def train(repository: Path, *only: str, seed: int = 0) -> dict[str, Array]:
    """Writes these models, or all; what each framework, called directly, says of `images`, which show `labels`."""
    file = repository.with_suffix(".npz")
    command = [sys.executable, str(TRAIN), str(repository), f"--answers={file}", f"--seed={seed}"]
    done = subprocess.run(
        [*command, "--only", *only] if only else command, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(file) as answers:
        return dict(answers)


def file_of(image: Array) -> bytes:
    """An image as a PGM file."""
    return b"P5 8 8 16\n" + np.rint(16 * image).astype(np.uint8).tobytes()


@dataclass
class Zoo:
    """A server with these models, and what is true of them."""

    server: Server
    repository: Path
    images: Array
    labels: Array
    #: Model -> what it may answer for all images: more than one thing while it is being reloaded.
    answers: dict[str, tuple[Array, ...]]
    #: Model -> what its input and its first output are called.
    names: dict[str, tuple[str, str]] = field(default_factory=dict)

    def client(self, protocol: str) -> Any:
        """Made for one thread, as NVIDIA's HTTP client wants it."""
        return CLIENTS[protocol].InferenceServerClient(getattr(self.server, protocol))

    def ask(self, client: Any, model: str, begin: int, end: int) -> Array:
        """What `model` says of these images."""
        if model not in self.names:
            with self.client("http") as web:
                metadata = web.get_model_metadata(model)
            self.names[model] = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
        given, wanted = self.names[model]
        values, datatype = self.images[begin:end], "FP32"
        if model.startswith("pipeline"):
            values, datatype = np.array([[file_of(image)] for image in values], dtype=object), "BYTES"
        module = httpclient if isinstance(client, httpclient.InferenceServerClient) else grpcclient
        tensor = module.InferInput(given, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        found: Array = client.infer(model, [tensor]).as_numpy(wanted)
        return found

    def compare(self, client: Any, model: str, begin: int, end: int) -> str:
        """Asks; empty if the answer is the framework's own, also of a model that was replaced meanwhile."""
        before = self.answers[model]
        found = self.ask(client, model, begin, end)
        true = [each[begin:end] for each in (*before, *self.answers[model])]
        if any(np.allclose(found, each, rtol=0, atol=TOLERANCE) for each in true):
            return ""
        return f"{model}: images {begin} to {end} are {min(np.abs(found - each).max() for each in true):.1e} off"
