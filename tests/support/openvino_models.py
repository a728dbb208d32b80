"""Models for the openvino backend, made from the small ONNX ones, and one call that loads one as the server does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import openvino as ov

from conch.backend.api import Placement
from conch.backend.openvino.backend import OpenvinoBackend
from conch.config.normalize import normalize
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from support.onnx_models import Served, make_host, make_spec, write


def network(model: onnx.ModelProto, directory: Path) -> Any:
    """`model` as OpenVINO reads it."""
    path = directory / "made.onnx"
    path.write_bytes(model.SerializeToString())
    return ov.Core().read_model(path)


def write_ir(directory: Path, made: Any, version: int = 1) -> Path:
    """`made` (an `openvino.Model`) as model.xml and model.bin of a version; the path of model.xml."""
    path = directory / str(version) / "model.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(made, path, compress_to_fp16=False)
    return path


def serve(
    directory: Path,
    model: onnx.ModelProto | bytes | None = None,
    config: ModelConfig | None = None,
    placement: Placement | None = None,
    settings: Mapping[str, str] | None = None,
    *,
    filename: str = "1/model.onnx",
    complete: bool = True,
) -> Served:
    """Write (unless the files are there), complete, load, and make one instance."""
    files = write(directory, model if model is not None else b"", filename if model is not None else "1/none")
    config = config or ModelConfig()
    config.name = config.name or "m"
    config.backend = "openvino"
    host = make_host(settings or {})
    backend = OpenvinoBackend()
    if complete:
        backend.complete(config, files, host)
    normalize(config)
    spec = make_spec(config)
    stats = ModelStats()
    loaded = backend.load(config, spec, files, host, stats)
    return Served(config, spec, stats, loaded.instance(placement or Placement("m_0_0", "CPU", instances=2)))


def serve_twice(directory: Path, model: onnx.ModelProto) -> list[Served]:
    """Two instances of one loaded model."""
    files = write(directory, model)
    config = ModelConfig(name="m", backend="openvino")
    host = make_host({})
    OpenvinoBackend().complete(config, files, host)
    spec, stats = make_spec(config), ModelStats()
    loaded = OpenvinoBackend().load(config, spec, files, host, stats)
    places = [Placement(f"m_0_{number}", "CPU", instances=2) for number in range(2)]
    return [Served(config, spec, stats, loaded.instance(place)) for place in places]
