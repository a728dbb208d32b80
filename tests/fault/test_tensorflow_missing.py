"""A TensorFlow model where there is no TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.tensorflow.backend import TensorFlowBackend
from conch.config.pbtxt import parse_text
from conch.observe.stats import ModelStats
from conch.types.error import InferError
from conch.types.model import ModelSpec
from support import tensorflow_models as tf
from support.python_models import running_loop


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise ImportError(name='tensorflow')", "TensorFlow is not installed in the Python that runs it (pip install"),
        ("raise ImportError('no AVX', name='tensorflow.core')", "TensorFlow cannot be imported: no AVX (pip install"),
    ],
)
def test_a_missing_library_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    """It says what is missing and how to get it."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tensorflow.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    folder = tmp_path / "m" / "1" / "model.savedmodel"
    folder.mkdir(parents=True)
    x, y = {"x": tf.info("in:0", tf.FLOAT, [-1, 4])}, {"y": tf.info("out:0", tf.FLOAT, [-1, 4])}
    (folder / "saved_model.pb").write_bytes(tf.saved_model(tf.graph(["serve"], {"a": tf.signature(x, y)})))
    config = parse_text('name: "m" platform: "tensorflow_savedmodel"', "config.pbtxt")
    files = ModelFiles(tmp_path / "m", 1)
    with running_loop() as loop:
        host = Host(loop)
        TensorFlowBackend().complete(config, files, host)
        model = TensorFlowBackend().load(config, ModelSpec("m", 1, 4, (), ()), files, host, ModelStats())
        with pytest.raises(InferError) as caught:
            model.instance(Placement("m_0_0", "CPU"))
        model.close()
    assert caught.value.message.startswith(f"unable to load model 'm', {text}")
    assert len(caught.value.message.splitlines()) == 1
