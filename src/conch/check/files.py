"""The files that a config names or that its model needs: the model itself, labels, warm-up data, states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from conch.backend.find import BACKENDS
from conch.check.finding import Change, MakeFolder, Move
from conch.check.layout import MODEL_FILES, contents, is_file, is_folder, is_model
from conch.check.locate import entry_named
from conch.check.outline import Field
from conch.check.subject import Subject
from conch.check.writing import quoted
from conch.registry.samples import FOLDER as WARMUP
from conch.repository.versions import select
from conch.types.error import InferError

_LFS = b"version https://git-lfs.github.com/spec/v1"
_STATES = "initial_state"


def choose_versions(subject: Subject) -> None:
    """Sets `served`."""
    if subject.config is None or not subject.versions:
        return
    try:
        subject.served, missing = select(subject.config.version_policy, subject.versions, subject.name)
    except InferError as error:
        there = ", ".join(map(str, subject.versions))
        latest = subject.root.first("version_policy", "latest", "num_versions")
        zero = latest is not None and subject.config.version_policy.latest.num_versions == 0
        subject.find(
            "version-policy-selects",
            f"{error.message}; the folder holds {there}",
            error.hint,
            fix="write num_versions: 1",
            changes=[subject.writer.replace(latest.value, "1")] if latest is not None and zero else (),
        )
        return
    for text in missing:
        subject.find(
            "specific-versions-exist", text, f"versions that are there: {', '.join(map(str, subject.versions))}"
        )


def model_files_are_there(subject: Subject) -> None:
    config = subject.config
    if config is None or subject.ensemble or config.backend not in BACKENDS or not config.default_model_filename:
        return
    name = config.default_model_filename
    if any(each.rule == "model-file-stays-inside" for each in subject.findings):
        return
    for version in subject.served:
        folder = subject.version_folder(version)
        path = folder / name
        if is_file(path / "model.onnx"):
            path = path / "model.onnx"
        if is_file(path):
            _is_complete(subject, path)
        elif not is_folder(path):
            _missing(subject, folder, name)


def named_files_are_there(subject: Subject) -> None:
    """Labels, warm-up data and initial states."""
    config = subject.config
    if config is None:
        return
    for output in config.output:
        if output.label_filename and not is_file(subject.directory / output.label_filename):
            entry = entry_named(subject.root, "output", output.name)
            at = entry.first("label_filename") if entry is not None else None
            name = output.label_filename
            what = f"label file '{name}' of output '{output.name}' is not in the model's folder"
            _absent(subject, "label-file-is-there", what, subject.directory, name, at)
    for sample in config.model_warmup:
        for key, given in sorted(sample.inputs.items()):
            name = given.input_data_file
            if name and not is_file(subject.directory / WARMUP / name):
                what = f"'{name}', the data of input '{key}' in warm-up '{sample.name}', is not in the folder {WARMUP}"
                at = _scalar_of(subject.root, "input_data_file", name)
                _absent(subject, "warmup-file-is-there", what, subject.directory / WARMUP, name, at)
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            name = initial.data_file
            if name and not is_file(subject.directory / _STATES / name):
                what = f"'{name}', the initial state of '{state.input_name}', is not in the folder {_STATES}"
                at = _scalar_of(subject.root, "data_file", name)
                _absent(subject, "initial-state-file-is-there", what, subject.directory / _STATES, name, at)


def named_as_expected(subject: Subject) -> tuple[str, list[Change]]:
    """What gives the model's file the name that tells its backend; nothing where that is not clear."""
    changes: list[Change] = []
    names = []
    for version in subject.versions:
        folder = subject.version_folder(version)
        folders, plain = contents(folder)
        models = [each for each in [*folders, *plain] if is_model(folder / each)]
        if len(models) != 1:
            return "", []
        target = MODEL_FILES[Path(models[0]).suffix.lower()]
        names.append(f"{version}/{models[0]} to {target}")
        changes.append(Move(folder / models[0], folder / target))
    return f"rename {', '.join(names)}", changes


def _absent(subject: Subject, rule: str, what: str, home: Path, name: str, at: Field | None) -> None:
    """A file that the config names is missing; where it lies elsewhere in the model's folder, or under nearly the same
    name, that is the fix."""
    base = PurePosixPath(name).name
    folders = [subject.directory, home, *[subject.version_folder(number) for number in subject.versions]]
    changes: Sequence[Change] = ()
    summary = ""
    inside = not name.startswith("/") and ".." not in PurePosixPath(name).parts
    hint = f"put the file there: {home / name}" if inside else f"put the file into {home} and write its name alone"
    for folder in folders:
        if inside and is_file(folder / base):
            shown = (folder / base).relative_to(subject.directory)
            target = home / name
            summary = f"move {shown} to {target.relative_to(subject.directory)}"
            changes = [MakeFolder(target.parent), Move(folder / base, target)]
            break
    else:
        alike = [
            file for file in contents(home)[1] if file.lower() == base.lower() or Path(file).stem == Path(base).stem
        ]
        if len(alike) == 1 and at is not None and at.children is None:
            summary = f"write {quoted(alike[0])}"
            hint = f"the folder holds '{alike[0]}'"
            changes = [subject.writer.replace(at.value, quoted(alike[0]))]
    subject.find(rule, what, hint, at=at, fix=summary, changes=changes)


def _missing(subject: Subject, folder: Path, name: str) -> None:
    config = subject.config
    assert config is not None
    suffix = Path(name).suffix
    _, files = contents(folder)
    alike = [file for file in files if file.lower() == name.lower()] or [
        file for file in files if Path(file).suffix.lower() == suffix and is_model(folder / file)
    ]
    above = subject.directory / name
    what = f"there is no {name} in {folder.relative_to(subject.directory.parent)}"
    hint = f"put the model's file there, under the name {name}"
    changes: list[Change] = []
    summary = ""
    if len(alike) == 1:
        found = alike[0]
        hint = f"the folder holds {found}"
        if found.lower() == name.lower() or subject.patched is None or len(subject.served) > 1:
            summary, changes = f"rename {found} to {name}", [Move(folder / found, folder / name)]
        else:
            summary = f"write default_model_filename: {quoted(found)}"
            changes = list(subject.writer.scalar(subject.root, "default_model_filename", quoted(found)))
    elif is_file(above):
        hint = f"{name} lies beside the config: move it into the version folder"
        summary, changes = f"move {name} to {folder.name}/{name}", [Move(above, folder / name)]
    elif files:
        hint += f"; the folder holds {', '.join(files[:5])}"
    named = subject.root.first("default_model_filename")
    subject.find("model-file-is-there", what, hint, at=named or folder, fix=summary, changes=changes)


def _is_complete(subject: Subject, path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as error:
        subject.find("model-file-is-complete", f"{path.name} cannot be read: {error.strerror}", at=path)
        return
    if not head and path.suffix in MODEL_FILES:
        subject.find("model-file-is-complete", f"{path.name} is empty", "copy the file again", at=path)
    elif head == _LFS:
        subject.find(
            "model-file-is-complete",
            f"{path.name} is a pointer of Git LFS, not the model",
            "fetch the content: git lfs pull",
            at=path,
        )


def _scalar_of(root: Field, name: str, text: str) -> Field | None:
    return next((each for each in root.walk() if each.name == name and each.text == text), None)
