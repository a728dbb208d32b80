"""docs/frameworks.md: its backends, extras, files, defaults and paths are those there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from conch.backend.find import BACKENDS, Backends
from conch.backend.forest.formats import FORMATS
from conch.backend.torch.content import FILENAMES
from conch.config.autofill import settle
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.loader import default_instances
from conch.types.error import InferError

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "frameworks.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
#: Backends for tests, which docs/backends.md has.
SAMPLES = {"fault", "identity", "repeat", "square"}
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.partition("| framework | backend |")[2].partition("\n\n")[0].splitlines()[2:]
]
ROWS = [pytest.param(row, id=row[0]) for row in TABLE]


def test_every_backend_has_a_row() -> None:
    """No framework is left out, and none is made up."""
    assert {row[1].strip("`") for row in TABLE} == BACKENDS.keys() - SAMPLES


@pytest.mark.parametrize("row", ROWS)
def test_a_row(row: list[str]) -> None:
    """The extra exists, models have so many instances, and run where it says."""
    _, backend, _, extra, instances, place = row
    backend = backend.strip("`")
    assert extra.strip("`") in EXTRAS or (backend, extra) == ("python", "")
    if backend == "pytorch":
        # tests/unit/test_torch_config.py has these: where it runs depends on the file, and so do its instances.
        assert (place, instances) in {("worker", "1"), ("thread", "2")}
        return
    assert default_instances(ModelConfig(name="m", backend=backend)) == int(instances)
    assert (place == "worker") == (backend == "python" or Backends().is_python(backend))


def test_files() -> None:
    """Files of the table are those that backends look for."""
    files: dict[str, set[str]] = {}
    for row in TABLE:
        files.setdefault(row[1].strip("`"), set()).update(re.findall(r"`([\w.]+)`", row[2]))
    assert files["fil"] == set(FORMATS.values()) - {"xgboost.model"}
    assert files["pytorch"] <= set(FILENAMES)
    assert {name: _backend(name) for names in files.values() for name in names if _backend(name)} == {
        "model.onnx": "onnxruntime", "model.pt": "pytorch", "model.pt2": "pytorch", "model.xml": "openvino",
        "model.savedmodel": "tensorflow", "model.graphdef": "tensorflow", "model.plan": "tensorrt",
        "model.py": "python",
    }  # fmt: skip
    assert all(_backend(name) == "" for backend in ("fil", "dali") for name in files[backend])


def _backend(name: str) -> str:
    """That of a model without config whose version holds this file, empty where the config must say it."""
    config = ModelConfig()
    try:
        settle(config, "m", {name: name == "model.savedmodel"})
    except InferError:
        return ""
    return config.backend


def test_what_all_leaves_out() -> None:
    """`conch[all]` has every extra of the table but the two that the page names."""
    (brought,) = [set(re.findall(r"[\w]+", each.partition("[")[2])) for each in EXTRAS["all"]]
    assert {row[3].strip("`") for row in TABLE} - brought - {""} == {"dali", "tensorrt"}


def test_commands() -> None:
    """Extras that are to be installed exist."""
    for extras in re.findall(r"conch\[([\w,]+)\]", PAGE):
        assert set(extras.split(",")) <= EXTRAS.keys()


def test_paths() -> None:
    """Links lead to pages, and files that are named are there."""
    links = re.findall(r"\]\(([\w./-]+)\)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).is_file() for link in links)
    named = re.findall(r"(?:tests|examples|docs)/[\w/.]*\w", PAGE)
    assert len(named) >= 3
    assert all((ROOT / name).exists() for name in named)
