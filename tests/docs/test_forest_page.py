"""docs/forest.md is true: its config serves a model, its formats and parameters are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

from conch.backend.forest.formats import FORMATS
from conch.backend.forest.options import ENGINES, plan_forest
from conch.config.pbtxt import parse_text
from support.forests import ask, data, forest_config, load, xgboost_model

PAGE = (Path(__file__).parent.parent.parent / "docs" / "forest.md").read_text()


def test_the_example_serves(tmp_path: Path) -> None:
    """A reader who copies it has a model that answers with two scores a row."""
    text = next(block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "backend:" in block)
    config = parse_text(text, "config.pbtxt")
    config.name = "credit"
    served = load(tmp_path, xgboost_model().save_model, "xgboost.json", config)
    assert (served.config.max_batch_size, served.config.HasField("dynamic_batching")) == (8192, True)
    assert ask(served, data("breast_cancer")[0][:3]).shape == (3, 2)


def test_formats() -> None:
    """Every format and its file."""
    assert dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE)) == FORMATS


def test_parameters() -> None:
    """Every parameter of the table is known: none is said to have no effect but those of GPUs."""
    table = PAGE.partition("| parameter | effect |")[2].partition("\n\n")[0]
    names = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line.count("|") > 2))
    values = {
        "algo": "NAIVE",
        "conch_forest_engine": "auto",
        "layout": "layered",
        "storage_type": "AUTO",
        "threshold": "0.5",
    }
    flags = {"is_classifier", "output_class", "predict_proba", "xgboost_allow_unknown_field"}
    given = {name: values.get(name, "true" if name in flags else "2") for name in names}
    (note,) = plan_forest(forest_config(**given), {}).notes
    assert note.endswith("steer GPUs and have no effect: forests run on CPUs here")
    assert all(f"`{engine}`" in PAGE for engine in ENGINES)
