"""Fills into a config what a torch.export program knows, and says what to write where a file knows too little. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conch.backend.torch.content import Kind
from conch.backend.torch.signature import Argument, Holds, Result, Signature
from conch.config.sequence_tensors import hidden_inputs, hidden_outputs
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal, invalid

_MANY: Final = 1 << 30
#: Triton's default for models that can batch and whose config does not say how far.
DEFAULT_MAX_BATCH_SIZE: Final = 4
_WHY: Final = {
    Kind.SCRIPT: "a TorchScript file does not say the types and shapes of its tensors",
    Kind.PACKAGE: "an AOTInductor package does not say the types and shapes of its tensors",
    Kind.MODULE: "a Python module does not say the types and shapes of its tensors",
}


def needs_file(config: ModelConfig) -> bool:
    """Whether the config leaves inputs or outputs open."""
    return not ((config.input or config.batch_input) and config.output)


def complete_config(config: ModelConfig, signature: Signature, settings: Mapping[str, str]) -> None:
    """Complete `config` by the rules that Triton has for ONNX; what the operator wrote wins.

    Raises InferError for a config that batches a model that cannot.
    """
    results = signature.results
    assert results is not None, "only exported programs know their results"
    if signature.batchable:
        if config.max_batch_size == 0:
            config.max_batch_size = min(default_max_batch_size(settings), signature.rows[1] or _MANY)
        elif signature.rows[1] is not None and config.max_batch_size > signature.rows[1]:
            raise _too_many(config, signature.rows[1])
        if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
    elif config.max_batch_size != 0:
        slots: list[Argument | Result] = [*signature.arguments, *results]
        fixed = next((each for each in slots if not each.shape or each.shape[0] != -1), slots[0])
        raise invalid(
            f"autofill failed for model '{config.name}': model does not support batching "
            "while non-zero max_batch_size is specified",
            f"'{fixed.name}' is {list(fixed.shape or ())}, of {signature.rows[0]} rows or more: export the model "
            "with dynamic_shapes for its first dimension, or set max_batch_size: 0",
        )
    batching = config.max_batch_size > 0
    if not config.input and not config.batch_input:
        hidden = hidden_inputs(config)
        for argument in signature.arguments:
            if argument.name not in hidden:
                _describe(config.input.add(), argument, batching)
    if not config.output:
        states = hidden_outputs(config)
        for result in results:
            if result.name not in states:
                _describe(config.output.add(), result, batching)


def default_max_batch_size(settings: Mapping[str, str]) -> int:
    text = settings.get("default-max-batch-size", str(DEFAULT_MAX_BATCH_SIZE))
    if not text.isdecimal():
        raise invalid(
            f"backend setting 'default-max-batch-size' is '{text}', expected a whole number >= 0",
            "--backend-config=pytorch,default-max-batch-size=4",
        )
    return int(text)


def _too_many(config: ModelConfig, most: int) -> InferError:
    return invalid(
        f"autofill failed for model '{config.name}': max_batch_size is {config.max_batch_size}, the model was exported "
        f"for at most {most} rows",
        f"set max_batch_size: {most}, or export with a larger max of torch.export.Dim",
    )


def says_too_little(config: ModelConfig, kind: Kind, signature: Signature | None) -> InferError:
    """For a file that cannot complete the config: Triton's error, and a config to paste as a hint."""
    missing = "input" if not config.input else "output"
    return internal(
        f"model configuration must contain at least one {missing}, none were specified.",
        f"{_WHY[kind]}; write {'its types and shapes' if signature else 'them'} into config.pbtxt, such as:\n"
        + example(config, kind, signature),
    )


def example(config: ModelConfig, kind: Kind, signature: Signature | None) -> str:
    """A config whose types and sizes are guesses."""
    arguments = signature.arguments if signature else (Argument("INPUT__0"),)
    if signature is not None and signature.dictionary:
        arguments = (Argument("a key of the dictionary"),)
    lines = [f'name: "{config.name}"', 'backend: "pytorch"']
    if config.platform and kind is not Kind.MODULE:
        lines.append(f'platform: "{config.platform}"')
    if kind is Kind.MODULE:
        lines.append('runtime: "model.py"')
    lines.append("max_batch_size: 8  # 0 if the first dimension is no batch")
    for argument in arguments:
        if argument.required:
            strings = argument.holds is Holds.STRINGS
            what = "TYPE_STRING dims: [ 1 ] reshape: { shape: [] }" if strings else "TYPE_FP32 dims: [ 3, 224, 224 ]"
            lines.append(f'input [ {{ name: "{argument.name}" data_type: {what} }} ]')
    lines += ['output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1000 ] } ]', "dynamic_batching { }"]
    return "\n".join(lines)


def _describe(entry: Any, slot: Argument | Result, batching: bool) -> None:
    """Write `slot` into a new ModelInput or ModelOutput."""
    assert slot.datatype is not None
    assert slot.shape is not None
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
