"""Fills into a config what a torch.export program knows, and says what to write where a file knows too little. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from conch.backend.complete import cannot_batch, default_max_batch_size, describe_open, let_batch
from conch.backend.torch.content import Kind
from conch.backend.torch.signature import Argument, Holds, Result, Signature
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal, invalid

_MANY: Final = 1 << 30
_WHY: Final = {
    Kind.SCRIPT: "a TorchScript file does not say the types and shapes of its tensors",
    Kind.PACKAGE: "an AOTInductor package does not say the types and shapes of its tensors",
    Kind.MODULE: "a Python module does not say the types and shapes of its tensors",
}


def complete_config(config: ModelConfig, signature: Signature, settings: Mapping[str, str]) -> None:
    """Complete `config` by the rules that Triton has for ONNX; what the operator wrote wins.

    Raises InferError for a config that batches a model that cannot.
    """
    results = signature.results
    assert results is not None, "only exported programs know their results"
    if signature.batchable:
        most = signature.rows[1] or _MANY
        if config.max_batch_size > most:
            raise _too_many(config, most)
        let_batch(config, config.max_batch_size or min(default_max_batch_size("pytorch", settings), most))
    elif config.max_batch_size != 0:
        slots: list[Argument | Result] = [*signature.arguments, *results]
        fixed = next((each for each in slots if not each.shape or each.shape[0] != -1), slots[0])
        raise cannot_batch(
            config.name,
            f"'{fixed.name}' is {list(fixed.shape or ())}, of {signature.rows[0]} rows or more: export the model "
            "with dynamic_shapes for its first dimension, or set max_batch_size: 0",
        )
    describe_open(config, signature.arguments, results)


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
