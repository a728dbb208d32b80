"""Whether batches may run as several smaller runs: the parameter `conch_cut_batches` of a model's config. Pure."""

from __future__ import annotations

from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

#: "no" forbids it.
PARAMETER: Final = "conch_cut_batches"
#: Backends that do it.
BACKENDS: Final = ("onnxruntime", "pytorch")


def may_cut(config: ModelConfig) -> bool:
    """Whether batches of the model may run in portions. Raises InferError."""
    text = config.parameters[PARAMETER].string_value if PARAMETER in config.parameters else "yes"
    if text not in ("yes", "no"):
        raise invalid(
            f"parameter '{PARAMETER}' of model '{config.name}' is '{text}', expected yes or no",
            "no: a batch is one run, whatever it costs",
        )
    return text == "yes" and config.max_batch_size > 1 and config.HasField("dynamic_batching")
