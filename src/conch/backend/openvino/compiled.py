"""A model compiled for its device: for batches of any size, and for the sizes that come most."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Final

from conch.backend.openvino.network import compile_network, with_rows
from conch.backend.openvino.plan import Plan
from conch.backend.openvino.signature import Signature

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to compile: an `openvino.Model`, and the batch sizes that it is compiled for; none: any."""

    core: Any
    network: Any
    signature: Signature
    sizes: tuple[int, ...] = ()


class Compiled:
    """Any thread. The sizes are compiled at once, "any" beside them when somebody sends such a batch."""

    def __init__(self, name: str, source: Source, plan: Plan, cpus: int, instances: int) -> None:
        """`instances` callers run at once on `cpus`. Blocking; raises InferError."""
        self.sizes = source.sizes
        self.on_cpu = plan.device == "CPU"
        self._name = name
        self._source = source
        self._plan = plan
        self._cpus = cpus
        self._instances = instances
        self._lock = threading.Lock()
        self._made = {size: self._compile(size) for size in self.sizes or (0,)}
        self._advise()

    def request(self, size: int) -> Any:
        """A new infer request for batches of `size` rows, 0 for any. Raises InferError."""
        with self._lock:
            if size not in self._made:
                self._made[size] = self._compile(size)
        return self._made[size].create_infer_request()

    def _compile(self, size: int) -> Any:
        source = self._source
        network = with_rows(source.network, size) if size else source.network
        return compile_network(self._name, source.core, self._plan, network, self._cpus, self._instances)

    def _advise(self) -> None:
        wanted = int(next(iter(self._made.values())).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        if wanted > self._instances:
            _LOG.warning(
                "model '%s': OpenVINO made streams for %d runs at a time, its instance_group has count %d: "
                "set count: %d to use them all",
                self._name, wanted, self._instances, wanted,
            )  # fmt: skip
