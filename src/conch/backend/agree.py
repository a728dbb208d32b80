"""Whether a config agrees with the model that it is for. Pure.

The rules are those that Triton has for ONNX. Backends that have others use the parts, hence the texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from conch.backend.signature import Signature, Slot
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import InferError, invalid
from conch.types.model import shape_text


class Named(Protocol):
    @property
    def name(self) -> str: ...


def check_config(config: ModelConfig, signature: Signature) -> None:
    """Raises InferError, with the texts of Triton's ONNX Runtime backend, at the first disagreement."""
    made = [(each, name) for each in config.batch_input for name in each.target_name]
    required = sum([not entry.optional for entry in config.input]) + len(made)
    if required != len(signature.inputs):
        raise wrong_count(config.name, required, signature.inputs)
    _check_inputs(config, signature)
    takes = signature.takes
    for each, name in made:
        slot = takes.get(name)
        if slot is None:
            raise unknown_name("input", name, takes.values())
        check_type(config.name, "input", name, each.data_type, slot.datatype)
    _check_outputs(config, signature)


def _check_inputs(config: ModelConfig, signature: Signature) -> None:
    takes = signature.takes
    for entry in config.input:
        if entry.optional and config.max_batch_size > 0:
            raise invalid(
                f"unable to load model '{config.name}', optional input '{entry.name}' is not supported "
                "for models that support batching",
                "set max_batch_size: 0, or make the input mandatory",
            )
        slot = takes.get(entry.name)
        if slot is None:
            raise unknown_name("input", entry.name, takes.values())
        if entry.optional and slot in signature.inputs:
            raise invalid(
                f"'optional' is set to true for input '{entry.name}' while the backend model doesn't support "
                "optional input",
                "only ONNX inputs with an initializer of the same name can be left out",
            )
        check_type(config.name, "input", entry.name, entry.data_type, slot.datatype)
        if entry.allow_ragged_batch:
            _check_ragged(config, entry, slot)
        else:
            _check_entry(config, entry, slot)


def _check_outputs(config: ModelConfig, signature: Signature) -> None:
    scattered = {name for one in config.batch_output for name in one.target_name}
    gives = {slot.name: slot for slot in signature.outputs}
    for output in config.output:
        slot = gives.get(output.name)
        if slot is None:
            raise unknown_name("output", output.name, signature.outputs)
        check_type(config.name, "output", output.name, output.data_type, slot.datatype)
        # The shape of a scattered output does not have to be the model's (Triton).
        if output.name not in scattered:
            _check_entry(config, output, slot)


def _check_ragged(config: ModelConfig, entry: ModelInput, slot: Slot) -> None:
    if entry.optional:
        raise invalid(
            f"unable to load model '{config.name}', configuration expects model provides input with shape [-1] for "
            f"ragged input '{entry.name}', which is not supported for optional input",
            "remove 'optional' or 'allow_ragged_batch'",
        )
    if slot.shape != (-1,):
        raise invalid(
            f"unable to load model '{config.name}', configuration expects model provides input with shape [-1]  for "
            f"ragged input '{entry.name}', model provides {shape_text(slot.shape)}",
            "the model sees the elements of all requests one after another, in one dimension",
        )


def _check_entry(config: ModelConfig, entry: ModelInput | ModelOutput, slot: Slot) -> None:
    dims = dims_of(entry)
    if slot.shape or config.max_batch_size > 0:
        _check_dims(config, slot, dims)
    elif any(dim != 1 for dim in dims):
        raise invalid(
            f"unable to load model '{config.name}', scalar tensor '{entry.name}', should only provide 1 in the model "
            f"configuration when the model doesn't support batching. Model configuration provided: {shape_text(dims)}.",
            "set dims: [ 1 ]",
        )


def _check_dims(config: ModelConfig, slot: Slot, dims: list[int]) -> None:
    """A size that the model leaves open may be any size in the config; a fixed one must be the same."""
    batching = config.max_batch_size > 0
    if batching and not slot.batches:
        raise invalid(
            f"model '{config.name}', tensor '{slot.name}': for the model to support batching the shape should have at "
            "least 1 dimension and the first dimension must be -1; but shape expected by the model is "
            f"{shape_text(slot.shape)}",
            "export the model with a first dimension of any size, or set max_batch_size: 0",
        )
    full = [-1, *dims] if batching else dims
    if len(full) == len(slot.shape) and all(
        model in (-1, given) for model, given in zip(slot.shape, full, strict=True)
    ):
        return
    hint = f"set dims: {list(slot.shape[1:] if batching else slot.shape)}"
    raise dims_differ(config.name, slot.name, slot.shape, full, batching, hint)


def dims_of(entry: ModelInput | ModelOutput) -> list[int]:
    """The dims that the model sees, without the batch dimension."""
    return list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)


def check_type(model: str, kind: str, name: str, number: int, datatype: DataType) -> None:
    """`number` is the config's, `datatype` the model's."""
    wanted = dtype.BY_NUMBER.get(number)
    if wanted is not datatype:
        raise invalid(
            f"unable to load model '{model}', configuration expects datatype "
            f"{wanted.config_name if wanted else 'TYPE_INVALID'} for {kind} '{name}', "
            # Triton prints the protocol's name here (TYPE_BYTES), not the config's.
            f"model provides TYPE_{datatype.name}",
            f"set data_type: {datatype.config_name}",
        )


def wrong_count(model: str, count: int, inputs: Sequence[Named]) -> InferError:
    return invalid(
        f"unable to load model '{model}', configuration expects {count} inputs, model provides {len(inputs)}",
        f"the model's inputs are: {names_of(inputs)}",
    )


def unknown_name(kind: str, name: str, allowed: Iterable[Named]) -> InferError:
    return invalid(f"unexpected inference {kind} '{name}', allowed {kind}s are: {names_of(allowed)}")


def dims_differ(
    model: str, name: str, shape: Sequence[int], full: Sequence[int], batching: bool, hint: str
) -> InferError:
    """`shape` is the model's, `full` the config's, with the batch dimension if there is `batching`."""
    says = (
        "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        f"making complete shape {shape_text(full)})"
        if batching
        else f"(shape {shape_text(full)})"
    )
    return invalid(
        f"model '{model}', tensor '{name}': the model expects {len(shape)} dimensions "
        f"(shape {shape_text(shape)}) but the model configuration specifies {len(full)} dimensions {says}",
        hint,
    )


def names_of(tensors: Iterable[Named]) -> str:
    return ", ".join(sorted([each.name for each in tensors]))
