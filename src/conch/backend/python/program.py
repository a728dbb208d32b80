"""The program of a Python-based backend: a folder with a `model.py` that runs models which have none of their own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conch.backend.api import Placement
from conch.backend.python.environment import PATH
from conch.backend.python.settings import OWN, Settings, read_settings
from conch.pb.model_config_pb2 import ModelConfig

FILE: Final = "model.py"
#: The environment that the backend's models share, where it lies beside the program (Triton's name).
ARCHIVE: Final = f"pb_exec_env_{FILE}.tar.gz"


@dataclass(frozen=True, slots=True)
class Program:
    """`arguments` are added to those of `initialize`, for an instance or (None) for `auto_complete_config`.

    `start_timeout`: seconds that a start may take where the operator does not say (`stub-timeout-seconds`).
    """

    folder: Path
    arguments: Callable[[Placement | None], Mapping[str, str]] = lambda _: {}
    start_timeout: float | None = None

    def fill(self, config: ModelConfig) -> None:
        """Write into `config` what Triton does: the runtime, and the environment that the backend brings."""
        config.runtime = FILE
        if PATH not in config.parameters and (self.folder / ARCHIVE).is_file():
            config.parameters[PATH].string_value = str(self.folder / ARCHIVE)

    def settings(self, settings: Mapping[str, str]) -> Settings:
        """Of `settings` those of the Python backend; the others are the program's own. Raises InferError."""
        read = read_settings({name: value for name, value in settings.items() if name in OWN})
        if self.start_timeout is None or "stub-timeout-seconds" in settings:
            return read
        return dataclasses.replace(read, start_timeout=self.start_timeout)


def in_folder(folder: Path, settings: Mapping[str, str]) -> Program:
    """The program of the operator's backend in `folder`: it gets its settings as JSON."""
    text = json.dumps({name: value for name, value in settings.items() if name not in OWN})
    return Program(folder, lambda _: {"backend_config": text})
