"""The ONNX files of a model, opened for their signatures and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from conch.backend.onnx.session import find_model, peek
from conch.backend.onnx.signature import read_signature
from conch.check.finding import Move
from conch.check.subject import Subject
from conch.types.error import InferError


def read_files(subject: Subject) -> None:
    """Open the model file of every version that is served. Sets `signatures`."""
    config = subject.config
    if config is None or config.backend != "onnxruntime":
        return
    for version in subject.served:
        try:
            path = find_model(subject.version_folder(version), config.default_model_filename, config.name)
        except (InferError, OSError):
            # It is not there, or has a name that no file can have: that is told already.
            continue
        if any(each.place.path == path for each in subject.findings):
            continue
        try:
            subject.signatures[version] = read_signature(config.name, peek(path))
        except InferError as error:
            _unopened(subject, path, error)


def _unopened(subject: Subject, path: Path, error: InferError) -> None:
    """ONNX Runtime does not take the file."""
    text = error.message
    named = re.search(r"xternal data path does not exist: \"?([^\"\s]+)", text)
    missing = named[1] if named else ""
    if not missing and "xternal" not in text:
        subject.find("onnx-file-opens", text, error.hint or _advice(text), at=path)
        return
    name = Path(missing).name
    elsewhere = subject.directory / name
    moves = [Move(elsewhere, path.parent / name)] if name and elsewhere.is_file() else []
    subject.find(
        "onnx-external-data-is-there",
        f"the weights that {path.name} keeps in {name or 'another file'} are missing: {text}",
        f"put {name or 'that file'} beside {path.name}, under the name that it had when the model was saved",
        at=path,
        fix=f"move {name} to {path.parent.name}/{name}",
        changes=moves,
    )


def _advice(text: str) -> str:
    if "IR version" in text or "opset" in text.lower():
        return "export the model for an older opset, or install a newer onnxruntime"
    if "Protobuf parsing failed" in text or "INVALID_PROTOBUF" in text:
        return "the file is no ONNX model, or only a part of one: copy it again"
    return ""
