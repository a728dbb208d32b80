"""Python-based backends: a folder of `--backend-directory` whose `model.py` runs all models that name the backend."""

from __future__ import annotations

from pathlib import Path

from conch.backend.api import Host, ModelFiles
from conch.backend.python.backend import PythonBackend, PythonModel
from conch.backend.python.program import in_folder
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec


class BasedBackend:
    """Its models' instances are worker processes like those of any Python model, with one program for all."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder

    def on_gpus(self) -> bool:
        """As of any Python model: what the program does with its GPU is its own affair."""
        return True

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        self._backend(config, host).complete(config, files, host)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> PythonModel:
        return self._backend(config, host).load(config, spec, files, host, stats)

    def _backend(self, config: ModelConfig, host: Host) -> PythonBackend:
        program = in_folder(self._folder, host.settings)
        program.fill(config)
        return PythonBackend(self.name, program)
