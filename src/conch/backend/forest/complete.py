"""Fills into a config what a forest knows, and says where a config does not fit its forest. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from conch.backend.agree import dims_of
from conch.backend.complete import default_max_batch_size, let_batch
from conch.backend.forest.options import ForestPlan
from conch.backend.forest.signature import INPUT, OUTPUT, SHAP_OUTPUT, Signature, classifies, output_width
from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelOutput
from conch.types.error import InferError, invalid

#: A row takes microseconds: only large batches keep a forest busy.
DEFAULT_MAX_BATCH_SIZE: Final = 8192

_NUMBERS: Final = (DataType.TYPE_FP32, DataType.TYPE_FP64)


def needs_file(config: ModelConfig) -> bool:
    """Whether the config leaves anything open. With inputs and outputs given, all of it stands as written."""
    return not (config.input and config.output)


def complete_config(config: ModelConfig, plan: ForestPlan, signature: Signature, settings: Mapping[str, str]) -> None:
    """Complete `config`; what the operator wrote wins. Raises InferError for a setting that is no number."""
    if config.max_batch_size == 0 and not config.input:
        config.max_batch_size = default_max_batch_size("fil", settings, DEFAULT_MAX_BATCH_SIZE)
    let_batch(config, config.max_batch_size)
    rows = [] if config.max_batch_size > 0 else [-1]
    if not config.input:
        dims = [*rows, signature.features]
        config.input.append(ModelInput(name=INPUT, data_type=DataType.TYPE_FP32, dims=dims))
    if not config.output:
        dims = [*rows, output_width(plan, signature)]
        config.output.append(ModelOutput(name=OUTPUT, data_type=DataType.TYPE_FP32, dims=dims))


def check_config(config: ModelConfig, plan: ForestPlan, signature: Signature) -> None:
    """Raises InferError at the first disagreement between a complete config, its parameters and the forest."""
    names = [entry.name for entry in config.input]
    if names != [INPUT]:
        raise _refused(config, f"configuration has the inputs {names}, forests have one: '{INPUT}'")
    outputs = [entry.name for entry in config.output]
    if OUTPUT not in outputs or set(outputs) - {OUTPUT, SHAP_OUTPUT}:
        raise _refused(
            config, f"configuration has the outputs {outputs}, forests have '{OUTPUT}' and may have '{SHAP_OUTPUT}'"
        )
    if plan.predict_proba and not classifies(plan, signature):
        raise _refused(
            config,
            "predict_proba is true for a model that is no classifier",
            'remove "predict_proba", or set is_classifier to "true" for scores of classes',
        )
    entries: list[ModelInput | ModelOutput] = [*config.input, *config.output]
    for entry in entries:
        if entry.data_type not in _NUMBERS:
            raise _refused(
                config,
                f"'{entry.name}' has data_type {DataType.Name(entry.data_type)}",
                "forests take and give TYPE_FP32 (TYPE_FP64 where 64-bit numbers matter)",
            )
    _check_width(config, config.input[0], (signature.features,), "features")
    width = output_width(plan, signature)
    for entry in config.output:
        if entry.name == SHAP_OUTPUT:
            _check_width(config, entry, (signature.classes * (signature.features + 1),), "Shapley values")
        else:
            # One number for both scores of a binary classifier is upstream's later convention.
            halves = both_scores(plan, signature)
            _check_width(config, entry, (width, width // 2) if halves else (width,), "values")


def both_scores(plan: ForestPlan, signature: Signature) -> bool:
    """Whether a row may have two scores although the forest computes one."""
    return plan.predict_proba and signature.classes == 1


def row_dims(config: ModelConfig, entry: ModelInput | ModelOutput) -> list[int]:
    """The dims of one row, as the forest sees it."""
    dims = dims_of(entry)
    batching = config.max_batch_size > 0
    return dims if batching or len(dims) == 1 else dims[1:]


def _check_width(config: ModelConfig, entry: ModelInput | ModelOutput, widths: Sequence[int], what: str) -> None:
    dims = row_dims(config, entry)
    # Upstream says [ 1 ] for one value; no dims at all is one value, too.
    if -1 not in dims and math.prod(dims) in widths:
        return
    raise _refused(
        config,
        f"'{entry.name}' has dims {list(entry.dims)}, the model has {widths[0]} {what} a row",
        f"set dims: [ {widths[0]} ]",
    )


def _refused(config: ModelConfig, text: str, hint: str = "") -> InferError:
    return invalid(f"unable to load model '{config.name}', {text}", hint)
