"""Other formats that OpenVINO reads: TensorFlow's, written by TensorFlow itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conch.types.tensor import to_numpy

pytest.importorskip("openvino", reason="pip install 'conch[openvino]'")

from support.openvino_models import serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="pip install 'conch[tensorflow]'"),
]

#: `y` is `x` times a matrix of ones; in a process of its own, because TensorFlow stays in the one that imports it.
WRITE = """
import sys
import tensorflow as tf

class Model(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(tf.ones((2, 3)))

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
    def __call__(self, x):
        return {"y": x @ self.weights}

model = Model()
tf.saved_model.save(model, sys.argv[1], signatures=model.__call__)
lite = tf.lite.TFLiteConverter.from_concrete_functions([model.__call__.get_concrete_function()], model).convert()
open(sys.argv[2], "wb").write(lite)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tensorflow")
    for name in ("saved", "lite"):
        (place / name / "1").mkdir(parents=True)
    files = [place / "saved" / "1" / "model.saved_model", place / "lite" / "1" / "model.tflite"]
    subprocess.run([sys.executable, "-c", WRITE, *map(str, files)], check=True, capture_output=True, timeout=240)
    return place


@pytest.mark.parametrize("name", ["saved", "lite"])
def test_models_of_tensorflow(folder: Path, name: str) -> None:
    """A SavedModel and a TensorFlow Lite file are found under Triton's names, completed, batched and computed."""
    served = serve(folder / name)
    assert served.config.max_batch_size == 4
    (given,), (made,) = served.config.input, served.config.output
    sent = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    (answer,) = served.run(served.request({given.name: sent}))
    assert isinstance(answer, dict)
    tensor = answer[made.name]
    assert to_numpy(tensor.datatype, tensor.shape, tensor.data).tolist() == [[3] * 3, [7] * 3, [11] * 3]
