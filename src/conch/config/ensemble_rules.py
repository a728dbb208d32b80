"""Rules of ensembles that need no other model: which blocks they may have, and that their tensors connect."""

from __future__ import annotations

from dataclasses import dataclass, field

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid


def scheduling_suits_platform(config: ModelConfig) -> None:
    scheduled, ensemble = config.HasField("ensemble_scheduling"), config.platform == "ensemble"
    if scheduled and not ensemble:
        raise invalid(
            f"ensemble scheduling cannot be set for model '{config.name}' whose platform is not ensemble",
            'set platform: "ensemble"',
        )
    if ensemble and not scheduled:
        raise invalid(
            f"ensemble scheduling must be set for ensemble {config.name} whose platform is ensemble",
            "add ensemble_scheduling { step [ ... ] }",
        )


def ensemble_runs_nothing_itself(config: ModelConfig) -> None:
    if not config.HasField("ensemble_scheduling"):
        return
    hint = "set it for the models of the steps instead"
    if config.instance_group:
        raise invalid(f"instance group should not be specified for ensemble '{config.name}'", hint)
    if config.HasField("optimization"):
        raise invalid(f"optimization should not be specified for ensemble '{config.name}'", hint)
    if config.model_warmup:
        raise invalid(f"model_warmup can not be specified for ensemble '{config.name}'", hint)


def steps_are_complete(config: ModelConfig) -> None:
    if not config.HasField("ensemble_scheduling"):
        return
    if not config.ensemble_scheduling.step:
        raise invalid(f"must specify 'step' for ensemble '{config.name}'", "add a step for each model to run")
    for index, step in enumerate(config.ensemble_scheduling.step):
        for name, value in (
            ("model_name", step.model_name),
            ("input_map", step.input_map),
            ("output_map", step.output_map),
        ):
            if not value:
                raise invalid(f"must specify '{name}' in step {index} of ensemble '{config.name}'")


def tensors_connect(config: ModelConfig) -> None:
    """Every input is used, every output is written, every tensor is reachable and used, and has one writer."""
    if not config.HasField("ensemble_scheduling"):
        return
    tensors = _graph(config)
    for given in config.input:
        if given.name not in tensors:
            raise invalid(
                f"ensemble input '{given.name}' for ensemble {config.name}' is not used",
                "name it as a value of some step's input_map, or remove it",
            )
    _mark_ready([given.name for given in config.input], tensors)
    for output in config.output:
        _check_output(config, output.name, tensors)
    outputs = {output.name for output in config.output}
    for name, tensor in tensors.items():
        if name not in outputs and not (tensor.ready and tensor.next):
            raise invalid(
                f"ensemble tensor '{name}' is unused in ensemble '{config.name}'",
                "let a step read it, make it an output, or remove it",
            )


@dataclass(slots=True)
class _Tensor:
    """One tensor of the data flow. It is ready once all that its writer reads is ready."""

    written: bool = False
    ready: bool = False
    previous: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)


def _graph(config: ModelConfig) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    for index, step in enumerate(config.ensemble_scheduling.step):
        outputs = sorted(step.output_map.values())
        for name in outputs:
            tensor = tensors.setdefault(name, _Tensor())
            if tensor.written:
                raise invalid(
                    f"ensemble tensor '{name}' can appear in an output map only once for ensemble '{config.name}' "
                    f"step {index}",
                    "give the tensors that different steps write different names",
                )
            tensor.written = True
        for name in sorted(set(step.input_map.values())):
            tensor = tensors.setdefault(name, _Tensor())
            tensor.next.extend(outputs)
            for output in outputs:
                tensors[output].previous.append(name)
    return tensors


def _mark_ready(names: list[str], tensors: dict[str, _Tensor]) -> None:
    waiting = list(names)
    for name in names:
        tensors[name].ready = True
    while waiting:
        for name in tensors[waiting.pop()].next:
            tensor = tensors[name]
            if not tensor.ready and all(tensors[previous].ready for previous in tensor.previous):
                tensor.ready = True
                waiting.append(name)


def _check_output(config: ModelConfig, name: str, tensors: dict[str, _Tensor]) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise invalid(
            f"ensemble output '{name}' for ensemble {config.name}' is not used",
            "name it as a value of some step's output_map, or remove it",
        )
    if tensor.ready:
        return
    message = f"output '{name}' for ensemble '{config.name}' is not written"
    missing = next((previous for previous in tensor.previous if not tensors[previous].ready), None)
    if missing is not None:
        message += f": at least one of its depending tensors, '{missing}', is not connected"
    raise invalid(message, "every tensor that a step reads must be an ensemble input or be written by another step")


RULES = (scheduling_suits_platform, ensemble_runs_nothing_itself, steps_are_complete, tensors_connect)
