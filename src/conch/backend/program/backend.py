"""The backend of a program's own functions: they are given to the server when it is made, by the model's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.counters import counters
from conch.backend.program.api import AsyncCopy, Program
from conch.backend.program.instance import AsyncInstance, PlainInstance
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid
from conch.types.model import ModelSpec

#: What configs call it.
BACKEND: Final = "conch_program"


class ProgramBackend:
    """`programs` may grow while the server runs."""

    name = BACKEND

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs

    def on_gpus(self) -> bool:
        """A function is told its device, and does with it what it likes."""
        return True

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """The configs of programs are whole."""

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> ProgramModel:
        program = self._programs.get(config.name)
        if program is None:
            raise invalid(f"there is no function for model '{config.name}' in this program")
        return ProgramModel(program, spec, host, stats)


class ProgramModel:
    def __init__(self, program: Program, spec: ModelSpec, host: Host, stats: ModelStats) -> None:
        self._program = program
        self._spec = spec
        self._host = host
        self._stats = stats

    def instance(self, placement: Placement) -> PlainInstance | AsyncInstance:
        copy = self._program.open(placement)
        stats = counters(self._stats, placement)
        if isinstance(copy, AsyncCopy):
            return AsyncInstance(copy, self._spec, stats, self._host, placement.name)
        return PlainInstance(copy, self._spec, stats, self._host)

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        """Instances are closed by who made them."""
