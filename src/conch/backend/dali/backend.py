"""The `dali` backend: has DALI describe, build and run its pipelines in worker processes.

DALI and its pipelines written in Python are code that stays out of the server; in a worker they hold nobody's GIL.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Final

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.dali.options import DaliPlan, plan_dali
from conch.backend.python.backend import PythonBackend, PythonModel
from conch.backend.python.program import Program
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger("conch.backend")
_PROGRAM: Final = Path(__file__).parent / "program"
_SERIALIZED: Final = "model.dali"
_FALLBACK: Final = "dali.py"
#: Seconds: its import takes two on an idle machine, the first pipeline on a GPU more.
_START: Final = 120.0
_UNBATCHED: Final = re.compile(r"^\s*max_batch_size\s*:\s*0\b", re.MULTILINE)


class DaliBackend:
    """Serialized pipelines (`model.dali`), and pipelines in Python marked with `@autoserialize` (`dali.py`)."""

    name = "dali"

    def on_gpus(self) -> bool:
        """The one wheel of DALI's has both; which operators run where is the pipeline's affair."""
        return True

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        runtime = config.runtime
        try:
            self._backend(config, files, host).complete(config, files, host)
        finally:
            config.runtime = runtime

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> PythonModel:
        for note in plan_dali(config, host.settings).notes:
            _LOG.warning("%s", note)
        runtime = config.runtime
        try:
            return self._backend(config, files, host).load(config, spec, files, host, stats)
        finally:
            # Triton's models of this backend have no runtime that is Python's.
            config.runtime = runtime

    def _backend(self, config: ModelConfig, files: ModelFiles, host: Host) -> PythonBackend:
        plan = plan_dali(config, host.settings)
        path = find_pipeline(config, files)
        return PythonBackend(self.name, _program(config, path, plan, _batched(config, files), host.cpus))


def find_pipeline(config: ModelConfig, files: ModelFiles) -> Path:
    """The pipeline's file, by DALI's order of precedence. Raises InferError where there is none."""
    named = files.version_directory / (config.default_model_filename or _SERIALIZED)
    fallback = files.version_directory / _FALLBACK
    for path in (named, fallback):
        if path.is_file():
            return path
    raise invalid(
        "Failed to load model file. The program looked in the following locations: "
        f"{named}, {fallback}. Please make sure that the model exists in any of the locations and is properly "
        "serialized or can be properly serialized.",
        'save it with pipe.serialize(filename="model.dali"), or mark its definition with @autoserialize in dali.py',
    )


def _batched(config: ModelConfig, files: ModelFiles) -> bool:
    """DALI's rule: a config file that says max_batch_size: 0 means it, one that says nothing does not."""
    path = files.directory / "config.pbtxt"
    return config.max_batch_size > 0 or not (path.is_file() and _UNBATCHED.search(path.read_text(errors="replace")))


def _program(config: ModelConfig, path: Path, plan: DaliPlan, batched: bool, cpus: int) -> Program:
    def arguments(placement: Placement | None) -> dict[str, str]:
        share = max(1, cpus // max(1, placement.instances if placement is not None else 1))
        told = {
            "path": str(path),
            "batched": batched,
            "max_batch_size": config.max_batch_size,
            "threads": plan.threads or share,
            "split": plan.split,
            "plugins": plan.plugins,
            "device": placement.device_id if placement is not None and placement.kind == "GPU" else None,
        }
        return {"dali": json.dumps(told)}

    return Program(_PROGRAM, arguments, _START)
