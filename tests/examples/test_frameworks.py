"""examples/frameworks: what it trains is served, and answers as its frameworks do. (All: test_many_frameworks.py.)"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "frameworks"
README = (EXAMPLE / "README.md").read_text()
ROW = re.compile(r"^(\w+) +(\w+) +(\d+) +(\d+\.\d)% +(\d\.\de[+-]\d\d) +\d+$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("sklearn", "onnx", "onnxruntime", "treelite", "xgboost"))),
    reason="pip install 'conch[examples,forest]'",
)
def test_some_of_them(tmp_path: Path) -> None:
    """run.py trains and serves the models it is told to, the pipeline in both forms, and keeps the repository."""
    command = [sys.executable, EXAMPLE / "run.py", f"--repository={tmp_path / 'kept'}"]
    done = subprocess.run(
        [*command, "--only", "onnx", "sklearn", "pipeline"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {name: (backend, float(right), float(off)) for name, backend, _, right, off in ROW.findall(done.stdout)}
    assert {name: backend for name, (backend, _, _) in rows.items()} == {
        "onnx": "onnxruntime", "sklearn": "python", "pipeline": "ensemble", "pipeline_bls": "python"
    }  # fmt: skip
    assert all(right > 80 and off < 1e-5 for _, right, off in rows.values())
    assert (tmp_path / "kept" / "sklearn" / "1" / "requirements.txt").read_text().startswith("scikit-learn==")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A framework that is not installed is left out by name, not by a traceback."""
    code = (
        "import runpy, sys; from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'openvino' else find(name)\n"
        f"sys.argv = ['train.py', {str(tmp_path / 'models')!r}, '--only', 'openvino']\n"
        f"runpy.run_path({str(EXAMPLE / 'train.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "openvino: left out, openvino is not installed\n")
    assert not (tmp_path / "models").exists()


def test_the_readme() -> None:
    """Its extras are there, its table has a row for each model, and the files that it names exist."""
    (extras,) = re.findall(r"pip install '\.\[([\w,]+)\]'", README)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()
    models = set(re.findall(r'^    "(\w+)": \(\(', (EXAMPLE / "train.py").read_text(), re.MULTILINE))
    assert {name for name, *_ in ROW.findall(README)} == models | {"pipeline_bls"}
    assert all((EXAMPLE / name).exists() for name in re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE))
