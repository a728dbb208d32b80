"""Models as other servers have them: a TorchServe archive, MLServer folders, TensorFlow Serving's layout."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HANDLER = '''\
"""A custom handler of TorchServe: counts words with a vocabulary from the archive."""
import json
from pathlib import Path

from ts.torch_handler.base_handler import BaseHandler


class WordCount(BaseHandler):
    def initialize(self, context):
        folder = Path(context.system_properties["model_dir"])
        self.known = set(json.loads((folder / "vocabulary.json").read_text()))
        self.limit = context.model_yaml_config.get("handler", {}).get("limit", 100)
        self.initialized = True

    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        return [row["text"] if isinstance(row, dict) else row.decode() for row in rows]

    def inference(self, texts):
        self.context.metrics.add_counter("calls", 1)
        return [[word in self.known for word in text.split()] for text in texts]

    def postprocess(self, rows):
        for index, row in enumerate(rows):
            if len(row) > self.limit:
                self.context.set_response_status(code=413, phrase="too many words", idx=index)
        return [{"words": len(row), "known": sum(row), "batch": len(rows)} for row in rows]
'''
SETTINGS = """\
minWorkers: 1
maxWorkers: 2
batchSize: 4
maxBatchDelay: 1
responseTimeout: 60
handler:
  limit: 5
"""
MEAN = '''\
"""A custom runtime of MLServer."""
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from offsets import OFFSET


class MeanModel(MLModel):
    async def load(self) -> bool:
        self.scale = self.settings.parameters.extra["scale"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = NumpyCodec.decode_input(payload.inputs[0])
        words = StringCodec.decode_input(payload.inputs[1])
        if not words[0]:
            raise ValueError("no word")
        mean = values.mean(axis=1) * self.scale + OFFSET
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output("mean", mean),
                StringCodec.encode_output("loud", [word.upper() for word in words]),
            ],
        )
'''


def archive(folder: Path, files: Mapping[str, str | bytes], **model: Any) -> Path:
    """A .mar as torch-model-archiver makes it."""
    path = folder / f"{model['modelName']}.mar"
    manifest = {"createdOn": "01/02/2026", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in {**files, "MAR-INF/MANIFEST.json": json.dumps(manifest)}.items():
            made.writestr(name, content)
    return path


def word_count(folder: Path) -> Path:
    """A .mar with a custom handler, an extra file and a configuration."""
    return archive(
        folder,
        {"count_handler.py": HANDLER, "vocabulary.json": '["cat", "dog"]', "model-config.yaml": SETTINGS},
        modelName="words", handler="count_handler.py", modelVersion="3.0", configFile="model-config.yaml",
    )  # fmt: skip


def mean_model(folder: Path) -> Path:
    """An MLServer folder with a custom runtime."""
    folder.mkdir()
    (folder / "runtime.py").write_text(MEAN)
    (folder / "offsets.py").write_text("OFFSET = 1.0\n")
    settings = {
        "name": "mean",
        "implementation": "runtime.MeanModel",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "word", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "mean", "datatype": "FP32", "shape": [-1]},
            {"name": "loud", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "parameters": {"version": "v0.1", "extra": {"scale": 10}},
        "warm_workers": True,
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    return folder


def estimator_folder(folder: Path, model: Any) -> Path:
    """An MLServer folder with a scikit-learn model."""
    import joblib

    folder.mkdir()
    joblib.dump(model, folder / "model.joblib")
    settings = {
        "name": folder.name,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "max_batch_size": 16,
        "max_batch_time": 0.001,
        "parallel_workers": 1,
        "parameters": {"uri": "./model.joblib", "version": "2", "content_type": "np"},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    (folder / "settings.json").write_text('{"debug": true}')
    return folder


def saved_models(folder: Path, versions: Mapping[str, list[int]]) -> Path:
    """TensorFlow Serving's layout; the graphs are no graphs."""
    for name, numbers in versions.items():
        for number in numbers:
            place = folder / name / str(number)
            (place / "variables").mkdir(parents=True)
            (place / "saved_model.pb").write_bytes(b"graph")
            (place / "variables" / "variables.index").write_bytes(b"weights")
    return folder
