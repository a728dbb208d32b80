"""The model that the benchmark serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conch.types.tensor import to_numpy
from models import CLASSES, IMAGE_SHAPE, make_cnn
from support.onnx_models import serve


def test_the_cnn_batches_and_stays_in_range(tmp_path: Path) -> None:
    """The bare file is completed to a batching model, whose scores neither vanish nor explode."""
    served = serve(tmp_path, make_cnn())
    assert served.config.max_batch_size == 4
    images = np.random.default_rng(1).standard_normal((2, *IMAGE_SHAPE)).astype(np.float32)
    (answer,) = served.run(served.request({"image": images}))
    assert isinstance(answer, dict)
    scores = to_numpy(answer["scores"].datatype, answer["scores"].shape, answer["scores"].data)
    assert scores.shape == (2, CLASSES)
    assert 0.1 < float(scores.std()) < 10
