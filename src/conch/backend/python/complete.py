"""What a model's `auto_complete_config` may change in its config, carried over with checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelOutput
from conch.types.error import invalid


def merge(config: ModelConfig, completed: Mapping[str, Any]) -> None:
    """Take over max_batch_size, inputs, outputs, dynamic batching and the transaction policy; nothing else.

    `completed` is the dictionary of `pb_utils.ModelConfig`. Raises InferError where a value is not what the config
    can hold.
    """
    name = config.name
    size = completed.get("max_batch_size", config.max_batch_size)
    if not isinstance(size, int) or not 0 <= size < 1 << 31:
        raise invalid(
            f"auto_complete_config of model '{name}' set max_batch_size to {size!r}, expected a number from 0"
        )
    config.max_batch_size = size
    _tensors(name, "input", config.input, completed.get("input", ()))
    _tensors(name, "output", config.output, completed.get("output", ()))
    if "dynamic_batching" in completed and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()
    policy = completed.get("model_transaction_policy")
    if policy is not None:
        config.model_transaction_policy.decoupled = bool(policy.get("decoupled", False))


def _tensors(model: str, kind: str, configured: Any, completed: Any) -> None:
    """Those in the config get type and dims where they have none, the others are added."""
    known: dict[str, ModelInput | ModelOutput] = {tensor.name: tensor for tensor in configured}
    for given in completed:
        tensor_name = given.get("name")
        if not isinstance(tensor_name, str) or not tensor_name:
            raise invalid(f"auto_complete_config of model '{model}' added an {kind} with the name {tensor_name!r}")
        where = f"auto_complete_config of model '{model}', {kind} '{tensor_name}'"
        tensor = known.get(tensor_name)
        if tensor is None:
            tensor = known[tensor_name] = configured.add()
            tensor.name = tensor_name
        data_type = given.get("data_type", "TYPE_INVALID")
        if data_type not in DataType.keys():  # noqa: SIM118  an enum, not a dict
            raise invalid(f"{where}: data_type is {data_type!r}", "expected one of " + ", ".join(DataType.keys()[1:]))
        tensor.data_type = DataType.Value(data_type)
        dims = _dims(where, given.get("dims", ()))
        if list(tensor.dims) != dims:
            tensor.dims[:] = dims
        if isinstance(tensor, ModelInput) and "optional" in given:
            tensor.optional = bool(given["optional"])


def _dims(where: str, dims: Any) -> list[int]:
    if isinstance(dims, (list, tuple)):
        try:
            return [int(size) for size in dims]
        except (TypeError, ValueError):
            pass
    raise invalid(f"{where}: dims is {dims!r}, expected a list of whole numbers")
