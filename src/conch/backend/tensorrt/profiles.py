"""Which optimization profiles an instance has, and which of them runs a batch. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conch.backend.tensorrt.signature import Shape, Signature
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid


def chosen_profiles(config: ModelConfig, instance: str, signature: Signature) -> tuple[int, ...]:
    """The profiles that the instance's group names; the first where it names none. Raises InferError."""
    named: Sequence[str] = next(
        (group.profile for group in config.instance_group if instance.rpartition("_")[0] == group.name), ()
    )
    made = []
    for text in named or ("0",):
        if not text.isdecimal() or int(text) >= signature.profiles:
            raise invalid(
                f"unable to load model '{config.name}', profile '{text}' of instance group is not one of the "
                f"engine's {signature.profiles}",
                f"profiles are numbers from 0 to {signature.profiles - 1}",
            )
        made.append(int(text))
    return tuple(made)


def choose(model: str, signature: Signature, profiles: Sequence[int], shapes: Mapping[str, Shape]) -> int:
    """Of `profiles` the one that was tuned for shapes nearest to these (Triton's rule); of a shape tensor its values
    count. Raises InferError.
    """
    best, least = -1, -1
    for profile in profiles:
        ranges = {slot.name: slot.ranges[profile] for slot in signature.inputs}
        if not all(ranges[name].holds(shape) for name, shape in shapes.items()):
            continue
        apart = sum(
            abs(size - wanted)
            for name, shape in shapes.items()
            for size, wanted in zip(shape, ranges[name].best, strict=True)
        )
        if best < 0 or apart < least:
            best, least = profile, apart
    if best < 0:
        raise _none_fits(model, signature, profiles, shapes)
    return best


def _none_fits(model: str, signature: Signature, profiles: Sequence[int], shapes: Mapping[str, Shape]) -> InferError:
    for slot in signature.inputs:
        shape = shapes[slot.name]
        if not any(slot.ranges[profile].holds(shape) for profile in profiles):
            spans = "; ".join(
                f"profile {profile}: {list(slot.ranges[profile].least)} to {list(slot.ranges[profile].most)}"
                for profile in profiles
            )
            what = "value" if slot.shape_tensor else "shape"
            return invalid(
                f"model '{model}', tensor '{slot.name}': {what} {list(shape)} is outside of what the engine was built "
                f"for ({spans})",
                f"send another {what}, or build the engine with a wider profile",
            )
    return invalid(f"model '{model}': no single profile of the instance takes all inputs of the request")
