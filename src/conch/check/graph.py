"""Ensembles beside the models of their steps: they exist, fit, and no ensemble needs itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conch.check.finding import Edit
from conch.check.locate import entry_named, locate
from conch.check.meant import meant
from conch.check.outline import Field
from conch.check.subject import Subject
from conch.check.writing import quoted
from conch.config.ensemble_members import check_members
from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelEnsembling, ModelInput, ModelOutput
from conch.types.error import InferError

Subjects = Mapping[str, Subject]


def check_ensembles(repositories: Sequence[Subjects]) -> None:
    """Each ensemble beside the models of its own repository, and beside those of the others where that has none of the
    name."""
    everything = {name: subject for each in repositories for name, subject in each.items()}
    beside = [(subject, {**everything, **own}) for own in repositories for subject in own.values()]
    for subject, subjects in beside:
        config = subject.config
        if config is not None and config.HasField("ensemble_scheduling"):
            _ensemble(subject, config, subjects)
    _spread(beside)


def _ensemble(subject: Subject, config: ModelConfig, subjects: Subjects) -> None:
    circle = _circle(subject.name, subjects)
    if circle:
        subject.find("ensemble-has-no-circle", f"the ensemble needs itself: {' -> '.join(circle)}",
                     "take one of the steps out", at=_model_name(subject, circle[1]))  # fmt: skip
        return
    members = [_member(subject, index, step, subjects) for index, step in enumerate(config.ensemble_scheduling.step)]
    before = len(subject.findings)
    for index, (step, member) in enumerate(zip(config.ensemble_scheduling.step, members, strict=True)):
        if member is not None:
            _step(subject, config, index, step, member)
    whole = [each.config for each in members if each is not None and each.complete and each.config is not None]
    if len(subject.findings) == before and len(whole) == len(members) and not subject.failed:
        try:
            check_members(config, whole)
        except InferError as error:
            subject.find(_rule_of(error), error.message, error.hint, at=_tensor_place(subject, error))


def _spread(beside: Sequence[tuple[Subject, Subjects]]) -> None:
    """An ensemble whose model does not load does not load either; nor do the ensembles over it."""
    changed = True
    while changed:
        changed = False
        for subject, subjects in beside:
            for index, step in enumerate(subject.config.ensemble_scheduling.step if subject.config is not None else ()):
                member = subjects.get(step.model_name)
                if subject.failed or member is None or not member.failed:
                    continue
                subject.find(
                    "ensemble-models-are-sound",
                    f"step {index} runs model '{step.model_name}', which has errors of its own",
                    f"mend '{step.model_name}' first",
                    at=_model_name(subject, step.model_name),
                )
                changed = True


def _member(subject: Subject, index: int, step: ModelEnsembling.Step, subjects: Subjects) -> Subject | None:
    """The model of a step; None when it is not there or not known well enough to be compared."""
    member = subjects.get(step.model_name)
    written = _steps(subject)[index] if index < len(_steps(subject)) else None
    if member is None and step.model_name:
        name = written.first("model_name") if written is not None else None
        near = meant(step.model_name, [each for each in subjects if each != subject.name])
        others = ", ".join(sorted(set(subjects) - {subject.name})[:10])
        subject.find(
            "ensemble-models-are-there",
            f"step {index} runs model '{step.model_name}', which is in no repository",
            f"did you mean '{near}'?" if near else f"models of the repository: {others or 'none'}",
            at=name,
            fix=f"write model_name: {quoted(near)}",
            changes=[subject.writer.replace(name.value, quoted(near))] if name is not None and near else (),
        )
        return None
    if member is None or member.config is None:
        return None
    if step.model_version > 0 and member.served and step.model_version not in member.served:
        field = written.first("model_version") if written is not None else None
        subject.find(
            "ensemble-version-is-served",
            f"step {index} needs version {step.model_version} of '{step.model_name}', which serves "
            f"{', '.join(map(str, member.served))}",
            "write model_version: -1 for the latest, or let the model's version_policy serve it",
            at=field,
            fix="write model_version: -1",
            changes=[subject.writer.replace(field.value, "-1")] if field is not None else (),
        )
    return member if member.complete else None


def _step(subject: Subject, config: ModelConfig, index: int, step: ModelEnsembling.Step, member: Subject) -> None:
    """One step by itself, against its model and what the ensemble says of its own inputs and outputs."""
    assert member.config is not None
    written = _steps(subject)[index] if index < len(_steps(subject)) else None
    if 0 < member.config.max_batch_size < config.max_batch_size:
        largest = member.config.max_batch_size
        subject.find(
            "ensemble-batch-size-fits",
            f"max_batch_size is {config.max_batch_size}, and '{step.model_name}' takes batches of {largest} at most",
            f"write max_batch_size: {largest} or less",
            fix=f"write max_batch_size: {largest}",
            changes=subject.writer.scalar(subject.root, "max_batch_size", str(largest)),
        )
        return
    sound = _keys(subject, index, written, "input_map", step.input_map, member)
    sound &= _keys(subject, index, written, "output_map", step.output_map, member)
    if not sound or not _inputs_are_mapped(subject, config, index, written, step, member):
        return
    probe = ModelConfig(name=config.name, platform="ensemble", max_batch_size=config.max_batch_size)
    probe.input.MergeFrom(config.input)
    for output in config.output:
        if all(each.name != output.name for each in probe.input):
            probe.input.add(name=output.name, data_type=output.data_type, dims=output.dims)
            if output.HasField("reshape"):
                probe.input[-1].reshape.CopyFrom(output.reshape)
    probe.ensemble_scheduling.step.add().CopyFrom(step)
    try:
        check_members(probe, [member.config])
    except InferError as error:
        _disagrees(subject, config, step, member, InferError(error.code, f"step {index}: {error.message}", error.hint))


def _keys(
    subject: Subject, index: int, written: Field | None, kind: str, names: Mapping[str, str], member: Subject
) -> bool:
    """Whether the keys of a map are tensors of the model."""
    assert member.config is not None
    role = kind.removesuffix("_map")
    tensors: Sequence[ModelInput | ModelOutput] = member.config.input if role == "input" else member.config.output
    known = [each.name for each in tensors]
    good = True
    for key, value in sorted(names.items()):
        if key in known:
            continue
        good = False
        entry = next((each for each in written.all(kind) if each.scalar("key") == key), None) if written else None
        fields = (entry.first("key"), entry.first("value")) if entry is not None else (None, None)
        free = [each for each in known if each not in names]
        near = meant(key, free) or (free[0] if len(free) == 1 else "")
        hint, fix = f"its {role}s are {', '.join(known)}", ""
        changes: list[Edit] = []
        if value in known and fields[0] is not None and fields[1] is not None:
            hint, fix = "key and value are swapped: the key is the model's tensor", "swap key and value"
            changes = [
                subject.writer.replace(fields[0].value, quoted(value)),
                subject.writer.replace(fields[1].value, quoted(key)),
            ]
        elif fields[0] is not None and near:
            fix, changes = f"write key: {quoted(near)}", [subject.writer.replace(fields[0].value, quoted(near))]
        what = f"{kind} of step {index} names '{key}', which is no {role} of model '{member.name}'"
        subject.find("ensemble-map-names-tensors", what, hint, at=fields[0], fix=fix, changes=changes)
    return good


def _inputs_are_mapped(
    subject: Subject,
    config: ModelConfig,
    index: int,
    written: Field | None,
    step: ModelEnsembling.Step,
    member: Subject,
) -> bool:
    assert member.config is not None
    tensors = {each.name for each in config.input}
    for other in config.ensemble_scheduling.step:
        tensors |= set(other.output_map.values())
    missing = [each for each in member.config.input if each.name not in step.input_map and not each.optional]
    for each in missing:
        edits: list[Edit] = []
        if written is not None:
            entry = f"input_map {{ key: {quoted(each.name)} value: {quoted(each.name)} }}"
            edits.append(subject.writer.add(written, entry))
        fix = f"map it to the ensemble's tensor '{each.name}'"
        if each.name not in tensors and written is not None:
            fix = f"add an input '{each.name}' to the ensemble and map it"
            dims = _carried(config, member.config, list(each.dims))
            text = f"name: {quoted(each.name)} data_type: {DataType.Name(each.data_type)} dims: {dims}"
            edits.append(subject.writer.add(subject.root, f"input [ {{ {text} }} ]"))
        subject.find(
            "ensemble-inputs-are-mapped",
            f"step {index} gives model '{member.name}' no input '{each.name}'",
            "add an input_map whose key is this input",
            at=written.first("model_name") if written is not None else None,
            fix=fix,
            changes=edits,
        )
    return not missing


def _disagrees(
    subject: Subject, config: ModelConfig, step: ModelEnsembling.Step, member: Subject, error: InferError
) -> None:
    """The ensemble's own input or output is of another type or shape than that of the step's model."""
    assert member.config is not None
    rule = _rule_of(error)
    for kind, entries in (("input", config.input), ("output", config.output)):
        names = step.input_map if kind == "input" else step.output_map
        tensors = {each.name: each for each in (member.config.input if kind == "input" else member.config.output)}
        for key, value in sorted(names.items()):
            entry = next((each for each in entries if each.name == value), None)
            if entry is None or key not in tensors or f"tensor {value}:" not in error.message:
                continue
            written = entry_named(subject.root, kind, value)
            theirs = tensors[key]
            if written is None:
                continue
            wanted = DataType.Name(theirs.data_type)
            dims = _carried(config, member.config, list(theirs.dims))
            edits, fix = subject.writer.scalar(written, "data_type", wanted), f"write data_type: {wanted}"
            if rule == "ensemble-shapes-agree":
                edits, fix = subject.writer.numbers(written, "dims", dims), f"write dims: {dims}"
            place = written.first("data_type" if rule == "ensemble-types-agree" else "dims") or written
            subject.find(rule, error.message, error.hint, at=place, fix=fix, changes=edits)
            return
    subject.find(rule, error.message, error.hint, at=_tensor_place(subject, error))


def _carried(config: ModelConfig, member: ModelConfig, dims: list[int]) -> list[int]:
    """A model's dims as the ensemble writes them."""
    if config.max_batch_size == 0 and member.max_batch_size > 0:
        return [-1, *dims]
    if config.max_batch_size > 0 and member.max_batch_size == 0 and len(dims) > 1:
        return dims[1:]
    return dims


def _rule_of(error: InferError) -> str:
    for words, name in (
        ("inconsistent data type", "ensemble-types-agree"),
        ("inconsistent shape", "ensemble-shapes-agree"),
        ("allows maximum batch size", "ensemble-batch-size-fits"),
    ):
        if words in error.message:
            return name
    return "ensemble-steps-fit"


def _circle(name: str, subjects: Subjects) -> list[str]:
    """The way from an ensemble back to itself; empty where there is none."""
    ways = [[name]]
    seen = set()
    while ways:
        way = ways.pop()
        here = subjects.get(way[-1])
        if here is None or here.config is None:
            continue
        for step in here.config.ensemble_scheduling.step:
            if step.model_name == name:
                return [*way, name]
            if step.model_name not in seen:
                seen.add(step.model_name)
                ways.append([*way, step.model_name])
    return []


def _steps(subject: Subject) -> list[Field]:
    scheduling = subject.root.first("ensemble_scheduling")
    return scheduling.all("step") if scheduling is not None else []


def _model_name(subject: Subject, name: str) -> Field | None:
    return next((each.first("model_name") for each in _steps(subject) if each.scalar("model_name") == name), None)


def _tensor_place(subject: Subject, error: InferError) -> Field | None:
    """The first mention of the tensor that the message is about."""
    _, _, rest = error.message.partition("ensemble tensor ")
    name = rest.partition(":")[0].split(" ")[0]
    for step in _steps(subject):
        for each in step.walk():
            if each.name == "value" and each.text == name:
                return each
    return locate(subject.root, error.message)
