"""Rules of ensembles that depend on the models of their steps: tensors exist, agree, and come from one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from conch.config.padding import made_inputs
from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelEnsembling, ModelInput, ModelOutput
from conch.types.error import InferError, invalid
from conch.types.model import shape_text

Dims = tuple[int, ...]


def check_members(config: ModelConfig, members: Sequence[ModelConfig]) -> dict[str, int]:
    """Whether the steps of ensemble `config` fit their models, whose complete configs `members` are, step by step.

    Raises InferError with Triton's texts. Returns the stage of each ensemble tensor: 0 for those that exist once in a
    request; tensors that the responses of one decoupled step bring again and again share a higher number.
    """
    tensors: dict[str, _Tensor] = {}
    for given in config.input:
        tensors[given.name] = _own(config, given)
    for wanted in config.output:
        tensors.setdefault(wanted.name, _own(config, wanted))
    for step, member in zip(config.ensemble_scheduling.step, members, strict=True):
        _check_batch_size(config, member)
        _check_inputs(config, step, member, tensors)
        _check_outputs(config, step, member, tensors)
    return _stages(config, members)


@dataclass(slots=True)
class _Tensor:
    """What is known of one ensemble tensor, and from which model."""

    model: str
    datatype: int
    dims: Dims
    #: With the batch dimension, where the model has one.
    full: Dims = field(default=())


def _own(config: ModelConfig, tensor: ModelInput | ModelOutput) -> _Tensor:
    dims = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)
    return _tensor(config, tensor, dims)


def _tensor(config: ModelConfig, tensor: ModelInput | ModelOutput, dims: Dims) -> _Tensor:
    return _Tensor(config.name, tensor.data_type, dims, (-1, *dims) if config.max_batch_size > 0 else dims)


def _check_batch_size(config: ModelConfig, member: ModelConfig) -> None:
    if 0 < member.max_batch_size < config.max_batch_size:
        raise invalid(
            f"ensemble {config.name} allows maximum batch size {config.max_batch_size}, but it contains model "
            f"{member.name} which only allows maximum batch size to be {member.max_batch_size}",
            f"set max_batch_size of '{config.name}' to {member.max_batch_size} or less",
        )


def _check_inputs(
    config: ModelConfig, step: ModelEnsembling.Step, member: ModelConfig, tensors: dict[str, _Tensor]
) -> None:
    names = [tensor.name for tensor in member.input]
    for name, tensor in sorted(step.input_map.items()):
        if name not in names:
            raise invalid(
                f"in ensemble {config.name}, ensemble tensor {tensor} is mapping to non-existing input {name} in model "
                f"{member.name}",
                f"inputs of '{member.name}': {', '.join(names)}",
            )
    for given in member.input:
        if given.name in step.input_map:
            _agree(config, step.input_map[given.name], _tensor(member, given, tuple(given.dims)), tensors)
        elif not given.optional and given.name not in made_inputs(member):
            raise invalid(
                f"in ensemble {config.name}, input {given.name} in model {member.name} is not mapped to any ensemble "
                "tensors",
                "add it to the step's input_map, or make it optional",
            )


def _check_outputs(
    config: ModelConfig, step: ModelEnsembling.Step, member: ModelConfig, tensors: dict[str, _Tensor]
) -> None:
    outputs = {tensor.name: tensor for tensor in member.output}
    for name, tensor in sorted(step.output_map.items()):
        if name not in outputs:
            raise invalid(
                f"in ensemble {config.name}, ensemble tensor {tensor} is mapped from non-existing output {name} in "
                f"model {member.name}",
                f"outputs of '{member.name}': {', '.join(outputs)}",
            )
    for name, tensor in sorted(step.output_map.items()):
        _agree(config, tensor, _tensor(member, outputs[name], tuple(outputs[name].dims)), tensors)


def _agree(config: ModelConfig, name: str, found: _Tensor, tensors: dict[str, _Tensor]) -> None:
    """Who comes first says what the tensor is; the others must agree."""
    known = tensors.setdefault(name, found)
    what = f"in ensemble {config.name}, ensemble tensor {name}: inconsistent"
    if known.datatype != found.datatype:
        raise invalid(
            f"{what} data type: {DataType.Name(known.datatype)} is inferred from model {known.model} while "
            f"{DataType.Name(found.datatype)} is inferred from model {found.model}",
            "tensors are not converted between steps: change the data_type of one model",
        )
    if not _match(known.dims, found.dims) and not _match(known.full, found.full):
        raise invalid(
            f"{what} shape: {shape_text(known.full)} is inferred from model {known.model} while "
            f"{shape_text(found.full)} is inferred from model {found.model}",
            "shapes must be equal where neither has -1",
        )


def _match(one: Dims, other: Dims) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _stages(config: ModelConfig, members: Sequence[ModelConfig]) -> dict[str, int]:
    """The static rules hold, so that every step can be reached from the inputs."""
    stages = {given.name: 0 for given in config.input}
    waiting = list(zip(config.ensemble_scheduling.step, members, strict=True))
    streams = 0
    while waiting:
        ready = [pair for pair in waiting if all(name in stages for name in pair[0].input_map.values())]
        if not ready:
            break
        for step, member in ready:
            stage = _one_stage(config, step.model_name, [stages[name] for _, name in sorted(step.input_map.items())])
            if member.model_transaction_policy.decoupled:
                streams += 1
                stage = streams
            stages.update(dict.fromkeys(step.output_map.values(), stage))
        waiting = [pair for pair in waiting if pair not in ready]
    # An answer needs all outputs of one turn.
    _one_stage(config, config.name, [stages[output.name] for output in config.output])
    return stages


def _one_stage(config: ModelConfig, model: str, stages: Sequence[int]) -> int:
    if len(set(stages)) > 1:
        raise _mixed(config, model)
    return stages[0] if stages else 0


def _mixed(config: ModelConfig, model: str) -> InferError:
    return invalid(
        f"in ensemble {config.name}, step of model '{model}' receives inputs originated from different decoupled "
        "models",
        "how often each of them answers is not known, so their responses cannot be paired",
    )
