"""Whether a config agrees with the model file that it is for. Pure."""

from __future__ import annotations

from conch.backend.agree import dims_differ, dims_of, names_of, unknown_name, wrong_count
from conch.backend.openvino.signature import Signature, Slot, find_slot
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types import dtype
from conch.types.dtype import BYTES
from conch.types.error import invalid, unsupported


def check_names(config: ModelConfig, signature: Signature) -> None:
    """Numbers, names and types. Raises InferError, with the texts of Triton's backend, at the first disagreement.

    A type that differs from the model's is no disagreement: OpenVINO converts at the model's edge.
    """
    if config.batch_input or config.batch_output:
        raise unsupported(
            f"unable to load model '{config.name}', batch_input and batch_output are not supported by the openvino "
            "backend",
            'run the model as ONNX with backend: "onnxruntime"',
        )
    if len(config.input) != len(signature.inputs):
        raise wrong_count(config.name, len(config.input), signature.inputs)
    taken: dict[int, str] = {}
    for entry in config.input:
        slot = find_slot(signature.inputs, entry.name)
        if slot is None:
            raise unknown_name("input", entry.name, signature.inputs)
        other = taken.setdefault(slot.index, entry.name)
        if other != entry.name:
            raise invalid(
                f"unable to load model '{config.name}', inputs '{other}' and '{entry.name}' are two names of "
                "one tensor",
                f"the model's inputs are: {names_of(signature.inputs)}",
            )
        if entry.optional or entry.allow_ragged_batch:
            what = "optional" if entry.optional else "allow_ragged_batch"
            raise invalid(
                f"'{what}' is set to true for input '{entry.name}' while the backend model doesn't support "
                f"{'optional input' if entry.optional else 'ragged batches'}",
                f"remove '{what}'",
            )
        _check_type(config, entry, "input")
    for output in config.output:
        if find_slot(signature.outputs, output.name) is None:
            raise unknown_name("output", output.name, signature.outputs)
        _check_type(config, output, "output")


def check_dims(config: ModelConfig, signature: Signature, shaped: bool) -> None:
    """The dims of a model whose batch dimension is settled. `shaped`: its inputs have the config's dims already."""
    for entry in config.input:
        slot = find_slot(signature.inputs, entry.name)
        # Of a batching model's inputs Triton takes -1 for "whatever the model says".
        if slot is not None and not shaped:
            _check_entry(config, entry, slot, open_too=config.max_batch_size > 0)
    for output in config.output:
        slot = find_slot(signature.outputs, output.name)
        if slot is not None:
            _check_entry(config, output, slot, open_too=False)


def _check_type(config: ModelConfig, entry: ModelInput | ModelOutput, role: str) -> None:
    datatype = dtype.BY_NUMBER.get(entry.data_type)
    if datatype is None or datatype is BYTES:
        name = "TYPE_INVALID" if datatype is None else datatype.config_name
        raise unsupported(
            f"unsupported datatype {name} for {role} '{entry.name}' for model '{config.name}'",
            "OpenVINO computes with numbers and booleans",
        )


def _check_entry(config: ModelConfig, entry: ModelInput | ModelOutput, slot: Slot, open_too: bool) -> None:
    dims, shape = dims_of(entry), slot.shape
    batching = config.max_batch_size > 0
    if shape is None or (shape == () and not batching and all(dim == 1 for dim in dims)):
        return
    if batching and not shape:
        raise invalid(
            f"model '{config.name}', tensor '{entry.name}': for the model to support batching the shape should have "
            "at least 1 dimension",
            "set max_batch_size: 0",
        )
    rest = shape[1:] if batching else shape
    # The batch was given to the inputs; an output that did not follow is made for the one that the model had.
    follows = not batching or shape[0] in (-1, config.max_batch_size)
    if (
        follows
        and len(rest) == len(dims)
        and all(model in (-1, given) or (open_too and given == -1) for model, given in zip(rest, dims, strict=True))
    ):
        return
    full = [config.max_batch_size, *dims] if batching else dims
    hint = _remedy(entry, list(rest), follows)
    raise dims_differ(config.name, entry.name, shape, full, batching, hint)


def _remedy(entry: ModelInput | ModelOutput, dims: list[int], follows: bool) -> str:
    if not follows:
        return "the model does not take batches: export it with a first dimension of any size, or set max_batch_size: 0"
    if entry.HasField("reshape") or isinstance(entry, ModelOutput):
        return f"set dims: {dims}"
    return f"set dims: {dims}, or RESHAPE_IO_LAYERS to YES where the model can take other sizes"
