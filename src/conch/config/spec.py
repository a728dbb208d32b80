"""From a complete model config to what the request path needs of it."""

from __future__ import annotations

from conch.config.padding import padding_of
from conch.config.sequence_tensors import sequence_spec
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types.dtype import BY_NUMBER
from conch.types.error import invalid
from conch.types.model import ModelSpec, TensorSpec


def model_spec(config: ModelConfig, version: int) -> ModelSpec:
    """The spec of one version. Raises InferError when a tensor has no data type (see `rules.validate`)."""
    padding = padding_of(config)
    #: Masks that clients leave out are made by the server.
    made = [mask.name for mask in padding.masks] if padding is not None else []
    return ModelSpec(
        name=config.name,
        version=version,
        max_batch_size=config.max_batch_size,
        inputs=tuple(
            _tensor(config.name, "input", each, optional=each.optional or each.name in made) for each in config.input
        ),
        outputs=tuple(_tensor(config.name, "output", each) for each in config.output),
        decoupled=config.model_transaction_policy.decoupled,
        padding=padding,
        sequence=sequence_spec(config),
    )


def _tensor(model: str, kind: str, tensor: ModelInput | ModelOutput, *, optional: bool = False) -> TensorSpec:
    datatype = BY_NUMBER.get(tensor.data_type)
    if datatype is None:
        raise invalid(f"model {kind} '{tensor.name}' must specify 'data_type' for {model}")
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    ragged = isinstance(tensor, ModelInput) and tensor.allow_ragged_batch
    return TensorSpec(tensor.name, datatype, tuple(tensor.dims), optional, reshape, ragged=ragged)
