"""A model's wishes, and the config that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conch.pb.model_config_pb2 import ModelConfig as Message
from conch.pb.model_config_pb2 import ModelQueuePolicy
from conch.pytriton.exceptions import PyTritonValidationError
from conch.pytriton.model_config.common import DynamicBatcher, ModelWarmup, QueuePolicy
from conch.pytriton.model_config.tensor import Tensor
from conch.types import dtype as datatypes

_BY_NUMPY = {each.numpy.type: each for each in datatypes.ALL if each not in (datatypes.BYTES, datatypes.BF16)}


@dataclass
class ModelConfig:
    batching: bool = True
    max_batch_size: int = 4
    batcher: DynamicBatcher = field(default_factory=DynamicBatcher)
    response_cache: bool = False
    decoupled: bool = False
    model_warmup: Sequence[ModelWarmup] | None = None


def named(tensors: Sequence[Tensor], prefix: str) -> list[Tensor]:
    """Those without a name are called by their place: INPUT_1, OUTPUT_2. Raises PyTritonValidationError."""
    found = [
        Tensor(each.shape, each.dtype, each.name or f"{prefix}_{place}", each.optional)
        for place, each in enumerate(tensors, 1)
    ]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise PyTritonValidationError(f"the names of {prefix.lower()}s must differ, found {names}")
    return found


def message(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], config: ModelConfig, instances: int
) -> Message:
    """The server's config. Tensors have names. Raises PyTritonValidationError."""
    made = Message(name=name, max_batch_size=config.max_batch_size if config.batching else 0)
    for each in inputs:
        optional = bool(each.optional)
        made.input.add(name=each.name, data_type=_number(each.dtype), dims=each.shape, optional=optional)
    for each in outputs:
        made.output.add(name=each.name, data_type=_number(each.dtype), dims=each.shape)
    made.instance_group.add(count=instances, kind="KIND_CPU")
    if config.batching:
        _batcher(made, config.batcher)
    if config.response_cache:
        made.response_cache.enable = True
    if config.decoupled:
        made.model_transaction_policy.decoupled = True
    for warmup in config.model_warmup or ():
        _warm(made, warmup)
    return made


def datatype(dtype: Any) -> datatypes.DataType:
    """Raises PyTritonValidationError for what is no tensor's type."""
    if dtype is np.bytes_:
        return datatypes.BYTES
    found = _BY_NUMPY.get(dtype)
    if found is None:
        raise PyTritonValidationError(f"dtype {dtype!r} is no tensor's type, expected bytes or one of numpy's numbers")
    return found


def _number(dtype: Any) -> Any:
    """As the config's enumeration has it."""
    return datatype(dtype).number


def _batcher(made: Message, batcher: DynamicBatcher) -> None:
    dynamic = made.dynamic_batching
    dynamic.max_queue_delay_microseconds = batcher.max_queue_delay_microseconds
    dynamic.preferred_batch_size.extend(batcher.preferred_batch_size or ())
    dynamic.preserve_ordering = batcher.preserve_ordering
    dynamic.priority_levels = batcher.priority_levels
    dynamic.default_priority_level = batcher.default_priority_level
    if batcher.default_queue_policy is not None:
        dynamic.default_queue_policy.CopyFrom(_policy(batcher.default_queue_policy))
    for level, policy in (batcher.priority_queue_policy or {}).items():
        dynamic.priority_queue_policy[level].CopyFrom(_policy(policy))


def _policy(policy: QueuePolicy) -> ModelQueuePolicy:
    return ModelQueuePolicy(
        timeout_action=policy.timeout_action.value,
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _warm(made: Message, warmup: ModelWarmup) -> None:
    entry = made.model_warmup.add(name=warmup.name, batch_size=warmup.batch_size, count=warmup.count)
    for name, each in warmup.inputs.items():
        tensor = entry.inputs[name]
        tensor.data_type = _number(Tensor(each.shape, each.dtype).dtype)
        tensor.dims.extend(each.shape)
        if each.input_data_file:
            tensor.input_data_file = each.input_data_file
        elif each.random_data:
            tensor.random_data = True
        else:
            tensor.zero_data = True
