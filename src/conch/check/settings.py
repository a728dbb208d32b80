"""The config by itself: its name, its backend, and the rules that the server has for every config."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from conch.backend.find import Backends
from conch.check.files import named_as_expected
from conch.check.locate import locate
from conch.check.meant import meant
from conch.check.remedies import REMEDIES, as_backend
from conch.check.subject import Subject
from conch.check.writing import quoted
from conch.config import fairness, memory, padding, swap_gate, traffic
from conch.config.autofill import fill_backend
from conch.config.ignored import ignored_fields
from conch.config.instances import fill_instance_groups
from conch.config.normalize import normalize
from conch.config.rules import IO_RULES, MODEL_RULES, Rule
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError

#: What this server adds to Triton's configs.
PARAMETERS = frozenset(
    {
        fairness.BY,
        fairness.WEIGHTS,
        memory.PARAMETER,
        padding.PARAMETER,
        swap_gate.PARAMETER,
        traffic.PARAMETER,
    }
)
#: Said of a field with what is behind it, where a warning of its own says more.
_TOLD = ("dynamic_batching.max_queue_delay_microseconds (max_batch_size is 0)",)


def settle(subject: Subject) -> None:
    """Sets `config`: what was written, with its name, its backend and the defaults."""
    if subject.written is None:
        return
    config = ModelConfig()
    config.CopyFrom(subject.written)
    if config.name and config.name != subject.name:
        _name(subject, config)
    if _named_wrongly(subject, config):
        config.backend, config.platform = as_backend(config.platform), ""
    folders = [subject.version_folder(number) for number in subject.versions]
    try:
        fill_backend(config, subject.name, folders)
    except InferError as error:
        if subject.versions:
            fix, changes = named_as_expected(subject)
            subject.find("backend-can-be-told", error.message, error.hint, fix=fix, changes=changes)
        return
    normalize(config)
    subject.config = config
    _check_rules(subject, MODEL_RULES)
    if config.backend and not subject.ensemble:
        _backend(subject)


def tensors_are_sound(subject: Subject) -> None:
    """The rules of inputs and outputs, once the config is complete."""
    if subject.config is not None and subject.complete:
        _check_rules(subject, (*MODEL_RULES, *IO_RULES))


def all_has_effect(subject: Subject) -> None:
    config = subject.config
    if config is None:
        return
    for name in ignored_fields(config):
        if name not in _TOLD:
            path = name.partition(" ")[0]
            subject.find(
                "field-has-effect",
                f"'{name}' is accepted and has no effect",
                "remove it, or do not count on it",
                at=subject.nearest(path),
            )
    if config.max_batch_size == 0 and subject.written is not None and subject.written.HasField("dynamic_batching"):
        subject.find(
            "dynamic-batching-has-batches",
            "dynamic_batching is set and max_batch_size is 0: requests run one by one",
            "set max_batch_size to the largest batch that the model takes (dims then leave the batch dimension out), "
            "or remove dynamic_batching",
        )


def parameters_are_known(subject: Subject) -> None:
    """Parameters that begin like those of this server and are none of them."""
    config = subject.config
    for key in sorted(config.parameters) if config is not None else ():
        if not key.startswith("conch_") or key in PARAMETERS:
            continue
        near = meant(key, PARAMETERS)
        entry = next((each for each in subject.root.all("parameters") if each.scalar("key") == key), None)
        label = entry.first("key") if entry is not None else None
        subject.find(
            "parameter-has-effect",
            f"the server knows no parameter '{key}'",
            f"did you mean '{near}'?" if near else f"those that it knows are {', '.join(sorted(PARAMETERS))}",
            at=label,
            fix=f"write key: {quoted(near)}",
            changes=[subject.writer.replace(label.value, quoted(near))] if near and label is not None else (),
        )


def flags_are_given(subject: Subject) -> None:
    """What has an effect only beside a flag of the server, which a check does not know."""
    config = subject.config
    if config is None:
        return
    groups = config.instance_group
    needs = {
        "response_cache": (config.response_cache.enable, "--cache-config=local,size=<bytes>"),
        "instance_group.rate_limiter": (
            any(each.HasField("rate_limiter") for each in groups),
            "--rate-limit=execution_count",
        ),
        "instance_group.host_policy": (any(each.host_policy for each in groups), "--host-policy=<name>,..."),
        "parameters": (memory.PARAMETER in config.parameters, "--memory-budget=<size>"),
    }
    for path, (used, flag) in needs.items():
        if used:
            name = memory.PARAMETER if path == "parameters" else path
            subject.find(
                "flag-is-given",
                f"'{name}' has an effect only with {flag}",
                f"start the server with {flag}",
                at=subject.nearest(path),
            )


def groups_suit_the_machine(subject: Subject) -> None:
    if subject.config is None or subject.ensemble:
        return
    config = ModelConfig()
    config.CopyFrom(subject.config)
    try:
        fill_instance_groups(config)
    except InferError as error:
        _report(subject, "instance-groups-suit-the-machine", error)


def _name(subject: Subject, config: ModelConfig) -> None:
    field = subject.root.first("name")
    changes = subject.writer.scalar(subject.root, "name", quoted(subject.name)) if field is not None else []
    subject.find(
        "name-is-the-folder",
        f"the config's name is '{config.name}', the folder's is '{subject.name}'",
        f"write name: {quoted(subject.name)}, or rename the folder",
        fix=f"write name: {quoted(subject.name)}",
        changes=changes,
    )
    config.name = subject.name


def _named_wrongly(subject: Subject, config: ModelConfig) -> bool:
    """Whether `platform` holds what belongs into `backend`."""
    field = subject.root.first("platform")
    if config.backend or field is None or not as_backend(config.platform):
        return False
    backend = as_backend(config.platform)
    subject.find(
        "backend-is-given",
        f"'{config.platform}' is no platform: it is the name of a backend",
        f"write backend: {quoted(backend)} instead of platform",
        at=field,
        fix=f"write backend: {quoted(backend)}",
        changes=[subject.writer.replace(field.whole, f"backend: {quoted(backend)}")],
    )
    return True


def _backend(subject: Subject) -> None:
    config = subject.config
    assert config is not None
    try:
        Backends(subject.options.backend_directory).find(config.backend)
    except InferError as error:
        field = subject.root.first("backend") or subject.root.first("platform")
        meant = as_backend(config.backend)
        subject.find(
            "backend-is-known",
            f"this server has no backend '{config.backend}'",
            f"write backend: {quoted(meant)}" if meant else error.hint,
            at=field,
            fix=f"write backend: {quoted(meant)}",
            changes=[subject.writer.replace(field.value, quoted(meant))]
            if meant and field is not None and field.name == "backend"
            else (),
        )


def _check_rules(subject: Subject, rules: Iterable[Rule]) -> None:
    assert subject.config is not None
    for each in rules:
        try:
            each(subject.config)
        except InferError as error:
            _report(subject, rule_id(each), error)


def _report(subject: Subject, name: str, error: InferError) -> None:
    remedy = REMEDIES.get(name)
    fix = remedy(subject, error) if remedy is not None and subject.patched is not None else None
    at = locate(subject.root, error.message)
    subject.find(name, error.message, error.hint, at=at, fix=fix[0] if fix else "", changes=fix[1] if fix else ())


def rule_id(each: Rule) -> str:
    """`preferred_sizes_fit` is `preferred-sizes-fit`; that of sequences has their name before it."""
    name = getattr(each, "__name__", "").replace("_", "-")
    module = inspect.getmodule(each)
    ours = module is not None and module.__name__.endswith("sequence_rules")
    return f"sequence-{name}" if ours and name == "preferred-sizes-fit" else name
