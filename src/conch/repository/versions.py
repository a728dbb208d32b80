"""Which folders are versions, and which versions the version policy picks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conch.pb.model_config_pb2 import ModelVersionPolicy
from conch.types.error import invalid

#: Folders of a model that hold something else than a version.
RESERVED = frozenset({"warmup", "initial_state", "configs"})

_INT64_MAX = 2**63 - 1


def version_numbers(folders: Iterable[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The version numbers among a model's folder names, ascending, and a warning for each folder left out.

    Reserved and hidden folders, and Python's caches, are left out silently.
    """
    numbers, warnings = [], []
    for name in sorted(folders):
        if name in RESERVED or name.startswith(".") or name == "__pycache__":
            continue
        if not (name.isascii() and name.isdigit() and len(name) < 20 and int(name) <= _INT64_MAX):
            warnings.append(f"ignore version directory '{name}' which fails to convert to integral number")
        elif name[0] == "0" and name != "0":
            warnings.append(f"ignore version directory '{name}' which contains leading zeros in its directory name")
        else:
            numbers.append(int(name))
    return tuple(sorted(numbers)), tuple(warnings)


def select(policy: ModelVersionPolicy, available: Sequence[int], name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The versions to serve, ascending, and a message for each one that the policy asks for and that is missing.

    A policy that says nothing is `latest { num_versions: 1 }`; `latest { num_versions: 0 }` asks for nothing, as in
    Triton. Raises InferError when no version is left.
    """
    missing: tuple[str, ...] = ()
    choice = policy.WhichOneof("policy_choice")
    ordered = sorted(set(available))
    if choice == "all":
        chosen = ordered
    elif choice == "specific":
        wanted = sorted(set(policy.specific.versions))
        chosen = [number for number in wanted if number in ordered]
        missing = tuple(
            f"version {number} is specified for model '{name}', but the version directory is not present"
            for number in wanted
            if number not in ordered
        )
    else:
        count = 1 if choice is None else policy.latest.num_versions
        chosen = ordered[-count:] if count else []
    if not chosen:
        raise invalid(
            f"at least one version must be available under the version policy of model '{name}'",
            "add a version folder such as 1/ to the model's folder, or change version_policy in its config.pbtxt",
        )
    return tuple(chosen), missing
