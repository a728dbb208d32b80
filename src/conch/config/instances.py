"""Which executable copies of a model there are, and where: the config's instance groups with their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.types.error import invalid

#: Nobody means more instances than this of one group; a typing error should not start as many threads.
_MOST = 4096


@dataclass(frozen=True, slots=True)
class Claim:
    """How much of a resource an instance needs while it executes; global resources are shared by all devices."""

    resource: str
    is_global: bool
    count: int


@dataclass(frozen=True, slots=True)
class Place:
    """One instance: what it is called and where it runs."""

    name: str
    device: int
    #: The host policy's name: the group's own, else that of its kind.
    host_policy: str


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """`count` instances, on each of `gpus` where there are any. `kind` is CPU, GPU or MODEL."""

    name: str
    kind: str
    count: int
    gpus: tuple[int, ...] = ()
    passive: bool = False
    profile: tuple[str, ...] = ()
    #: The policy that the group names; empty for its kind's.
    host_policy: str = ""
    claims: tuple[Claim, ...] = ()
    priority: int = 0

    def places(self) -> list[Place]:
        """Every instance. On several GPUs the names repeat: Triton tells them apart by device."""
        devices = self.gpus or (0,)
        return [
            Place(f"{self.name}_{number}", device, self.host_policy or self._usual_policy(device))
            for number in range(self.count)
            for device in devices
        ]

    def _usual_policy(self, device: int) -> str:
        return f"gpu_{device}" if self.kind == "GPU" else self.kind.lower()


def instance_groups(
    config: ModelConfig,
    gpus: Sequence[int] = (),
    default_count: int = 1,
    *,
    auto: bool = True,
    least: float = 6.0,
) -> list[InstanceGroup]:
    """The groups of a model, from a config that stays as it is. None for ensembles.

    `gpus` are the GPUs that models may use, those of compute capability `least` and more; `default_count` how many
    instances a group on CPU has where the config gives no number. Groups that do not say where go to the GPUs only
    with `auto`. Raises InferError (INVALID_ARG) for groups that this machine cannot have.
    """
    complete = ModelConfig()
    complete.CopyFrom(config)
    fill_instance_groups(complete, gpus, default_count, auto=auto, least=least)
    return [
        InstanceGroup(
            group.name,
            ModelInstanceGroup.Kind.Name(group.kind).removeprefix("KIND_"),
            group.count,
            tuple(group.gpus),
            group.passive,
            tuple(group.profile),
            group.host_policy,
            # Of one resource named twice the last counts, as in Triton.
            tuple(
                {
                    (each.name, getattr(each, "global")): Claim(each.name, getattr(each, "global"), each.count)
                    for each in group.rate_limiter.resources
                }.values()
            ),
            group.rate_limiter.priority,
        )
        for group in complete.instance_group
    ]


def fill_instance_groups(
    config: ModelConfig,
    gpus: Sequence[int] = (),
    default_count: int = 1,
    *,
    auto: bool = True,
    least: float = 6.0,
) -> None:
    """Write names, kinds, counts and GPUs into `config`, as the config calls show them. Arguments, errors as above."""
    if config.platform == "ensemble" or config.HasField("ensemble_scheduling"):
        return
    if not config.instance_group:
        # The implicit group has the model's own name, so its instances are <model>_0, <model>_1.
        config.instance_group.add(name=config.name)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
        if group.kind == ModelInstanceGroup.KIND_AUTO:
            listed = auto and bool(gpus) and all(gpu in gpus for gpu in group.gpus)
            group.kind = ModelInstanceGroup.KIND_GPU if listed else ModelInstanceGroup.KIND_CPU
        if group.count < 1:
            group.count = default_count if group.kind == ModelInstanceGroup.KIND_CPU else 1
        if group.kind == ModelInstanceGroup.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)
        _check(config, group, gpus, least)


def _check(config: ModelConfig, group: ModelInstanceGroup, gpus: Sequence[int], least: float) -> None:
    who = f"instance group {group.name} of model {config.name}"
    if group.count > _MOST:
        raise invalid(f"{who} has count {group.count}, more than {_MOST}", f"set count to {_MOST} or less")
    if group.kind == ModelInstanceGroup.KIND_GPU:
        _check_gpus(who, group, gpus, least)
    elif group.gpus:
        kind = ModelInstanceGroup.Kind.Name(group.kind)
        raise invalid(f"{who} has kind {kind} but specifies one or more GPUs", "remove 'gpus', or use KIND_GPU")
    if group.profile and config.platform != "tensorrt_plan":
        raise invalid(
            f"{who} and platform {config.platform}specifies profile field which is only supported for TensorRT models",
            "remove 'profile'",
        )


def _check_gpus(who: str, group: ModelInstanceGroup, gpus: Sequence[int], least: float) -> None:
    if not gpus and not group.gpus:
        raise invalid(f"{who} has kind KIND_GPU but no GPUs are available", "use KIND_CPU or KIND_AUTO")
    for gpu in group.gpus:
        if gpu not in gpus:
            raise invalid(
                f"{who} specifies invalid or unsupported gpu id {gpu}. GPUs with at least the minimum required CUDA "
                f"compute compatibility of {least:f} are: {', '.join(map(str, gpus))}",
                "list GPUs of this machine in 'gpus'",
            )
