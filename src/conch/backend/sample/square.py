"""The `square` backend: as many responses as IN says, each of them IN; Triton's test of response statistics."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.counters import counters
from conch.backend.sample.signature import Tensor as Wanted
from conch.backend.sample.signature import check_tensors
from conch.backend.sample.stream import Script, ScriptInstance, Step
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import INT32
from conch.types.error import Code, InferError, invalid
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Tensor

_LOG = logging.getLogger("conch.backend")


@dataclass(frozen=True, slots=True)
class Plan:
    """The last responses of a request may fail, and the last after these be empty."""

    infer_delay: float = 0.0
    output_delay: float = 0.0
    fail: int = 0
    empty: int = 0


class SquareBackend:
    """Parameters: CUSTOM_INFER_DELAY_NS, CUSTOM_OUTPUT_DELAY_NS, CUSTOM_FAIL_COUNT, CUSTOM_EMPTY_COUNT."""

    name = "square"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """Triton's wants a config, so ours fills in nothing."""

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> SquareModel:
        check_tensors(config, (Wanted("IN", INT32),), (Wanted("OUT", INT32),))
        plan = Plan(
            _number(config, "CUSTOM_INFER_DELAY_NS") / 1e9,
            _number(config, "CUSTOM_OUTPUT_DELAY_NS") / 1e9,
            _number(config, "CUSTOM_FAIL_COUNT"),
            _number(config, "CUSTOM_EMPTY_COUNT"),
        )
        return SquareModel(plan, host, stats)


class SquareModel:
    def __init__(self, plan: Plan, host: Host, stats: ModelStats) -> None:
        self._plan = plan
        self._host = host
        self._stats = stats

    def instance(self, placement: Placement) -> ScriptInstance:
        return ScriptInstance(self._script, self._host, counters(self._stats, placement))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""

    def _script(self, request: InferRequest) -> Script:
        if request.form.rows != 1:
            raise invalid("unexpected shape for IN input", "each request must be one row")
        (count,) = struct.unpack("<i", request.data[0])
        if count < 0:
            raise invalid(f"expected IN to be 0 or more, got {count}")
        return Script(_steps(request, count, self._plan), count)


def _steps(request: InferRequest, count: int, plan: Plan) -> Iterator[Step]:
    wanted = request.form.outputs
    tensors = [Tensor("OUT", INT32, request.form.shapes[0], request.data[0])] if wanted in (None, ("OUT",)) else []
    answer = InferResponse(tensors)
    for index in range(count):
        if index + plan.fail + plan.empty < count:
            yield plan.infer_delay + plan.output_delay, answer
        elif index + plan.empty < count:
            yield plan.infer_delay + plan.output_delay, InferError(Code.UNKNOWN, "simulated failure")
        else:
            yield plan.infer_delay, None


def _number(config: ModelConfig, name: str) -> int:
    """What is no number counts as 0 and is told, as in Triton."""
    if name not in config.parameters:
        return 0
    text = config.parameters[name].string_value
    if not text.isdecimal():
        _LOG.warning("model '%s': parameter '%s' is '%s', expected a whole number; 0 is taken", config.name, name, text)
        return 0
    return int(text)
