"""The built-in identity backend: output i is input i. For tests and benchmarks, as Triton's backend of that name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.batch import drop_cancelled
from conch.backend.counters import counters
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Tensor

_LOG = logging.getLogger("conch.backend")
#: Parameters of Triton's that test its tracing of custom activities.
_NEEDLESS = frozenset({"enable_custom_tracing", "nested_span_count", "single_activity_frequency"})


class IdentityBackend:
    """Parameters, as Triton's: `execute_delay_ms` says how long each execution takes, `instance_wise_delay_multiplier`
    makes that longer for each instance after the second, `creation_delay_sec` is how long a load takes."""

    name = "identity"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """An identity model knows nothing that its config does not say."""

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> IdentityModel:
        if len(spec.outputs) > len(spec.inputs):
            raise invalid(
                f"model '{spec.name}' has {len(spec.outputs)} outputs and {len(spec.inputs)} inputs, "
                "an identity model needs one input for each output",
                "remove outputs or add inputs in config.pbtxt",
            )
        for into, out in zip(spec.inputs, spec.outputs, strict=False):
            if into.datatype is not out.datatype:
                raise invalid(
                    f"model '{spec.name}': input '{into.name}' is {into.datatype.config_name} and output "
                    f"'{out.name}' is {out.datatype.config_name}, an identity model needs the same type",
                    f"set data_type: {into.datatype.config_name} for output '{out.name}'",
                )
        time.sleep(_number(config, "creation_delay_sec"))
        for name in sorted(_NEEDLESS & config.parameters.keys()):
            _LOG.warning("model '%s': parameter '%s' has no effect, it is for tests of Triton's own", spec.name, name)
        delay = _number(config, "execute_delay_ms") / 1000
        return IdentityModel(spec, host, stats, delay, _number(config, "instance_wise_delay_multiplier"))


class IdentityModel:
    def __init__(self, spec: ModelSpec, host: Host, stats: ModelStats, delay: float, multiplier: int) -> None:
        self._spec = spec
        self._host = host
        self._stats = stats
        self._delay = delay
        self._multiplier = multiplier

    def instance(self, placement: Placement) -> IdentityInstance:
        number = placement.name.rpartition("_")[2]
        factor = max(1, self._multiplier * int(number)) if number.isdecimal() else 1
        return IdentityInstance(self._spec, self._host, counters(self._stats, placement), self._delay * factor)

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


class IdentityInstance:
    """Runs on the event loop: there is nothing to compute."""

    def __init__(self, spec: ModelSpec, host: Host, stats: ModelStats, delay: float) -> None:
        self._spec = spec
        self._host = host
        self._stats = stats
        self._delay = delay

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        begun = time.monotonic_ns()
        if self._delay:
            self._host.loop.call_later(self._delay, self._finish, batch, idle, begun)
        else:
            self._finish(batch, idle, begun)

    def close(self) -> None:
        """Nothing is held."""

    def _finish(self, batch: Sequence[InferRequest], idle: Callable[[], None], begun: int) -> None:
        requests = drop_cancelled(batch, self._stats)
        computed = time.monotonic_ns()
        for request in requests:
            request.sink.reply(request, InferResponse(self._echo(request)), True)
        if requests:
            self._stats.executed(requests, begun, begun, computed, time.monotonic_ns())
        idle()

    def _echo(self, request: InferRequest) -> list[Tensor]:
        form = request.form
        wanted = form.outputs
        tensors = []
        for index, position in enumerate(form.inputs):
            if position >= len(self._spec.outputs):
                break
            output = self._spec.outputs[position]
            if wanted is None or output.name in wanted:
                tensors.append(Tensor(output.name, output.datatype, form.shapes[index], request.data[index]))
        return tensors


def _number(config: ModelConfig, name: str) -> int:
    text = config.parameters[name].string_value if name in config.parameters else "0"
    if not text.isdecimal():
        unit = "whole milliseconds >= 0" if name.endswith("_ms") else "a whole number >= 0"
        raise invalid(f"parameter '{name}' of model '{config.name}' is '{text}', expected {unit}")
    return int(text)
