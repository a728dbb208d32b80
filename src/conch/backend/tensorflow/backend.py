"""The `tensorflow` backend: reads models' signatures by itself, and has TensorFlow run them in worker processes.

TensorFlow is 500 MB of memory, seconds of import and libraries of its own; none of that comes into the server.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.python.backend import PythonBackend, PythonModel
from conch.backend.python.program import Program
from conch.backend.tensorflow.model_file import read_graph, read_saved_model
from conch.backend.tensorflow.options import TensorFlowPlan, plan_tensorflow
from conch.backend.tensorflow.signature import Names, check, check_graph, complete
from conch.config.sequence_tensors import with_hidden_entries
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger("conch.backend")
_PROGRAM: Final = Path(__file__).parent / "program"
_SAVED_MODEL, _GRAPH_DEF = "tensorflow_savedmodel", "tensorflow_graphdef"
_FILES: Final = {_SAVED_MODEL: "model.savedmodel", _GRAPH_DEF: "model.graphdef"}
#: Seconds: the import alone takes ten on a busy machine.
_START: Final = 300.0


class TensorFlowBackend:
    """SavedModels and GraphDefs."""

    name = "tensorflow"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        kind, path = _path(config, files)
        if kind == _GRAPH_DEF:
            check_graph(with_hidden_entries(config), read_graph(config.name, path))
            return
        plan = plan_tensorflow(config, host.settings, (files.version_directory, files.directory))
        complete(config, read_saved_model(config.name, path, plan.tag, plan.signature), plan.default_max_batch_size)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> PythonModel:
        kind, path = _path(config, files)
        plan = plan_tensorflow(config, host.settings, (files.version_directory, files.directory))
        for warning in plan.warnings:
            _LOG.warning("%s", warning)
        whole = with_hidden_entries(config)
        tags: tuple[str, ...] = ()
        if kind == _GRAPH_DEF:
            names = check_graph(whole, read_graph(config.name, path))
        else:
            chosen = read_saved_model(config.name, path, plan.tag, plan.signature)
            names, tags = check(whole, chosen), chosen.tags
        program = _program(config, path, tags, names, plan, host.cpus)
        return PythonBackend(self.name, program).load(config, spec, files, host, stats)


def _path(config: ModelConfig, files: ModelFiles) -> tuple[str, Path]:
    """Which of the two kinds the model is, and where its file or folder lies."""
    kind = config.platform or next(
        (kind for kind, name in _FILES.items() if (files.version_directory / name).exists()), ""
    )
    if kind not in _FILES:
        raise invalid(
            f"unable to load model '{config.name}', its platform is '{config.platform}', expected {_SAVED_MODEL} or "
            f"{_GRAPH_DEF}",
            f"put the model into '{files.version_directory / _FILES[_SAVED_MODEL]}', or name its platform and "
            "default_model_filename in config.pbtxt",
        )
    return kind, files.version_directory / (config.default_model_filename or _FILES[kind])


def _program(
    config: ModelConfig,
    path: Path,
    tags: tuple[str, ...],
    names: tuple[Names, Names],
    plan: TensorFlowPlan,
    cpus: int,
) -> Program:
    def arguments(placement: Placement | None) -> dict[str, str]:
        share = max(1, cpus // max(1, placement.instances if placement is not None else 1))
        told = {
            "path": str(path),
            "tags": tags,
            "inputs": names[0],
            "outputs": names[1],
            "batching": config.max_batch_size > 0,
            "intra": plan.intra or share,
            "inter": plan.inter or share,
            "per_session": plan.per_session,
            "init_ops": plan.init_ops,
            "soft_placement": plan.soft_placement,
            "gpu": str(placement.device_id) if placement is not None and placement.kind == "GPU" else "",
            "gpu_fraction": plan.gpu_fraction,
        }
        return {"tensorflow": json.dumps(told)}

    return Program(_PROGRAM, arguments, _START)
