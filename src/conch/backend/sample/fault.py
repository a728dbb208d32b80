"""The `fault` backend: answers as `identity` does, and fails, waits or crashes when it is asked to; for tests.

Its models run in worker processes, as Python-based backends do, so that a crash is the model's alone.
"""

from __future__ import annotations

from pathlib import Path

from conch.backend.api import Host, ModelFiles
from conch.backend.python.backend import PythonBackend, PythonModel
from conch.backend.python.program import Program
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec

_PROGRAM = Program(Path(__file__).parent / "fault_program")


class FaultBackend:
    """What it can do stands in `fault_program/model.py`."""

    name = "fault"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        PythonBackend(self.name, _PROGRAM).complete(config, files, host)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> PythonModel:
        return PythonBackend(self.name, _PROGRAM).load(config, spec, files, host, stats)
