"""Fills into a config what a model file knows: inputs, outputs, batch size and scheduler. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from conch.backend.complete import default_max_batch_size, describe, let_batch
from conch.backend.openvino.signature import Signature
from conch.config.sequence_tensors import hidden_inputs, hidden_outputs
from conch.pb.model_config_pb2 import ModelConfig


def needs_file(config: ModelConfig) -> bool:
    """Whether the config leaves anything open. With inputs and outputs given, all of it stands as written."""
    return not (config.input and config.output)


def complete_config(config: ModelConfig, signature: Signature, settings: Mapping[str, str]) -> None:
    """Complete `config`; what the operator wrote wins.

    A model can batch if every input and output begins with a dimension of any size or has a layout with a batch
    (Triton: a layout). It then gets `default-max-batch-size` (unless the config has one) and, above 1, a dynamic
    batcher (unless it has a scheduler). A config that batches another model has it reshaped at load.
    """
    default = default_max_batch_size("openvino", settings)
    if signature.batchable:
        let_batch(config, config.max_batch_size or default)
    if not config.input:
        hidden = hidden_inputs(config)
        describe(config, config.input, [slot for slot in signature.inputs if hidden.isdisjoint(slot.names)])
    if not config.output:
        states = hidden_outputs(config)
        describe(config, config.output, [slot for slot in signature.outputs if states.isdisjoint(slot.names)])
