"""The `repeat` backend: a response for each element of IN, each after its DELAY; Triton's decoupled example."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.counters import counters
from conch.backend.sample.signature import Tensor as Wanted
from conch.backend.sample.signature import check_tensors
from conch.backend.sample.stream import Script, ScriptInstance, Step
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import INT32, UINT32
from conch.types.error import invalid
from conch.types.model import ModelSpec, shape_text
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Tensor

_INPUTS = (Wanted("IN", INT32, None), Wanted("DELAY", UINT32, None), Wanted("WAIT", UINT32))
_OUTPUTS = (Wanted("OUT", INT32), Wanted("IDX", UINT32))


class RepeatBackend:
    """Response i has element i of IN as OUT and i as IDX. After WAIT milliseconds the instance takes the next request,
    whether or not all responses have gone."""

    name = "repeat"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """Triton's wants a config, so ours fills in nothing but what it is."""

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> RepeatModel:
        if config.max_batch_size != 0:
            raise invalid("repeat backend only supports models with max_batch_size == 0", "set max_batch_size: 0")
        check_tensors(config, _INPUTS, _OUTPUTS)
        into, delay = (tuple(entry.dims) for entry in config.input[:2])
        if into != delay:
            raise invalid(f"expected IN and DELAY shape to match, got {shape_text(into)} and {shape_text(delay)}")
        return RepeatModel(host, stats)


class RepeatModel:
    def __init__(self, host: Host, stats: ModelStats) -> None:
        self._host = host
        self._stats = stats

    def instance(self, placement: Placement) -> ScriptInstance:
        return ScriptInstance(_script, self._host, counters(self._stats, placement))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


def _script(request: InferRequest) -> Script:
    shapes = request.form.shapes
    if shapes[0] != shapes[1]:
        raise invalid(f"expected IN and DELAY shape to match, got {shape_text(shapes[0])} and {shape_text(shapes[1])}")
    count = request.form.counts[0]
    values = struct.unpack(f"<{count}i", request.data[0])
    delays = struct.unpack(f"<{count}I", request.data[1])
    (wait,) = struct.unpack("<I", request.data[2])
    return Script(_steps(request, values, delays), count, wait / 1000)


def _steps(request: InferRequest, values: tuple[int, ...], delays: tuple[int, ...]) -> Iterator[Step]:
    wanted = request.form.outputs
    for index, (value, delay) in enumerate(zip(values, delays, strict=True)):
        tensors = [
            Tensor("OUT", INT32, (1,), struct.pack("<i", value)),
            Tensor("IDX", UINT32, (1,), struct.pack("<I", index)),
        ]
        if wanted is not None:
            tensors = [tensor for tensor in tensors if tensor.name in wanted]
        yield delay / 1000, InferResponse(tensors)
