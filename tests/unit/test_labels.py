"""Label files: lines of a file in the model's folder, and nothing outside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.labels import with_labels
from conch.types.error import Code, InferError


def config(label_filename: str) -> ModelConfig:
    made = ModelConfig(name="m")
    made.output.add(name="a", data_type=11, dims=[1], label_filename=label_filename)
    made.output.add(name="b", data_type=11, dims=[1])
    return made


def test_labels_are_lines_of_a_file_in_the_models_folder(tmp_path: Path) -> None:
    """As bytes, the last line with or without its end; outputs without a file have none."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "labels.txt").write_bytes(b"cat\n\nd\r\n\xff dog")
    made = config("sub/labels.txt")
    spec = with_labels(model_spec(made, 1), made, tmp_path)
    assert [list(each.labels) for each in spec.outputs] == [[b"cat", b"", b"d\r", b"\xff dog"], []]


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/../../secret", "a\0b"])
def test_labels_come_from_nowhere_else(tmp_path: Path, name: str) -> None:
    """A config that a client sends with a load may name any file."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "m" / "sub").mkdir(parents=True)
    made = config(name)
    with pytest.raises(InferError, match="must lie in the model's folder") as caught:
        with_labels(model_spec(made, 1), made, tmp_path / "m")
    assert caught.value.code is Code.INVALID_ARG


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """In the words that Triton has for files it cannot read."""
    made = config("labels.txt")
    with pytest.raises(InferError) as caught:
        with_labels(model_spec(made, 1), made, tmp_path)
    text = f"failed to open text file for read {tmp_path}/labels.txt: No such file or directory"
    assert (caught.value.code, caught.value.message) == (Code.INTERNAL, text)
