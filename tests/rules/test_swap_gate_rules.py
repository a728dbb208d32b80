"""What a model's config may say of its gate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.swap_gate import PARAMETER, SwapGate, swap_gate
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.difference import Tolerance
from conch.types.error import Code, InferError

KNOWN = (
    "it has absolute_tolerance, latency_factor, max_bytes, max_mismatches, outputs, relative_tolerance, requests, "
    "seconds"
)
EXAMPLE = 'such as {"requests": 64, "relative_tolerance": 1e-3, "latency_factor": 1.5}'


def config(gate: Any) -> ModelConfig:
    made = ModelConfig(name="m", backend="python")
    made.output.add(name="Y")
    made.output.add(name="Z")
    made.parameters[PARAMETER].string_value = gate if isinstance(gate, str) else json.dumps(gate)
    return made


def refused(gate: Any) -> InferError | None:
    try:
        swap_gate(config(gate))
    except InferError as error:
        return error
    return None


gates = st.fixed_dictionaries(
    {},
    optional={
        "requests": st.integers(1, 10_000),
        "max_bytes": st.integers(1, 1 << 40),
        "relative_tolerance": st.floats(0, 10),
        "absolute_tolerance": st.floats(0, 10),
        "max_mismatches": st.integers(0, 10_000),
        "outputs": st.lists(st.sampled_from("YZ"), unique=True),
        "latency_factor": st.floats(0.01, 100),
        "seconds": st.floats(0.1, 3600),
    },
)


@given(gates)
def test_what_is_said_is_meant(given: dict[str, Any]) -> None:
    """Each field has the value that is given, and the usual one where none is."""
    found = swap_gate(config(given))
    usual = SwapGate()
    assert found is not None
    assert found == SwapGate(
        requests=given.get("requests", usual.requests),
        max_bytes=given.get("max_bytes", usual.max_bytes),
        tolerance=Tolerance(given.get("relative_tolerance", 1e-3), given.get("absolute_tolerance", 1e-5)),
        max_mismatches=given.get("max_mismatches", 0),
        outputs=tuple(given.get("outputs", ())),
        latency_factor=given.get("latency_factor"),
        seconds=given.get("seconds", usual.seconds),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.text() | json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(("requests", "outputs"), json_values))
)
def test_nonsense_is_refused_with_the_parameter_named(gate: Any) -> None:
    """Whatever is written, it is understood or refused as the client's mistake; nothing else is raised."""
    refusal = refused(gate)
    if refusal is not None:
        assert refusal.code is Code.INVALID_ARG
        assert refusal.message.startswith("parameter 'conch_swap_gate' of model 'm' ")
        assert refusal.hint


@pytest.mark.parametrize(
    ("gate", "message", "hint"),
    [
        ({"requests": 0}, "has requests 0", "expected a whole number from 1 to 10000"),
        ({"requests": True}, "has requests True", "expected a whole number from 1 to 10000"),
        ({"latency_factor": 0}, "has latency_factor 0", "expected a number from 0.01 to 1e+06"),
        ({"relative_tolerance": -1}, "has relative_tolerance -1", "expected a number from 0"),
        ({"outputs": ["W"]}, "names the output 'W'", "the model has Y, Z"),
        ({"tolerance": 1}, "has an unknown field 'tolerance'", KNOWN),
        ("[1]", "is [1]", f"write an object, {EXAMPLE}"),
    ],
)  # fmt: skip
def test_refusals_say_what_was_expected(gate: Any, message: str, hint: str) -> None:
    """The text names the field and its value, the hint says what may stand there."""
    with pytest.raises(InferError) as caught:
        swap_gate(config(gate))
    assert caught.value.message == f"parameter 'conch_swap_gate' of model 'm' {message}"
    assert caught.value.hint == hint


@pytest.mark.parametrize("kind", ["sequence", "ensemble", "decoupled"])
def test_a_gate_is_for_models_whose_requests_stand_alone(kind: str) -> None:
    """Answers of sequences, ensembles and decoupled models cannot be compared one by one: the config is refused."""
    made = config({})
    if kind == "sequence":
        made.sequence_batching.SetInParent()
    elif kind == "ensemble":
        made.ensemble_scheduling.SetInParent()
    else:
        made.model_transaction_policy.decoupled = True
    with pytest.raises(InferError, match="is set for a"):
        swap_gate(made)


def test_most_models_have_no_gate() -> None:
    """Without the parameter nothing is remembered and nothing compared."""
    assert swap_gate(ModelConfig(name="m")) is None
