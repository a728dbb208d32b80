"""Which tensors between the steps of an ensemble stay on the GPU that computes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from conch.backend.api import Staying
from conch.config.swap_gate import swap_gate
from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.schedule.ensemble_graph import Graph

_NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Residence:
    """Where a step's model runs, and which tensors of that place its instances read, and can leave there."""

    #: GPUs; empty where any instance is elsewhere, or something between client and model needs bytes on the host.
    gpus: frozenset[int] = frozenset()
    #: Names of inputs and of outputs.
    takes: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()


def residence(config: ModelConfig, loaded: object) -> Residence:
    """Of a model that is open: `loaded` is its `LoadedModel`, `config` its config with its instance groups complete."""
    if not isinstance(loaded, Staying) or _reads_bytes(config):
        return Residence()
    groups = [group for group in config.instance_group if not group.passive]
    if any(group.kind != ModelInstanceGroup.KIND_GPU for group in groups):
        return Residence()
    return Residence(frozenset([gpu for group in groups for gpu in group.gpus]), *loaded.device_tensors())


def staying(graph: Graph, residences: Sequence[Residence]) -> tuple[frozenset[str], ...]:
    """For each step, the names of the outputs that may stay: all who read them are steps that take them, and have
    instances on every GPU that they may be on."""
    shown = set(graph.outputs.values())
    takers: dict[int, list[tuple[str, Residence]]] = {}
    for step, place in zip(graph.steps, residences, strict=True):
        for name, tensor in step.inputs:
            takers.setdefault(tensor, []).append((name, place))

    def stays(name: str, tensor: int, place: Residence) -> bool:
        readers = takers.get(tensor, ())
        return name in place.gives and tensor not in shown and bool(readers) and _all_take(readers, place.gpus)

    return tuple(
        [
            frozenset([name for name, tensor in step.outputs.items() if stays(name, tensor, place)])
            if place.gpus
            else _NONE
            for step, place in zip(graph.steps, residences, strict=True)
        ]
    )


def _all_take(readers: Iterable[tuple[str, Residence]], gpus: frozenset[int]) -> bool:
    return all(name in reader.takes and gpus <= reader.gpus for name, reader in readers)


def _reads_bytes(config: ModelConfig) -> bool:
    """Whether something around the model looks at its tensors: sequences, streams, the cache, a gate."""
    return (
        config.model_transaction_policy.decoupled
        or config.HasField("sequence_batching")
        or config.response_cache.enable
        or swap_gate(config) is not None
    )
