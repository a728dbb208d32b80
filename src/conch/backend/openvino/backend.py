"""The `openvino` backend: completes configs from model files and makes instances."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.openvino.branches import measure, sizes_for, with_branches
from conch.backend.openvino.compiled import Compiled, Source
from conch.backend.openvino.complete import complete_config, needs_file
from conch.backend.openvino.instance import OpenvinoInstance
from conch.backend.openvino.network import (
    convert_types,
    find_model,
    make_core,
    read_network,
    shape_network,
)
from conch.backend.openvino.plan import Plan, plan_model
from conch.backend.openvino.signature import read_signature
from conch.config.sequence_tensors import with_hidden_entries
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger(__name__)


class OpenvinoBackend:
    """OpenVINO IR, and the other formats that OpenVINO reads."""

    name = "openvino"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        if not needs_file(config):
            return
        plan = plan_model(config, host.settings)
        path = find_model(files.version_directory, config.default_model_filename, config.name)
        network = read_network(make_core(plan), path)
        complete_config(config, read_signature(config.name, network), host.settings)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> OpenvinoModel:
        plan = plan_model(config, host.settings)
        for warning in plan.warnings:
            _LOG.warning("%s", warning)
        path = find_model(files.version_directory, config.default_model_filename, config.name)
        core = make_core(plan)
        network = read_network(core, path)
        entries = with_hidden_entries(config)
        signature = shape_network(entries, plan, network)
        network = convert_types(entries, signature, network)
        network, most = _branched(config, plan, network)
        return OpenvinoModel(config, spec, plan, Source(core, network, signature, most), host.cpus, stats)


def _branched(config: ModelConfig, plan: Plan, network: Any) -> tuple[Any, int]:
    """The network with branches for the batch sizes that come most, where that pays, and the rows of the largest."""
    if plan.fixed_batch or plan.device != "CPU" or config.max_batch_size == 0:
        return network, 0
    try:
        sizes = sizes_for(config.max_batch_size, *measure(network))
        return (with_branches(network, sizes), sizes[0]) if sizes else (network, 0)
    except InferError:
        # It takes batches, but not every size.
        return network, 0


class OpenvinoModel:
    """One version. Its instances share what is compiled, hence the weights, with a stream for each.

    Measured on 2 CPUs with a CNN of 14 MB, two callers: two streams of one thread made 2300 img/s (batch of 1) and 2600
    (4), one stream of two threads 1780 and 2130. Callers that wait and callers that are called back make the same.
    """

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, plan: Plan, source: Source, cpus: int, stats: ModelStats
    ) -> None:
        self._name = config.name
        self._spec = spec
        self._plan = plan
        #: Until it is compiled: that has weights of its own.
        self._source: Source | None = source
        self._cpus = cpus
        self._stats = stats
        self._lock = threading.Lock()
        self._compiled: Compiled | None = None

    def instance(self, placement: Placement) -> OpenvinoInstance:
        if placement.kind.removeprefix("KIND_") not in ("CPU", "AUTO"):
            raise invalid(
                f"unable to load model '{self._name}', Triton OpenVINO backend supports only Kind CPU and AUTO",
                "set kind: KIND_CPU in instance_group; for GPUs of Intel set the parameter TARGET_DEVICE",
            )
        with self._lock:
            if self._compiled is None:
                assert self._source is not None, "the model is closed"
                self._compiled = Compiled(self._name, self._source, self._plan, self._cpus, placement.instances)
                self._source = None
        rows = self._spec.max_batch_size if self._plan.fixed_batch else 0
        return OpenvinoInstance(self._spec, self._compiled, self._stats, rows=rows, pad=self._plan.pad)

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self._compiled = None
