"""Fills into a config what an engine knows, and whether a config agrees with its engine. Pure."""

from __future__ import annotations

from typing import Any

from conch.backend.agree import check_type, dims_of, names_of, unknown_name
from conch.backend.complete import cannot_batch, let_batch
from conch.backend.tensorrt.signature import Signature, Slot
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types.error import invalid, unsupported


def needs_file(config: ModelConfig) -> bool:
    return not (config.input and config.output and config.max_batch_size > 0)


def complete_config(config: ModelConfig, signature: Signature, profiles: tuple[int, ...]) -> None:
    """Inputs, outputs, max_batch_size from the profiles, a dynamic batcher; what the operator wrote wins."""
    if signature.batchable and config.max_batch_size == 0 and not (config.input and config.output):
        let_batch(config, signature.max_batch(profiles))
    _refuse_shared_shapes(config, signature)
    if not signature.batchable and config.max_batch_size > 0:
        raise cannot_batch(config.name, "build the engine with a first dimension of any size, or set max_batch_size: 0")
    lead = 1 if config.max_batch_size > 0 else 0
    for entries, slots in ((config.input, signature.inputs), (config.output, signature.outputs)):
        if not entries:
            for slot in slots:
                _describe(entries.add(), slot, lead)


def check_config(config: ModelConfig, signature: Signature, profiles: tuple[int, ...]) -> None:
    """Raises InferError at the first disagreement."""
    _refuse_shared_shapes(config, signature)
    if config.max_batch_size > 0:
        largest = signature.max_batch(profiles) if signature.batchable else 0
        if config.max_batch_size > largest:
            raise invalid(
                f"unable to load model '{config.name}', configuration has max_batch_size {config.max_batch_size}, "
                f"the engine's profiles allow {largest}",
                f"set max_batch_size: {largest}" if largest else "set max_batch_size: 0",
            )
    if len(config.input) != len(signature.inputs):
        raise invalid(
            f"unable to load model '{config.name}', configuration expects {len(config.input)} inputs, "
            f"model provides {len(signature.inputs)}",
            f"the engine's inputs are: {names_of(signature.inputs)}",
        )
    lead = 1 if config.max_batch_size > 0 else 0
    for kind, entries, slots in (
        ("input", config.input, signature.inputs),
        ("output", config.output, signature.outputs),
    ):
        known = {slot.name: slot for slot in slots}
        for entry in entries:
            if entry.name not in known:
                raise unknown_name(kind, entry.name, slots)
            _check_entry(config.name, kind, entry, known[entry.name], lead)


def _check_entry(model: str, kind: str, entry: ModelInput | ModelOutput, slot: Slot, lead: int) -> None:
    check_type(model, kind, entry.name, entry.data_type, slot.datatype)
    if entry.is_shape_tensor != slot.shape_tensor:
        raise invalid(
            f"unable to load model '{model}', {kind} '{entry.name}' is {'a' if slot.shape_tensor else 'no'} shape "
            "tensor of the engine, and the configuration says otherwise",
            f"set is_shape_tensor: {'true' if slot.shape_tensor else 'false'}",
        )
    dims = dims_of(entry)
    wanted = slot.shape[lead:]
    fits = len(dims) == len(wanted) and all(
        size == -1 or given in (-1, size) for given, size in zip(dims, wanted, strict=True)
    )
    if not fits:
        raise invalid(
            f"unable to load model '{model}', configuration expects dims {dims} for {kind} '{entry.name}', "
            f"model provides {list(wanted)}",
            f"set dims: {list(wanted)}",
        )


def _refuse_shared_shapes(config: ModelConfig, signature: Signature) -> None:
    found = [slot.name for slot in (*signature.inputs, *signature.outputs) if slot.shape_tensor]
    if found and config.max_batch_size > 0:
        raise unsupported(
            f"unable to load model '{config.name}', '{found[0]}' is a shape tensor and max_batch_size is "
            f"{config.max_batch_size}: requests with shape tensors cannot be joined to batches here",
            "set max_batch_size: 0, dims are complete then",
        )


def _describe(entry: Any, slot: Slot, lead: int) -> None:
    entry.name = slot.name
    entry.data_type = slot.datatype.number
    entry.is_shape_tensor = slot.shape_tensor
    entry.dims.extend(slot.shape[lead:])
    if not entry.dims:
        entry.dims.append(1)
        entry.reshape.SetInParent()
