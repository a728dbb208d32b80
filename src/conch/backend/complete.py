"""Fills into a config what a model says of itself: inputs, outputs, batch size and scheduler. Pure.

The rules are those that Triton has for ONNX. Backends whose models say more, or less, put them together themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from conch.backend.signature import Signature
from conch.config.sequence_tensors import hidden_inputs, hidden_outputs
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import DataType
from conch.types.error import InferError, invalid

#: Triton's default for models that can batch and whose config does not say how far.
DEFAULT_MAX_BATCH_SIZE: Final = 4
#: Of a batch size: a config holds 32 bits.
_MOST_DIGITS: Final = 9


class Known(Protocol):
    """An input or output, as far as the model says; `shape` is complete, -1 stands for any size."""

    @property
    def name(self) -> str: ...

    @property
    def datatype(self) -> DataType | None: ...

    @property
    def shape(self) -> tuple[int, ...] | None: ...


def needs_file(config: ModelConfig) -> bool:
    """Whether the config leaves anything open. With inputs and outputs given, all of it stands as written (Triton)."""
    return not ((config.input or config.batch_input) and config.output)


def complete_config(config: ModelConfig, signature: Signature, max_batch_size: int = DEFAULT_MAX_BATCH_SIZE) -> None:
    """Complete `config`; what the operator wrote wins.

    A model can batch if every input and output begins with a dimension of any size. It then gets `max_batch_size`
    (unless the config has one). Raises InferError for a config that batches a model that cannot.
    """
    if signature.batchable:
        let_batch(config, config.max_batch_size or max_batch_size)
    elif config.max_batch_size != 0:
        fixed = next(slot for slot in (*signature.inputs, *signature.outputs) if not slot.batches)
        raise cannot_batch(
            config.name,
            f"'{fixed.name}' has shape {list(fixed.shape)}: export the model with a first dimension of any size (-1), "
            "or set max_batch_size: 0",
        )
    describe_open(config, signature.inputs, signature.outputs)


def default_max_batch_size(backend: str, settings: Mapping[str, str], otherwise: int = DEFAULT_MAX_BATCH_SIZE) -> int:
    """`--backend-config=<backend>,default-max-batch-size=<n>`. Raises InferError unless it is a number >= 0."""
    text = settings.get("default-max-batch-size", str(otherwise))
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise invalid(
            f"backend setting 'default-max-batch-size' is '{text}', expected a whole number >= 0",
            f"--backend-config={backend},default-max-batch-size={otherwise}",
        )
    return int(text)


def let_batch(config: ModelConfig, max_batch_size: int) -> None:
    """Above 1 with a dynamic batcher, unless the config has a scheduler."""
    config.max_batch_size = max_batch_size
    if max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()


def cannot_batch(model: str, hint: str) -> InferError:
    return invalid(
        f"autofill failed for model '{model}': model does not support batching "
        "while non-zero max_batch_size is specified",
        hint,
    )


def describe_open(config: ModelConfig, inputs: Iterable[Known], outputs: Iterable[Known]) -> None:
    """Describe inputs and outputs where the config has none, but for those that clients do not see."""
    if not config.input and not config.batch_input:
        hidden = hidden_inputs(config)
        describe(config, config.input, [each for each in inputs if each.name not in hidden])
    if not config.output:
        states = hidden_outputs(config)
        describe(config, config.output, [each for each in outputs if each.name not in states])


def describe(config: ModelConfig, entries: Any, tensors: Iterable[Known]) -> None:
    """Write `tensors` into `entries`, the inputs or outputs of `config`, whose batch size is settled."""
    for each in tensors:
        if each.shape is None:
            raise invalid(
                f"autofill failed for model '{config.name}': the model does not say how many dimensions '{each.name}' "
                "has",
                f"write inputs and outputs into config.pbtxt, with the dims of '{each.name}'",
            )
        assert each.datatype is not None
        entry = entries.add(name=each.name, data_type=each.datatype.number)
        set_dims(entry, each.shape, config.max_batch_size > 0)


def set_dims(entry: Any, shape: Sequence[int], batching: bool) -> None:
    """Of a new ModelInput or ModelOutput, for a tensor of this complete shape."""
    dims = shape[1:] if batching else shape
    if dims:
        entry.dims.extend(dims)
        return
    # A config cannot say "scalar": clients send one element; of a batch the model sees only the batch dimension.
    entry.dims.append(1)
    if batching:
        entry.reshape.SetInParent()
