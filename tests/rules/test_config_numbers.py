"""Parameters that are JSON, with numbers and depths that no float and no stack can hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conch.config.memory import memory_wish
from conch.config.padding import padding_of
from conch.config.swap_gate import swap_gate
from conch.config.traffic import traffic_of
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError

READERS = {
    "conch_padding": padding_of,
    "conch_memory": memory_wish,
    "conch_swap_gate": swap_gate,
    "conch_traffic": traffic_of,
}
KEYS = [
    "ram", "gpu:0", "pinned", "idle_seconds", "load", "requests", "max_bytes", "relative_tolerance", "latency_factor",
    "seconds", "outputs", "arms", "shadow", "weight", "version", "fraction", "compare", "sticky", "colour", "inputs",
    "mask", "max_waste",
]  # fmt: skip
NUMBERS = st.sampled_from([10**400, -(10**400), 10**19, 1e308, -1e308, 1e400, 0, -1, 10**309 + 1, True])


def read(parameter: str, text: str) -> str:
    """What is said of it; empty where nothing is."""
    config = ModelConfig(name="m", backend="identity")
    config.parameters[parameter].string_value = text
    error = None
    try:
        READERS[parameter](config)
    except InferError as refused:
        error = refused
    assert error is None or (error.code is Code.INVALID_ARG and error.hint)
    return "" if error is None else error.message


def nested(value: Any, key: str) -> list[str]:
    inner = f'{{"{key}": {json.dumps(value)}}}'
    return [inner, f'{{"arms": [{inner}]}}', f'{{"shadow": {{"compare": {inner}}}}}']


@settings(max_examples=200, deadline=None)
@example(key="idle_seconds", value=10**400)
@example(key="ram", value=10**400)
@example(key="relative_tolerance", value=10**400)
@example(key="weight", value=10**400)
@given(key=st.sampled_from(KEYS), value=NUMBERS | st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=2)))
def test_any_number_is_taken_or_refused(key: str, value: Any) -> None:
    """Never another exception, whatever field it is in."""
    for parameter in READERS:
        for text in nested(value, key):
            said = read(parameter, text)
            assert not said or f"'{parameter}'" in said


@pytest.mark.parametrize("parameter", READERS)
@pytest.mark.parametrize("depth", [100, 400, 600, 900, 100_000])
@pytest.mark.parametrize("key", KEYS)
def test_any_depth_is_refused(parameter: str, depth: int, key: str) -> None:
    """Also one that can be read but not shown."""
    said = read(parameter, f'{{"{key}": {"[" * depth}{"]" * depth}}}')
    assert f"'{parameter}'" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("parameter", "text", "said"),
    [
        ("conch_memory", '{"idle_seconds": 1' + "0" * 400 + "}", "'idle_seconds', expected seconds above 0"),
        ("conch_memory", '{"ram": 1' + "0" * 400 + "}", "'ram', expected an amount of memory"),
        ("conch_memory", "[" * 100_000, "is no JSON: it is nested too deeply"),
        ("conch_swap_gate", '{"relative_tolerance": 1' + "0" * 400 + "}", "has relative_tolerance 1000"),
        ("conch_traffic", '{"arms": {"weight": 1' + "0" * 400 + "}}", "arms.weight is 1000"),
    ],
)
def test_the_field_is_named(parameter: str, text: str, said: str) -> None:
    """The sentence says which."""
    assert said in read(parameter, text)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"pinned": true, "pinned": false}', "says 'pinned' twice"),
        ('{"seconds": NaN}', "is no JSON: NaN is no number of JSON"),
        ("[" * 100_000, "is no JSON: it is nested too deeply"),
        ("{", "is no JSON: "),
    ],
)
def test_parameters_are_read_strictly(name: str, text: str, what: str) -> None:
    """Of a key that is there twice neither is taken, in any parameter of ours."""
    config = ModelConfig(name="m", backend="python")
    config.parameters[name].string_value = text
    with pytest.raises(InferError, match=f"parameter '{name}'.* {what}"):
        READERS[name](config)
