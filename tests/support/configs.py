"""Model configs to start from: sound ones, which a test then breaks in one place."""

from __future__ import annotations

from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.pb.model_config_pb2 import ModelConfig

TENSORS = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


def model(text: str = "", *, backend: str = "python", tensors: str = TENSORS) -> ModelConfig:
    """A normalised config of a model `m`; `text` is added to it."""
    config = parse_text(f'name: "m" backend: "{backend}" {tensors} {text}', "config.pbtxt")
    normalize(config)
    return config


def ensemble(steps: str, *, tensors: str = TENSORS, text: str = "") -> ModelConfig:
    """A normalised config of an ensemble `m` with these steps."""
    config = parse_text(
        f'name: "m" platform: "ensemble" {tensors} {text} ensemble_scheduling {{ step [ {steps} ] }}', "config.pbtxt"
    )
    normalize(config)
    return config


def step(inputs: dict[str, str], outputs: dict[str, str], name: str = "a") -> str:
    def mapped(field: str, names: dict[str, str]) -> str:
        return " ".join(f'{field} {{ key: "{key}" value: "{value}" }}' for key, value in names.items())

    return f'{{ model_name: "{name}" {mapped("input_map", inputs)} {mapped("output_map", outputs)} }}'
