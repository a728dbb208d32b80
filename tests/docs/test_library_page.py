"""docs/library.md: every example runs, and prints what its comments say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper, numpy_helper

from conch.types.dtype import FP32
from support.onnx_models import graph

PAGE = (Path(__file__).parent.parent.parent / "docs" / "library.md").read_text()
EXAMPLES = re.findall(r"^## (.*?)$|^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def named() -> dict[str, str]:
    """Example by the heading that it stands under."""
    found, heading = {}, "A server inside a program"
    for title, code in EXAMPLES:
        heading = title or heading
        if code:
            found[heading] = code
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library")
    version = path / "model_repository" / "plus_one" / "1"
    version.mkdir(parents=True)
    tensor = {"x": (FP32, ("batch", 2))}, {"y": (FP32, ("batch", 2))}
    one = numpy_helper.to_array(helper.make_tensor("one", 1, [], [1.0]))
    onnx.save(graph([helper.make_node("Add", ["x", "one"], ["y"])], *tensor, {"one": one}), version / "model.onnx")
    return path


@pytest.mark.parametrize("heading", named())
def test_the_examples_of_the_page(folder: Path, heading: str) -> None:
    """A reader who copies an example sees what the comments promise, and nothing on stderr."""
    code = named()[heading]
    promised = re.findall(r"^\s*print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert promised
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == promised
