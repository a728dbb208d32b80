"""The config beside the signature of its ONNX file: every tensor by itself, with the server's own comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from conch.backend.agree import check_config, dims_of
from conch.backend.complete import complete_config, describe, needs_file, set_dims
from conch.backend.onnx.options import plan_session
from conch.backend.signature import Signature, Slot
from conch.check.finding import Edit
from conch.check.locate import entry_named, locate
from conch.check.subject import Subject
from conch.check.writing import quoted
from conch.config.normalize import normalize
from conch.config.sequence_tensors import with_hidden_entries
from conch.pb.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from conch.types.dtype import BY_NUMBER
from conch.types.error import InferError

Tensor = ModelInput | ModelOutput
_NEAR = 0.6


def complete_and_compare(subject: Subject) -> None:
    """Fill in what the newest file knows, and compare what the operator wrote with it."""
    config = subject.config
    if config is None or config.backend != "onnxruntime" or not subject.signatures:
        return
    signature = subject.signatures[max(subject.signatures)]
    try:
        for warning in plan_session(config, {}).warnings:
            _unknown_parameter(subject, warning)
    except InferError as error:
        subject.find("onnx-config-agrees", error.message, error.hint, at=locate(subject.root, error.message))
    if subject.options.auto_complete and needs_file(config):
        try:
            complete_config(config, signature)
            normalize(config)
        except InferError:
            _fixed_batch(subject, config, signature)
            return
    subject.complete = True
    _compare(subject, config, signature)


def _compare(subject: Subject, config: ModelConfig, signature: Signature) -> None:
    if config.max_batch_size > 0 and not signature.batchable:
        _fixed_batch(subject, config, signature)
        return
    before = len(subject.findings)
    _compare_names(subject, config, signature)
    if len(subject.findings) == before and not _swapped(subject, config, signature):
        for kind, entry, slot, error in _disagreements(config, signature):
            _tensor(subject, config, kind, entry, slot, error)
    if len(subject.findings) == before:
        try:
            check_config(with_hidden_entries(config), signature)
        except InferError as error:
            subject.find("onnx-config-agrees", error.message, error.hint, at=locate(subject.root, error.message))


def _pairs(config: ModelConfig, signature: Signature) -> Iterator[tuple[str, Sequence[Tensor], dict[str, Slot]]]:
    whole = with_hidden_entries(config)
    yield "input", list(whole.input), signature.takes
    yield "output", list(whole.output), {slot.name: slot for slot in signature.outputs}


def _disagreements(config: ModelConfig, signature: Signature) -> Iterator[tuple[str, Tensor, Slot, InferError]]:
    """What the server says of each tensor, all others being as the file has them."""
    for kind, entries, slots in _pairs(config, signature):
        for entry in entries:
            slot = slots.get(entry.name)
            if slot is None:
                continue
            probe = _truth(config, signature)
            _replace(probe, entry)
            try:
                check_config(probe, signature)
            except InferError as error:
                yield kind, entry, slot, error


def _replace(probe: ModelConfig, entry: Tensor) -> None:
    if isinstance(entry, ModelInput):
        inputs = [each for each in probe.input if each.name != entry.name]
        del probe.input[:]
        probe.input.extend([*inputs, entry])
    else:
        outputs = [each for each in probe.output if each.name != entry.name]
        del probe.output[:]
        probe.output.extend([*outputs, entry])


def _truth(config: ModelConfig, signature: Signature) -> ModelConfig:
    """A config without a mistake, but for batch inputs and outputs, which stay."""
    probe = ModelConfig(name=config.name, backend=config.backend, max_batch_size=config.max_batch_size)
    probe.batch_input.MergeFrom(config.batch_input)
    probe.batch_output.MergeFrom(config.batch_output)
    made = {name for each in config.batch_input for name in each.target_name}
    describe(probe, probe.input, [slot for slot in signature.inputs if slot.name not in made])
    describe(probe, probe.output, signature.outputs)
    return probe


def _tensor(subject: Subject, config: ModelConfig, kind: str, entry: Tensor, slot: Slot, error: InferError) -> None:
    written = entry_named(subject.root, kind, entry.name)
    if "datatype" in error.message:
        place = written.first("data_type") if written is not None else locate(subject.root, f"'{entry.name}'")
        wanted = slot.datatype.config_name
        came = BY_NUMBER[entry.data_type].config_name if entry.data_type in BY_NUMBER else "none"
        subject.find(
            "onnx-types-agree",
            f"{kind} '{entry.name}': the model's type is {wanted}, the config says {came}",
            error.hint,
            at=place or written,
            fix=f"write data_type: {wanted}",
            changes=subject.writer.scalar(written, "data_type", wanted) if written is not None else (),
        )
        return
    if written is None or "optional" in error.message or entry.name in _ragged(config):
        subject.find("onnx-config-agrees", error.message, error.hint, at=written or locate(subject.root, error.message))
        return
    _dims(subject, config, kind, entry, slot)


def _dims(subject: Subject, config: ModelConfig, kind: str, entry: Tensor, slot: Slot) -> None:
    written = entry_named(subject.root, kind, entry.name)
    assert written is not None
    batching = config.max_batch_size > 0
    reshaped = entry.HasField("reshape")
    dims = tuple(entry.reshape.shape) if reshaped else tuple(entry.dims)
    right = slot.shape[1:] if batching else slot.shape
    rule, hint = "onnx-dims-agree", f"write dims: {list(right)}"
    sizes = f"the model's shape is {list(slot.shape)}, the config's dims are {list(dims)}"
    if batching:
        sizes += f" after the batch dimension, because max_batch_size is {config.max_batch_size}"
        if len(dims) == len(slot.shape) and (dims[0] in (-1, 1) or dims == slot.shape):
            rule = "onnx-dims-leave-out-batch"
            sizes = (
                f"dims {list(dims)} hold the batch dimension, which the server adds because max_batch_size is "
                f"{config.max_batch_size}; the model's shape is {list(slot.shape)}"
            )
    elif slot.batches and len(dims) == len(slot.shape) - 1:
        rule = "onnx-dims-name-batch"
        sizes += "; max_batch_size is 0, so dims must name the batch dimension, too"
        hint += ", or set max_batch_size above 0"
    changes: list[Edit] = []
    fix = f"write dims: {list(right)}"
    if rule == "onnx-dims-name-batch" and subject.root.first("max_batch_size") is None:
        fix, changes = "write max_batch_size: 4", subject.writer.scalar(subject.root, "max_batch_size", "4")
    elif reshaped:
        shape = written.first("reshape")
        changes = subject.writer.numbers(shape, "shape", right) if shape is not None else []
        fix = f"write reshape {{ shape: {list(right)} }}"
    elif right:
        changes = subject.writer.numbers(written, "dims", right)
    else:
        fix = "write dims: [ 1 ] and an empty reshape"
        changes = [*subject.writer.numbers(written, "dims", (1,)), subject.writer.add(written, "reshape: { }")]
    place = written.first("reshape") if reshaped else written.first("dims")
    subject.find(rule, f"{kind} '{entry.name}': {sizes}", hint, at=place or written, fix=fix, changes=changes)


def _compare_names(subject: Subject, config: ModelConfig, signature: Signature) -> None:
    made = {name for each in config.batch_input for name in each.target_name}
    for kind, entries, slots in _pairs(config, signature):
        unknown = [entry for entry in entries if entry.name not in slots]
        known = {entry.name for entry in entries} | (made if kind == "input" else set())
        free = [slot for slot in slots.values() if slot.name not in known]
        if kind == "input":
            free = [slot for slot in free if slot in signature.inputs] or (free if unknown else [])
        for entry in unknown:
            meant = _meant(entry, unknown, free)
            _unknown_name(subject, kind, entry, meant, sorted(slots))
            free = [slot for slot in free if slot is not meant]
        if kind == "input" and not unknown:
            for slot in free:
                if slot in signature.inputs:
                    _unlisted(subject, config, slot)


def _meant(entry: Tensor, unknown: Sequence[Tensor], free: Sequence[Slot]) -> Slot | None:
    """The model's tensor that an unknown name stands for: the most similar one, or the only one that is left."""
    if len(unknown) == 1 and len(free) == 1:
        return free[0]
    ratios = [(SequenceMatcher(None, entry.name.lower(), slot.name.lower()).ratio(), slot) for slot in free]
    best = max(ratios, key=lambda each: each[0], default=None)
    return best[1] if best is not None and best[0] >= _NEAR else None


def _unknown_name(subject: Subject, kind: str, entry: Tensor, meant: Slot | None, names: Sequence[str]) -> None:
    written = entry_named(subject.root, kind, entry.name) or locate(subject.root, f"'{entry.name}'")
    changes: list[Edit] = []
    fix = ""
    label = written.first("name") if written is not None else None
    if written is not None and meant is not None and label is not None:
        fix, changes = f"write name: {quoted(meant.name)}", [subject.writer.replace(label.value, quoted(meant.name))]
    elif written is not None and meant is None and written.name == kind and len(subject.root.all(kind)) > 1:
        fix, changes = f"remove {kind} '{entry.name}'", subject.writer.remove(subject.root, written)
    subject.find(
        "onnx-names-agree",
        f"the model has no {kind} '{entry.name}'; its {kind}s are {', '.join(names)}",
        f"did you mean '{meant.name}'?" if meant is not None else f"remove it, or name one of the model's {kind}s",
        at=label or written,
        fix=fix,
        changes=changes,
    )


def _unlisted(subject: Subject, config: ModelConfig, slot: Slot) -> None:
    entry = ModelInput()
    set_dims(entry, slot.shape, config.max_batch_size > 0)
    text = f"name: {quoted(slot.name)} data_type: {slot.datatype.config_name} dims: {list(entry.dims)}"
    text += " reshape: { }" if entry.HasField("reshape") else ""
    subject.find(
        "onnx-inputs-are-all-listed",
        f"the model's input '{slot.name}' is not in the config",
        f"add input [ {{ {text} }} ]",
        fix=f"add input '{slot.name}'",
        changes=[subject.writer.add(subject.root, f"input [ {{ {text} }} ]")],
    )


def _swapped(subject: Subject, config: ModelConfig, signature: Signature) -> bool:
    """Two entries that only fit one another's tensors."""
    for kind, entries, slots in _pairs(config, signature):
        wrong = [each for each in entries if not _fits(each, slots.get(each.name), config)]
        for index, one in enumerate(wrong):
            for other in wrong[index + 1 :]:
                fields = [entry_named(subject.root, kind, each.name) for each in (one, other)]
                names = [each.first("name") for each in fields if each is not None]
                if not (_fits(one, slots.get(other.name), config) and _fits(other, slots.get(one.name), config)):
                    continue
                if len(names) == 2 and names[0] is not None and names[1] is not None:
                    subject.find(
                        "onnx-names-are-not-swapped",
                        f"{kind}s '{one.name}' and '{other.name}' have each other's type and dims",
                        "swap their names",
                        at=names[0],
                        fix=f"swap the names '{one.name}' and '{other.name}'",
                        changes=[
                            subject.writer.replace(names[0].value, quoted(other.name)),
                            subject.writer.replace(names[1].value, quoted(one.name)),
                        ],
                    )
                    return True
    return False


def _fits(entry: Tensor, slot: Slot | None, config: ModelConfig) -> bool:
    if slot is None:
        return False
    dims = dims_of(entry)
    full = [-1, *dims] if config.max_batch_size > 0 else dims
    if entry.data_type != slot.datatype.number or len(full) != len(slot.shape):
        return False
    return all(size in (-1, given) for size, given in zip(slot.shape, full, strict=True))


def _fixed_batch(subject: Subject, config: ModelConfig, signature: Signature) -> None:
    fixed = next(slot for slot in (*signature.inputs, *signature.outputs) if not slot.batches)
    changes = subject.writer.scalar(subject.root, "max_batch_size", "0")
    subject.find(
        "onnx-batch-dimension-is-free",
        f"max_batch_size is {config.max_batch_size}, and '{fixed.name}' of the model has shape {list(fixed.shape)}: "
        "the first dimension is fixed, so the model cannot take batches",
        "export the model with a first dimension of any size (dynamic_axes), or set max_batch_size: 0 and give the "
        "complete shape in dims",
        fix="write max_batch_size: 0",
        changes=changes if subject.patched is not None else (),
    )


def _ragged(config: ModelConfig) -> set[str]:
    return {each.name for each in config.input if each.allow_ragged_batch}


def _unknown_parameter(subject: Subject, warning: str) -> None:
    at = locate(subject.root, warning.partition(": ")[2])
    text = warning.partition(": ")[2] or warning
    subject.find("parameter-has-effect", text, "remove it, or correct its name", at=at)
