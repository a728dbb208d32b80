"""The `fil` backend: completes configs from forests and makes instances."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.counters import counters
from conch.backend.forest.answers import Answer
from conch.backend.forest.complete import both_scores, check_config, complete_config, needs_file, row_dims
from conch.backend.forest.engine import Engine, choose_engine
from conch.backend.forest.formats import find_forest
from conch.backend.forest.instance import ForestInstance
from conch.backend.forest.library import Explain, open_explainer, open_predictor
from conch.backend.forest.options import ForestPlan, plan_forest
from conch.backend.forest.reading import read_forest, treelite
from conch.backend.forest.signature import OUTPUT, SHAP_OUTPUT, Signature, classifies, read_signature
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import FP64
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger(__name__)


class ForestBackend:
    """Forests of decision trees, as Triton's FIL backend serves them on CPUs."""

    name = "fil"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        if not needs_file(config):
            return
        plan = plan_forest(config, host.settings)
        treelite()
        path, kind = find_forest(files.version_directory, config.default_model_filename, plan.model_type, config.name)
        signature = read_signature(read_forest(path, kind, plan.allow_unknown_field))
        complete_config(config, plan, signature, host.settings)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> ForestModel:
        plan = plan_forest(config, host.settings)
        treelite()
        path, kind = find_forest(files.version_directory, config.default_model_filename, plan.model_type, config.name)
        forest = read_forest(path, kind, plan.allow_unknown_field)
        signature = read_signature(forest)
        check_config(config, plan, signature)
        for note in plan.notes:
            _LOG.warning("%s", note)
        return ForestModel(config, spec, path, kind, plan, forest, signature, host, stats)


class ForestModel:
    """One version. Its instances share one engine, hence one copy of the trees."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        path: Path,
        kind: str,
        plan: ForestPlan,
        forest: Any,
        signature: Signature,
        host: Host,
        stats: ModelStats,
    ) -> None:
        self._config = config
        self._spec = spec
        self._path = path
        self._kind = kind
        self._plan = plan
        self._forest = forest
        self._signature = signature
        self._host = host
        self._stats = stats
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._explain: Explain | None = None

    def instance(self, placement: Placement) -> ForestInstance:
        with self._lock:
            if self._engine is None:
                self._open(placement)
            assert self._engine is not None
        signature = self._signature
        return ForestInstance(
            self._spec,
            signature.features,
            np.float64 if signature.double else np.float32,
            self._engine,
            self._answer(),
            self._explain,
            counters(self._stats, placement),
        )

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self._engine = self._explain = self._forest = None

    def _open(self, placement: Placement) -> None:
        """The engine that all instances share, with its share of the CPUs for each that may call it at once."""
        name, plan = self._config.name, self._plan
        each = min(plan.threads or max(1, self._host.cpus // max(1, placement.instances)), self._host.cpus)
        if plan.threads is not None and plan.threads > each:
            _LOG.warning(
                "model '%s': parameter 'cpu_nthread' is %d and has the effect of %d, the number of CPUs",
                name, plan.threads, each,
            )  # fmt: skip
        if placement.kind == "GPU":
            _LOG.warning("model '%s' asks for GPUs and runs on CPUs: there are no forests on GPUs here", name)
        exact = self._signature.double and any(each.datatype is FP64 for each in self._spec.outputs)
        library = partial(open_predictor, self._path, self._kind, each)
        engine = choose_engine(self._forest, self._signature, plan.engine, each, exact, name, library)
        if any(output.name == SHAP_OUTPUT for output in self._spec.outputs):
            self._explain = open_explainer(self._path, self._kind, each, name)
        self._engine = engine
        # An engine that computes on treelite's copy of the trees keeps it itself.
        self._forest = None

    def _answer(self) -> Answer:
        plan, signature = self._plan, self._signature
        output = next(entry for entry in self._config.output if entry.name == OUTPUT)
        width = int(np.prod(row_dims(self._config, output), dtype=int))
        both = both_scores(plan, signature) and width == 2 * signature.targets
        return Answer(classifies(plan, signature) and not plan.predict_proba, plan.threshold, both)
