"""A model compiled for its device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from conch.backend.openvino.network import compile_network
from conch.backend.openvino.plan import Plan
from conch.backend.openvino.signature import Signature

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to compile: an `openvino.Model`, and how many rows a run is to have at most; 0: any."""

    core: Any
    network: Any
    signature: Signature
    most: int = 0


class Compiled:
    """What the instances of a version share. Any thread."""

    def __init__(self, name: str, source: Source, plan: Plan, cpus: int, instances: int) -> None:
        """`instances` callers run at once on `cpus`. Blocking; raises InferError."""
        self.signature = source.signature
        self.most = source.most
        self.on_cpu = plan.device == "CPU"
        self._model = compile_network(name, source.core, plan, source.network, cpus, instances)
        wanted = int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        if wanted > instances:
            _LOG.warning(
                "model '%s': OpenVINO made streams for %d runs at a time, its instance_group has count %d: "
                "set count: %d to use them all",
                name, wanted, instances, wanted,
            )  # fmt: skip

    def request(self) -> Any:
        """A new infer request."""
        return self._model.create_infer_request()
