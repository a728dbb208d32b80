"""docs/export.md: its commands do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from conch.cli.export import main
from conch.config.pbtxt import parse_text

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def test_the_example_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's model is exported by the page's command."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = re.search(r"```sh\nconch export (.*?)\nconch serve", PAGE, re.DOTALL)
    assert source is not None
    assert command is not None
    Path("classifier.py").write_text(source[1])
    assert main(shlex.split(command[1].replace("\\\n", " "))) == 0
    config = parse_text(Path("model_repository/classifier/config.pbtxt").read_text(), "config.pbtxt")
    assert [each.name for each in config.input] == ["ids", "weight"]
    assert [each.name for each in config.output] == ["scores", "embedding"]


def test_every_format_is_listed() -> None:
    """The formats of the page are those of the command."""
    from conch.export.modules import FORMATS

    assert all(f"`{name}`" in PAGE for name in FORMATS)
