"""Repositories and models as folders and files: names, version folders, what lies in the wrong place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from conch.check.finding import Finding, Fix, MakeFolder, Move, Place, Severity
from conch.check.subject import Options, Subject
from conch.repository.local import CONFIG_FILE
from conch.repository.versions import version_numbers

#: Files that are a model, by what they end with -> the name that is looked for.
MODEL_FILES = {
    ".onnx": "model.onnx",
    ".plan": "model.plan",
    ".engine": "model.plan",
    ".pt": "model.pt",
    ".pth": "model.pt",
    ".pt2": "model.pt2",
    ".savedmodel": "model.savedmodel",
    ".graphdef": "model.graphdef",
    ".xml": "model.xml",
    ".py": "model.py",
}
_CONFIG_LIKE = re.compile(
    r"config\.(pbtxt?\.txt|pbtext|pbtx|pbtxt|prototxt|txt|pb|textproto)|configs?\.pbtxt?", re.IGNORECASE
)
_MOST_SHOWN = 5


def repository_problems(path: Path) -> list[Finding]:
    """What is wrong with the repository as a whole."""
    if not path.is_dir():
        hint = "give the folder that holds one folder for each model"
        what = "it is a file" if path.exists() else "there is no such folder"
        return [_wrong("repository-is-readable", path, what, hint)]
    names, files = contents(path)
    versions = version_numbers(names)[0]
    if CONFIG_FILE in files or (versions and len(versions) == len(names) and names):
        what = f"it is the folder of one model: it holds {CONFIG_FILE if CONFIG_FILE in files else 'version folders'}"
        return [_wrong("repository-holds-models", path, what, f"give the folder above it: {path.parent}")]
    loose = [file for file in files if Path(file).suffix in MODEL_FILES and Path(file).suffix != ".py"]
    if loose and not names:
        return [_loose(path, loose)]
    return []


def is_model(path: Path) -> bool:
    """Whether a file or folder looks like a model; of Python files those that define one do."""
    if path.suffix.lower() != ".py":
        return path.suffix.lower() in MODEL_FILES
    try:
        return path.name == MODEL_FILES[".py"] or (path.is_file() and b"TritonPythonModel" in path.read_bytes())
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Also of a path that no file can have, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """As `is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def contents(path: Path) -> tuple[list[str], list[str]]:
    """Names of folders and of files, without hidden ones; nothing of what cannot be read."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return [], []
    seen = [each for each in entries if not each.name.startswith(".") and each.name != "__pycache__"]
    return [each.name for each in seen if each.is_dir()], [each.name for each in seen if not each.is_dir()]


def subject_of(name: str, directory: Path, options: Options) -> Subject:
    custom = directory / "configs" / f"{options.config_name}.pbtxt"
    usual = directory / CONFIG_FILE
    return Subject(name, directory, options, custom if options.config_name and custom.is_file() else usual)


def inspect_folder(subject: Subject) -> None:
    """Names of the config file and of the version folders. Sets `versions`."""
    folders, files = contents(subject.directory)
    _config_name(subject, folders, files)
    subject.versions, warnings = version_numbers(folders)
    for warning in warnings:
        named = re.search(r"'([^']*)'", warning)
        _misnamed_version(subject, named[1] if named else "", folders)


def _nested(subject: Subject) -> list[str]:
    """Names of models in a folder that is itself a repository; empty for a model's folder."""
    folders, files = contents(subject.directory)
    if any(_CONFIG_LIKE.fullmatch(file) or Path(file).suffix in MODEL_FILES for file in files) or subject.versions:
        return []
    below = [(each, contents(subject.directory / each)) for each in folders]
    return [each for each, (inner, there) in below if CONFIG_FILE in there or version_numbers(inner)[0]]


def versions_are_there(subject: Subject) -> None:
    """Called once the config is read: ensembles need a version folder, too."""
    if subject.versions:
        return
    written = subject.written
    ensemble = written is not None and (written.platform == "ensemble" or written.HasField("ensemble_scheduling"))
    nested = _nested(subject)
    if nested:
        shown = ", ".join(nested[:_MOST_SHOWN])
        subject.find(
            "model-folder-holds-a-model",
            f"the folder holds models of its own: {shown}",
            f"it is a repository: give {subject.directory} as a repository, or move its folders one level up",
            at=subject.directory,
        )
        return
    if any(each.rule == "version-folder-is-a-number" and each.fix for each in subject.findings):
        subject.find("version-folder-is-there", "no folder's name is a version number",
                     "rename the folder as shown", at=subject.directory)  # fmt: skip
        return
    _, files = contents(subject.directory)
    models = [file for file in files if is_model(subject.directory / file)]
    folder = subject.directory / "1"
    if ensemble:
        summary = f"make the empty folder {folder.name}/"
        hint = "an ensemble needs an empty version folder"
        subject.find("version-folder-is-there", "there is no version folder", hint, at=subject.directory,
                     fix=summary, changes=[MakeFolder(folder)])  # fmt: skip
    elif models:
        companions = [file for file in files if any(_belongs(file, model) for model in models)]
        moves = [Move(subject.directory / each, folder / each) for each in sorted({*models, *companions})]
        shown = ", ".join(each.source.name for each in moves)
        subject.find(
            "version-folder-is-there",
            f"{shown} lies beside the config, and there is no version folder",
            f"put it into the folder {folder.name}/",
            at=subject.directory,
            fix=f"make {folder.name}/ and move {shown} into it",
            changes=[MakeFolder(folder), *moves],
        )
    else:
        subject.find(
            "version-folder-is-there",
            "there is no version folder",
            f"make the folder {folder.name}/ and put the model's file into it",
            at=subject.directory,
        )


def duplicates(names: Iterable[tuple[str, Path]]) -> list[Finding]:
    """Models of one name in several repositories."""
    seen: dict[str, list[Path]] = {}
    for name, repository in names:
        seen.setdefault(name, []).append(repository)
    return [
        Finding(
            "model-name-is-unique",
            Severity.ERROR,
            name,
            Place(paths[-1] / name),
            f"model '{name}' lies in {' and in '.join(map(str, paths))}",
            "rename one of the folders, or serve with --model-namespacing=true",
        )
        for name, paths in sorted(seen.items())
        if len(paths) > 1
    ]


def _config_name(subject: Subject, folders: Sequence[str], files: Sequence[str]) -> None:
    if CONFIG_FILE in files or subject.config_path.is_file():
        return
    alike = [subject.directory / file for file in files if _CONFIG_LIKE.fullmatch(file)]
    inside = [subject.directory / str(version) / CONFIG_FILE for version in version_numbers(folders)[0]]
    alike += [path for path in inside if path.is_file()]
    target = subject.directory / CONFIG_FILE
    for path in alike[:1]:
        shown = path.relative_to(subject.directory)
        subject.find(
            "config-file-has-its-name",
            f"there is no {CONFIG_FILE}; {shown} is not read",
            f"rename it to {CONFIG_FILE} in the model's folder",
            at=path,
            fix=f"rename {shown} to {CONFIG_FILE}",
            changes=[Move(path, target)],
        )


def _misnamed_version(subject: Subject, name: str, folders: Sequence[str]) -> None:
    number = re.fullmatch(r"(?:v|ver|version)?[-_ .]?0*(\d{1,18})(?:\.0)*", name, re.IGNORECASE)
    path = subject.directory / name
    new = str(int(number[1])) if number else ""
    free = bool(new) and new not in folders and contents(path) != ([], [])
    subject.find(
        "version-folder-is-a-number",
        f"folder '{name}' is not a version: its name is no plain number",
        f"rename it to {new}" if new else "name version folders 1, 2, 3",
        at=path,
        fix=f"rename {name} to {new}",
        changes=[Move(path, subject.directory / new)] if free else (),
        severity=None if new else Severity.NOTE,
    )


def _belongs(file: str, model: str) -> bool:
    """Whether `file` is data of the model file, such as model.onnx.data or model.bin of model.xml."""
    return file != model and not file.endswith((".pbtxt", ".txt", ".md")) and file.startswith(Path(model).stem)


def _loose(path: Path, files: Sequence[str]) -> Finding:
    file = files[0]
    name = re.sub(r"[^\w.-]", "_", Path(file).stem)
    target = path / name / "1" / MODEL_FILES[Path(file).suffix]
    fix = Fix(f"move {file} to {target.relative_to(path)}", (MakeFolder(target.parent), Move(path / file, target)))
    hint = "each model has a folder, and in it a folder for each version"
    place = Place(path / file)
    what = f"{file} lies in the repository itself, where nothing is loaded from"
    return Finding("repository-holds-models", Severity.ERROR, name, place, what, hint, fix)


def _wrong(name: str, path: Path, message: str, hint: str) -> Finding:
    return Finding(name, Severity.ERROR, "", Place(path), message, hint)
