"""Fills into a config what a model file knows: inputs, outputs, batch size and scheduler. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conch.backend.openvino.signature import Signature, Slot
from conch.config.sequence_tensors import hidden_inputs, hidden_outputs
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid

#: Triton's default for models that can batch and whose config does not say how far.
DEFAULT_MAX_BATCH_SIZE: Final = 4


def needs_file(config: ModelConfig) -> bool:
    """Whether the config leaves anything open. With inputs and outputs given, all of it stands as written."""
    return not (config.input and config.output)


def complete_config(config: ModelConfig, signature: Signature, settings: Mapping[str, str]) -> None:
    """Complete `config`; what the operator wrote wins.

    A model can batch if every input and output begins with a dimension of any size or has a layout with a batch
    (Triton: a layout). It then gets `default-max-batch-size` (unless the config has one) and, above 1, a dynamic
    batcher (unless it has a scheduler). A config that batches another model has it reshaped at load.
    """
    default = default_max_batch_size(settings)
    if signature.batchable:
        if config.max_batch_size == 0:
            config.max_batch_size = default
        if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
    batching = config.max_batch_size > 0
    if not config.input:
        hidden = hidden_inputs(config)
        for slot in signature.inputs:
            if not hidden.intersection(slot.names):
                _describe(config, config.input.add(), slot, batching)
    if not config.output:
        states = hidden_outputs(config)
        for slot in signature.outputs:
            if not states.intersection(slot.names):
                _describe(config, config.output.add(), slot, batching)


def default_max_batch_size(settings: Mapping[str, str]) -> int:
    """`--backend-config=openvino,default-max-batch-size=<n>`. Raises InferError unless it is a number >= 0."""
    text = settings.get("default-max-batch-size", str(DEFAULT_MAX_BATCH_SIZE))
    if not text.isdecimal():
        raise invalid(
            f"backend setting 'default-max-batch-size' is '{text}', expected a whole number >= 0",
            "--backend-config=openvino,default-max-batch-size=4",
        )
    return int(text)


def _describe(config: ModelConfig, entry: Any, slot: Slot, batching: bool) -> None:
    """Write `slot` into a new ModelInput or ModelOutput."""
    if slot.shape is None:
        raise _unknown(config.name, slot)
    entry.name = slot.name
    entry.data_type = slot.datatype.number
    dims = slot.shape[1:] if batching else slot.shape
    if dims:
        entry.dims.extend(dims)
        return
    # A config cannot say "scalar": clients send one element; of a batch the model sees only the batch dimension.
    entry.dims.append(1)
    if batching:
        entry.reshape.SetInParent()


def _unknown(model: str, slot: Slot) -> InferError:
    return invalid(
        f"autofill failed for model '{model}': the model does not say how many dimensions '{slot.name}' has",
        f"write inputs and outputs into config.pbtxt, with the dims of '{slot.name}'",
    )
