"""Where the instances of a model go on this machine: the config's groups, completed, with what they ask for in vain."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from conch.backend.api import Accelerated, Backend
from conch.config.gpus import Gpu
from conch.config.instances import InstanceGroup, fill_instance_groups, instance_groups
from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.registry.crew import Equipment

_log = logging.getLogger("conch.registry")


class Places:
    """`gpus` are the GPUs that models may use: those of compute capability `least` and more."""

    def __init__(self, gpus: Sequence[Gpu], least: float, equipment: Equipment) -> None:
        self._gpus = tuple([gpu.device for gpu in gpus])
        self._least = least
        self._equipment = equipment

    def groups(self, config: ModelConfig, backend: Backend, default_count: int) -> list[InstanceGroup]:
        """The groups of a model; they are written into its config, because the config calls show them.

        Raises InferError for groups that this machine cannot have.
        """
        auto = self._automatic(config, backend)
        fill_instance_groups(config, self._gpus, default_count, auto=auto, least=self._least)
        self._warn(config)
        return instance_groups(config, self._gpus, auto=auto, least=self._least)

    def _automatic(self, config: ModelConfig, backend: Backend) -> bool:
        """Whether groups that do not say where they run go to the GPUs."""
        if not self._gpus:
            return False
        able = isinstance(backend, Accelerated) and backend.on_gpus()
        asks = [group.kind for group in config.instance_group] or [ModelInstanceGroup.KIND_AUTO]
        if not able and ModelInstanceGroup.KIND_AUTO in asks:
            _log.info(
                "model '%s' runs on the CPU: backend '%s' cannot use GPUs here, and an instance group does not ask for "
                "them", config.name, config.backend,
            )  # fmt: skip
        return able

    def _warn(self, config: ModelConfig) -> None:
        if self._equipment.turns is None and any(group.HasField("rate_limiter") for group in config.instance_group):
            _log.warning(
                "model '%s': 'instance_group.rate_limiter' in its config has no effect without "
                "--rate-limit=execution_count",
                config.name,
            )
        for policy in {group.host_policy for group in config.instance_group} - {"", *self._equipment.policies}:
            _log.warning(
                "model '%s': host policy '%s' of an instance group has no effect, no --host-policy=%s,... defines it",
                config.name, policy, policy,
            )  # fmt: skip
