"""How long an instance of the identity backend takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.identity import IdentityBackend
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec
from support.requests import make_request


class Loop:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def call_later(self, seconds: float, *_: object) -> None:
        self.delays.append(seconds)


def model_of(loop: Loop, **parameters: str) -> Any:
    config = ModelConfig(name="m")
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    host = Host(loop)  # type: ignore[arg-type]
    return IdentityBackend().load(config, ModelSpec("m", 1, 0, (), ()), ModelFiles(Path("/m"), 1), host, ModelStats())


@pytest.mark.parametrize(
    ("name", "multiplier", "delay"),
    [("m_0_0", "0", 0.1), ("m_0_3", "0", 0.1), ("m_0_0", "4", 0.1), ("m_0_1", "4", 0.4), ("m_0_2", "4", 0.8)],
)
def test_later_instances_are_slower(name: str, multiplier: str, delay: float) -> None:
    """The delay of instance n is n times the multiplier times the delay, and never less than the delay (Triton)."""
    loop = Loop()
    model = model_of(loop, execute_delay_ms="100", instance_wise_delay_multiplier=multiplier)
    model.instance(Placement(name, "CPU")).start([make_request()], lambda: None)
    assert loop.delays == [pytest.approx(delay)]


def test_parameters_for_tritons_own_tests_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Tracing of activities that a backend makes up is not there."""
    model_of(Loop(), enable_custom_tracing="true")
    assert caplog.messages == [
        "model 'm': parameter 'enable_custom_tracing' has no effect, it is for tests of Triton's own"
    ]
