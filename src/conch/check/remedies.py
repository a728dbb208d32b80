"""What can be written into a config to heal a breach of the server's own rules. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from conch.check.finding import Edit
from conch.check.subject import Subject
from conch.config.autofill import PLATFORMS
from conch.types.error import InferError

#: What it does, and the edits.
Remedy = tuple[str, list[Edit]] | None

_ALIASES: Final = {
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "onnx_runtime": "onnxruntime",
    "onnxruntime": "onnxruntime",
    "py": "python",
    "python3": "python",
    "python": "python",
    "python_backend": "python",
    "torch": "pytorch",
    "pytorch": "pytorch",
    "tensorrt": "tensorrt",
    "openvino": "openvino",
    "tensorflow": "tensorflow",
    "identity": "identity",
}


def as_backend(name: str) -> str:
    """The backend that somebody means who calls it so; empty for none, and for platforms as they should be."""
    lower = name.lower()
    if lower in _ALIASES:
        return _ALIASES[lower]
    return "" if name in PLATFORMS or lower == "ensemble" else PLATFORMS.get(lower, "")


def _remove(subject: Subject, *names: str) -> Remedy:
    writer, edits = subject.writer, []
    done: set[object] = set()
    for name in names:
        for field in subject.root.all(name):
            if field.whole not in done:
                done.add(field.whole)
                edits.append(writer.replace(field.whole, "") if field.listed else writer.remove(subject.root, field)[0])
    return (f"remove {' and '.join(names)}", edits) if edits else None


def _remove_platform(subject: Subject, _: InferError) -> Remedy:
    return _remove(subject, "platform")


def _remove_backend(subject: Subject, _: InferError) -> Remedy:
    return _remove(subject, "backend")


def _remove_cache(subject: Subject, _: InferError) -> Remedy:
    return _remove(subject, "response_cache")


def _nothing_of_its_own(subject: Subject, _: InferError) -> Remedy:
    there = [name for name in ("instance_group", "optimization", "model_warmup") if subject.root.first(name)]
    return _remove(subject, *there)


def _zero(subject: Subject, _: InferError) -> Remedy:
    return "write max_batch_size: 0", subject.writer.scalar(subject.root, "max_batch_size", "0")


def _sizes(subject: Subject, *path: str) -> Remedy:
    assert subject.config is not None
    home = subject.root.first(*path)
    largest = subject.config.max_batch_size
    if home is None:
        return None
    sizes = [each.number for each in home.all("preferred_batch_size")]
    kept = [size for size in sizes if size is not None and 0 < size <= largest]
    if kept:
        return f"prefer only {kept}", subject.writer.numbers(home, "preferred_batch_size", kept)
    first = home.first("preferred_batch_size")
    edits = subject.writer.replace(first.whole, "") if first is not None and first.listed else None
    return ("remove preferred_batch_size", [edits]) if edits is not None else None


def _preferred(subject: Subject, _: InferError) -> Remedy:
    return _sizes(subject, "dynamic_batching")


def _preferred_of_sequences(subject: Subject, _: InferError) -> Remedy:
    return _sizes(subject, "sequence_batching", "oldest")


def _ensemble(subject: Subject, _: InferError) -> Remedy:
    if not subject.root.first("ensemble_scheduling"):
        return None
    return 'write platform: "ensemble"', subject.writer.scalar(subject.root, "platform", '"ensemble"')


def _level(subject: Subject, _: InferError) -> Remedy:
    home = subject.root.first("dynamic_batching")
    if home is None or home.first("default_priority_level") is not None:
        return None
    return "write default_priority_level: 1", subject.writer.scalar(home, "default_priority_level", "1")


def _any_device(subject: Subject, error: InferError) -> Remedy:
    """KIND_AUTO uses the GPUs of a machine that has some and the CPU elsewhere; a list of GPUs forbids that."""
    edits = []
    done: set[object] = set()
    for group in subject.root.all("instance_group"):
        kind = group.first("kind")
        if kind is None or kind.text not in {"KIND_GPU", "KIND_CPU"} or "GPU" not in error.message.upper():
            continue
        if kind.text == "KIND_GPU":
            edits.append(subject.writer.replace(kind.value, "KIND_AUTO"))
        for gpu in group.all("gpus"):
            if gpu.whole not in done:
                done.add(gpu.whole)
                edits += [subject.writer.replace(gpu.whole, "")] if gpu.listed else subject.writer.remove(group, gpu)
    return ("write kind: KIND_AUTO, which takes GPUs where there are some", edits) if edits else None


def _no_hidden_inputs(subject: Subject, error: InferError) -> Remedy:
    """A control or state that is listed as an input, too."""
    for entry in subject.root.all("input"):
        if f"'{entry.scalar('name')}'" in error.message:
            return f"remove input '{entry.scalar('name')}'", subject.writer.remove(subject.root, entry)
    return None


def _no_repetition(subject: Subject, error: InferError) -> Remedy:
    for kind in ("input", "output"):
        same = [each for each in subject.root.all(kind) if f"{kind} '{each.scalar('name')}'" in error.message]
        texts = {_squeezed(subject.writer.text[each.value.start : each.value.end]) for each in same}
        if len(same) > 1 and len(texts) == 1:
            return f"remove the second {kind} of that name", subject.writer.remove(subject.root, same[1])
    return None


def _sound_tensor(subject: Subject, error: InferError) -> Remedy:
    """Size 0 in dims is often written for "any size"."""
    if "dimension must be" not in error.message:
        return None
    edits = []
    for entry in [*subject.root.all("input"), *subject.root.all("output")]:
        if f"'{entry.scalar('name')}'" in error.message:
            dims = [each.number or -1 for each in entry.all("dims")]
            edits += subject.writer.numbers(entry, "dims", [dim if dim >= 1 else -1 for dim in dims])
            break
    return ("write -1 for sizes that vary", edits) if edits else None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


REMEDIES: Final[Mapping[str, Callable[[Subject, InferError], Remedy]]] = {
    "platform-suits-backend": _remove_platform,
    "ensemble-has-no-backend": _remove_backend,
    "batch-size-is-not-negative": _zero,
    "preferred-sizes-fit": _preferred,
    "sequence-preferred-sizes-fit": _preferred_of_sequences,
    "default-level-is-a-level": _level,
    "cache-suits-scheduler": _remove_cache,
    "cache-suits-transactions": _remove_cache,
    "scheduling-suits-platform": _ensemble,
    "ensemble-runs-nothing-itself": _nothing_of_its_own,
    "instance-groups-suit-the-machine": _any_device,
    "hidden-tensors-are-apart": _no_hidden_inputs,
    "names-are-unique": _no_repetition,
    "inputs-are-sound": _sound_tensor,
    "outputs-are-sound": _sound_tensor,
}
