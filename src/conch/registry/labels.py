"""The labels of a model's outputs: `label_filename` in the config names a file with one label per line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import internal, invalid
from conch.types.model import ModelSpec


def with_labels(spec: ModelSpec, config: ModelConfig, directory: Path) -> ModelSpec:
    """`spec` with the labels of its outputs, read from the model's folder. Raises InferError where a file is not there.

    A file outside the folder is refused: who may load a model with a config of his own shall not read any file.
    """
    files = {output.name: output.label_filename for output in config.output if output.label_filename}
    if not files:
        return spec
    outputs = [
        dataclasses.replace(each, labels=_read(directory, files[each.name])) if each.name in files else each
        for each in spec.outputs
    ]
    return dataclasses.replace(spec, outputs=tuple(outputs))


def _read(directory: Path, name: str) -> Sequence[bytes]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise invalid(f"label file '{name}' must lie in the model's folder")
    try:
        return tuple((directory / path).read_bytes().split(b"\n"))
    except OSError as error:
        raise internal(f"failed to open text file for read {directory / path}: {error.strerror}") from error
