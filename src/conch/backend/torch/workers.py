"""PyTorch models in worker processes: AOTInductor packages, which hold the GIL as they run, and Python modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.python.backend import PythonBackend, PythonModel
from conch.backend.python.host import PythonInstance
from conch.backend.python.program import Program
from conch.backend.torch.content import Artifact, Kind
from conch.backend.torch.naming import Wanted
from conch.backend.torch.parameters import TorchPlan, plan_threads
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec

#: The program that the workers run.
PROGRAM: Final = Path(__file__).parent / "shipped"
#: Importing PyTorch takes seconds, and torch.compile more; Triton's limit for any Python model is 30.
_START: Final = 180.0


class WorkerModel:
    """One version; each instance is a process of its own."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        files: ModelFiles,
        host: Host,
        stats: ModelStats,
        artifact: Artifact,
        plan: TorchPlan,
        wanted: Wanted,
    ) -> None:
        self._artifact = artifact
        self._plan = plan
        self._wanted = wanted
        self._cpus = host.cpus
        program = Program(PROGRAM, self._arguments, _START)
        self._model: PythonModel = PythonBackend("pytorch", program).load(config, spec, files, host, stats)

    def instance(self, placement: Placement) -> PythonInstance:
        return self._model.instance(placement)

    def ready(self) -> bool:
        return self._model.ready()

    def processes(self) -> list[int]:
        """See `backend.api.Housed`."""
        return self._model.processes()

    def close(self) -> None:
        self._model.close()

    def _arguments(self, placement: Placement | None) -> Mapping[str, str]:
        plan, weights = self._plan, self._artifact.weights
        names = asdict(self._wanted)
        told = {
            "model": names.pop("model"),
            "package": self._artifact.kind is Kind.PACKAGE,
            "file": str(self._artifact.path),
            "weights": str(weights) if weights is not None else "",
            "threads": plan_threads(plan, self._cpus, placement.instances if placement is not None else 1),
            "inter_op_threads": plan.inter_op_threads,
            "inference_mode": plan.inference_mode,
            "cudnn": plan.cudnn,
            "cache_cleaning": plan.cache_cleaning,
            "compile": dict(plan.compile) if plan.compile is not None else None,
            "wanted": names,
        }
        return {"conch_torch": json.dumps(told)}
