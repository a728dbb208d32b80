"""docs/backends.md: its example is a backend, its backends and parameters are those there are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tritonclient.http as client

from conch.backend.find import BACKENDS
from conch.backend.tensorflow import options
from support.backends import install
from support.server import Server

PAGE = (Path(__file__).parent.parent.parent / "docs" / "backends.md").read_text()
CONFIG = """
backend: "scale"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
dynamic_batching { }
"""


def test_the_example_serves_a_model(tmp_path: Path) -> None:
    """The class of the page, in a package with the entry point of the page, answers requests of a real server."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (name, target) = re.search(r'entry-points."conch.backends"\]\n(\w+) = "([\w:]+)"', PAGE).groups()
    site = install(tmp_path / "site", target.partition(":")[0], source, **{name: target})
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "models" / "m" / "1" / "factor.txt").write_text("2.5")
    with Server(tmp_path / "models", env={"PYTHONPATH": str(site)}) as server:
        triton = client.InferenceServerClient(server.http)
        x = client.InferInput("x", [2, 3], "FP32")
        x.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
        assert triton.infer("m", [x]).as_numpy("y").tolist() == [[0, 2.5, 5], [7.5, 10, 12.5]]
        triton.close()


def test_the_example_is_short() -> None:
    """A backend is about forty lines of code."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = [line for line in source.splitlines() if line.strip() and not line.strip().startswith(('"""', "#"))]
    assert len(code) <= 48


def test_the_built_in_backends_are_there() -> None:
    """Whatever the first table names can be asked for."""
    table = PAGE.partition("| built in | for |")[2].partition("\n\n")[0]
    names = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert names <= BACKENDS.keys()


def test_tensorflows_parameters_are_those_it_knows() -> None:
    """Every parameter is on the page."""
    section = PAGE.partition("## TensorFlow")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([A-Z_]+)`", section)) - {"EXECUTION_ENV_PATH"} == options._PARAMETERS
