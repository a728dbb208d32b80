"""Which tensors of an ensemble stay on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.ensemble_members import check_members
from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.schedule.ensemble_devices import Residence, residence, staying
from conch.schedule.ensemble_graph import Graph, graph_of
from conch.types.dtype import BYTES
from support.configs import model
from support.ensembles import Step, member

BOTH = frozenset({0, 1})
ALL = frozenset({"x", "y", "z"})


def graph(outputs: list[str], steps: list[Step]) -> Graph:
    """Of an ensemble that reads `a`."""
    config = ModelConfig(name="e", platform="ensemble")
    config.input.add(name="a", data_type=BYTES.number, dims=[1])
    for each in outputs:
        config.output.add(name=each, data_type=BYTES.number, dims=[1])
    for name, reads, writes in steps:
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        step.input_map.update(reads)
        step.output_map.update(writes)
    members = [member(name, list(reads), list(writes)).config for name, reads, writes in steps]
    return graph_of(config, check_members(config, members))


def on(*gpus: int, takes: frozenset[str] = ALL, gives: frozenset[str] = ALL) -> Residence:
    return Residence(frozenset(gpus), takes, gives)


CHAIN: list[Step] = [("m", {"x": "a"}, {"y": "b"}), ("n", {"x": "b"}, {"y": "c"})]
FAN: list[Step] = [
    ("m", {"x": "a"}, {"y": "b", "z": "d"}),
    ("n", {"x": "b", "z": "b"}, {"y": "c"}),
    ("o", {"x": "b", "y": "d"}, {"z": "f"}),
]
NONE: frozenset[str] = frozenset()


def test_what_the_next_step_takes_stays() -> None:
    """The ensemble's own outputs never do."""
    assert staying(graph(["c"], CHAIN), [on(0), on(0)]) == ({"y"}, NONE)
    assert staying(graph(["b", "c"], CHAIN), [on(0), on(0)]) == (NONE, NONE)


@pytest.mark.parametrize(
    ("writer", "reader", "stays"),
    [
        (on(0), on(0, 1), True),
        (on(0, 1), on(0, 1), True),
        (on(0, 1), on(0), False),
        (on(0), on(1), False),
        (on(0), on(), False),
        (on(), on(0), False),
        (on(0), on(0, takes=frozenset({"z"})), False),
        (on(0, gives=frozenset({"z"})), on(0), False),
    ],
)
def test_reader_and_writer_must_be_on_the_same_gpus(writer: Residence, reader: Residence, stays: bool) -> None:
    """The reader on every GPU of the writer's; each has to say that it can."""
    assert bool(staying(graph(["c"], CHAIN), [writer, reader])[0]) is stays


def test_one_reader_that_needs_bytes_is_enough() -> None:
    """What several steps read stays if all of them take it, by whichever of their inputs."""
    made = graph(["c", "f"], FAN)
    assert staying(made, [on(0), on(0), on(0)])[0] == {"y", "z"}
    assert staying(made, [on(0), on(0), on(1)])[0] == NONE
    assert staying(made, [on(0), on(0, takes=frozenset({"x"})), on(0)])[0] == {"z"}
    assert staying(made, [on(0), on(0), on(0, takes=frozenset({"x"}))])[0] == {"y"}


def test_what_nobody_reads_does_not_stay() -> None:
    steps: list[Step] = [("m", {"x": "a"}, {"y": "b", "z": "unread"}), ("n", {"x": "b"}, {"y": "c"})]
    assert staying(graph(["c"], steps), [on(0), on(0)])[0] == {"y"}


NAMES = st.frozensets(st.sampled_from("xyz"))
PLACES = st.builds(Residence, st.frozensets(st.integers(0, 2)), NAMES, NAMES)


@given(st.lists(PLACES, min_size=3, max_size=3), st.sampled_from([["c", "f"], ["b", "c", "f"], ["c", "d", "f"]]))
def test_whoever_is_given_a_tensor_on_a_gpu_can_take_it(places: list[Residence], outputs: list[str]) -> None:
    """Of any graph: no reader without all GPUs of the writer's, none that does not take it, nothing that is shown."""
    made = graph(outputs, FAN)
    for step, place, stays in zip(made.steps, places, staying(made, places), strict=True):
        for name in stays:
            tensor = step.outputs[name]
            assert tensor not in made.outputs.values()
            assert name in place.gives
            assert place.gpus
            readers = [(i, p) for s, p in zip(made.steps, places, strict=True) for i, t in s.inputs if t == tensor]
            assert readers
            assert all(i in p.takes and place.gpus <= p.gpus for i, p in readers)


class Loaded:
    """A model whose `x` may come from a GPU, and whose `y` may stay there."""

    def device_tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset("x"), frozenset("y")


GROUP = "instance_group { kind: KIND_GPU gpus: [ 0, 1 ] } "


def test_a_model_on_gpus_alone_says_what_it_can() -> None:
    """With the GPUs of all its groups."""
    text = GROUP + "instance_group { kind: KIND_GPU gpus: [ 2 ] } instance_group { kind: KIND_CPU passive: true }"
    assert residence(model(text), Loaded()) == Residence(BOTH | {2}, frozenset("x"), frozenset("y"))


@pytest.mark.parametrize(
    ("text", "loaded"),
    [
        (GROUP, object()),
        (GROUP + "instance_group { kind: KIND_CPU }", Loaded()),
        ("instance_group { kind: KIND_MODEL }", Loaded()),
        (GROUP + "model_transaction_policy { decoupled: true }", Loaded()),
        (GROUP + "sequence_batching {}", Loaded()),
        (GROUP + "response_cache { enable: true }", Loaded()),
        (GROUP + 'parameters { key: "conch_swap_gate" value { string_value: "{}" } }', Loaded()),
    ],
    ids=["says nothing", "CPU too", "KIND_MODEL", "decoupled", "sequences", "cache", "gate"],
)
def test_models_that_need_bytes(text: str, loaded: Any) -> None:
    """Those that say nothing, have instances elsewhere, or have something around them that looks at tensors."""
    assert residence(model(text), loaded) == Residence()


def test_groups_are_what_counts() -> None:
    """A group of KIND_GPU without GPUs is no place."""
    config = model("")
    config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU)
    assert residence(config, Loaded()).gpus == NONE
