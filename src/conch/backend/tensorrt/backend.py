"""The `tensorrt` backend: completes configs from engines and makes instances, on GPUs alone."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Final

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.counters import counters
from conch.backend.tensorrt.complete import check_config, complete_config, needs_file
from conch.backend.tensorrt.instance import TensorRtInstance
from conch.backend.tensorrt.library import checked, cuda, find_engine, open_engine, tensorrt
from conch.backend.tensorrt.options import EnginePlan, plan_engine
from conch.backend.tensorrt.profiles import chosen_profiles
from conch.backend.tensorrt.signature import read_signature
from conch.config.sequence_tensors import with_hidden_entries
from conch.memory.pinned import PinnedPool
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import unsupported
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger(__name__)


class TensorRtBackend:
    """Engines that TensorRT has built for the GPUs of this machine."""

    name = "tensorrt"

    def on_gpus(self) -> bool:
        """Nowhere else: without the library, too, the load on a GPU is what says so."""
        return True

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        if not needs_file(config):
            return
        plan = plan_engine(config, host.settings)
        path = find_engine(files.version_directory, config.default_model_filename, config.name)
        tensorrt()
        # The thread may have opened another model on another GPU.
        first = next((device for group in config.instance_group for device in group.gpus), 0)
        checked(cuda().cudaSetDevice(first))
        signature = read_signature(config.name, open_engine(path, plan, config.name))
        # Each group's instances have profiles of their own; the config has to fit all of them.
        names = [f"{group.name}_0" for group in config.instance_group] or [""]
        for name in names:
            complete_config(config, signature, chosen_profiles(config, name, signature))

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> TensorRtModel:
        plan = plan_engine(config, host.settings)
        path = find_engine(files.version_directory, config.default_model_filename, config.name)
        tensorrt()
        cuda()
        for note in plan.notes:
            _LOG.warning("%s", note)
        return TensorRtModel(config, spec, path, plan, stats, host.pinned)


class TensorRtModel:
    """One version. The instances of one GPU share its engine, hence one copy of the weights."""

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, path: Path, plan: EnginePlan, stats: ModelStats, pool: PinnedPool
    ) -> None:
        self._config = config
        self._spec = spec
        self._path = path
        self._plan = plan
        self._stats = stats
        self._pool = pool
        self._lock = threading.Lock()
        self._engines: dict[int, Any] = {}

    def instance(self, placement: Placement) -> TensorRtInstance:
        name = self._config.name
        if placement.kind != "GPU":
            raise unsupported(
                f"unable to load model '{name}', TensorRT engines run on GPUs alone and '{placement.name}' is "
                f"KIND_{placement.kind}",
                "set instance_group { kind: KIND_GPU }",
            )
        runtime = cuda()
        checked(runtime.cudaSetDevice(placement.device_id))
        with self._lock:
            engine = self._engines.get(placement.device_id)
            if engine is None:
                engine = self._engines[placement.device_id] = open_engine(self._path, self._plan, name)
        signature = read_signature(name, engine)
        profiles = chosen_profiles(self._config, placement.name, signature)
        check_config(with_hidden_entries(self._config), signature, profiles)
        return TensorRtInstance(
            self._spec,
            signature,
            profiles,
            engine,
            tensorrt(),
            runtime,
            placement.device_id,
            self._plan,
            counters(self._stats, placement),
            self._pool,
        )

    def device_tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """See `backend.api.Staying`: all but shape tensors, which TensorRT reads and writes on the host."""
        inputs, outputs = (
            frozenset([each.name for each in entries if not each.is_shape_tensor])
            for entries in (self._config.input, self._config.output)
        )
        return inputs, outputs

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        while self._engines:
            device, engine = self._engines.popitem()
            cuda().cudaSetDevice(device)
            del engine
