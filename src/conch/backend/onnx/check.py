"""Whether a config agrees with the ONNX file that it is for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from conch.backend.onnx.signature import Signature, Slot
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types import dtype
from conch.types.error import InferError, invalid


def check_config(config: ModelConfig, signature: Signature) -> None:
    """Raises InferError, with the texts of Triton's ONNX Runtime backend, at the first disagreement."""
    made = [(each, name) for each in config.batch_input for name in each.target_name]
    required = sum([not entry.optional for entry in config.input]) + len(made)
    if required != len(signature.inputs):
        raise invalid(
            f"unable to load model '{config.name}', configuration expects {required} inputs, "
            f"model provides {len(signature.inputs)}",
            f"the model's inputs are: {_names(signature.inputs)}",
        )
    _check_inputs(config, signature)
    takes = signature.takes
    for each, name in made:
        slot = takes.get(name)
        if slot is None:
            raise invalid(f"unexpected inference input '{name}', allowed inputs are: {_names(list(takes.values()))}")
        _check_type(config, name, each.data_type, slot, "input")
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
            raise invalid(
                f"unexpected inference input '{entry.name}', allowed inputs are: {_names(list(takes.values()))}"
            )
        if entry.optional and slot in signature.inputs:
            raise invalid(
                f"'optional' is set to true for input '{entry.name}' while the backend model doesn't support "
                "optional input",
                "only ONNX inputs with an initializer of the same name can be left out",
            )
        _check_type(config, entry.name, entry.data_type, slot, "input")
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
            raise invalid(
                f"unexpected inference output '{output.name}', allowed outputs are: {_names(signature.outputs)}"
            )
        _check_type(config, output.name, output.data_type, slot, "output")
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
            f"ragged input '{entry.name}', model provides {_text(slot.shape)}",
            "the model sees the elements of all requests one after another, in one dimension",
        )


def _check_type(config: ModelConfig, name: str, number: int, slot: Slot, role: str) -> None:
    wanted = dtype.BY_NUMBER.get(number)
    if wanted is not slot.datatype:
        raise invalid(
            f"unable to load model '{config.name}', configuration expects datatype "
            f"{wanted.config_name if wanted else 'TYPE_INVALID'} for {role} '{name}', "
            # Triton prints the protocol's name here (TYPE_BYTES), not the config's.
            f"model provides TYPE_{slot.datatype.name}",
            f"set data_type: {slot.datatype.config_name}",
        )


def _check_entry(config: ModelConfig, entry: ModelInput | ModelOutput, slot: Slot) -> None:
    dims = list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)
    if slot.shape or config.max_batch_size > 0:
        _check_dims(config, slot, dims)
    elif any(dim != 1 for dim in dims):
        raise invalid(
            f"unable to load model '{config.name}', scalar tensor '{entry.name}', should only provide 1 in the model "
            f"configuration when the model doesn't support batching. Model configuration provided: {_text(dims)}.",
            "set dims: [ 1 ]",
        )


def _check_dims(config: ModelConfig, slot: Slot, dims: list[int]) -> None:
    """A size that the model leaves open may be any size in the config; a fixed one must be the same."""
    batching = config.max_batch_size > 0
    if batching and not slot.batches:
        raise invalid(
            f"model '{config.name}', tensor '{slot.name}': for the model to support batching the shape should have at "
            "least 1 dimension and the first dimension must be -1; but shape expected by the model is "
            f"{_text(slot.shape)}",
            "export the model with a first dimension of any size, or set max_batch_size: 0",
        )
    full = [-1, *dims] if batching else dims
    if len(full) == len(slot.shape) and all(
        model in (-1, given) for model, given in zip(slot.shape, full, strict=True)
    ):
        return
    raise _dims_differ(config.name, slot, full, batching)


def _dims_differ(model: str, slot: Slot, full: list[int], batching: bool) -> InferError:
    says = (
        f"(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        f"making complete shape {_text(full)})"
        if batching
        else f"(shape {_text(full)})"
    )
    return invalid(
        f"model '{model}', tensor '{slot.name}': the model expects {len(slot.shape)} dimensions "
        f"(shape {_text(slot.shape)}) but the model configuration specifies {len(full)} dimensions {says}",
        f"set dims: {list(slot.shape[1:] if batching else slot.shape)}",
    )


def _names(slots: Sequence[Slot]) -> str:
    return ", ".join(sorted([slot.name for slot in slots]))


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
