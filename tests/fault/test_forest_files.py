"""Forests whose files are wrong: one clear error each, and the server's process goes on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("treelite", reason="pip install 'conch[forest]'")

from sklearn.ensemble import RandomForestClassifier

from conch.backend.forest import engine, reading
from conch.backend.forest.reading import read_forest
from conch.types.error import InferError
from support.forests import ask, data, forest_config, load, write_sklearn, xgboost_model

DEEP = 3_000_000


def refused(path: Path, kind: str) -> str:
    with pytest.raises(InferError) as caught:
        read_forest(path, kind, False)
    begin = f"unable to read '{path}' as {kind}: "
    assert caught.value.message.startswith(begin)
    return caught.value.message.removeprefix(begin)


def key(name: bytes) -> bytes:
    return b"L" + struct.pack(">q", len(name)) + name


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("xgboost_json", b'{"learner":{"attributes":{"x":' + b'{"a":' * DEEP),
        ("xgboost_json", b'{"learner":{"feature_names":' + b"[" * DEEP),
        ("xgboost_ubj", b"{" + key(b"learner") + b"{" + key(b"feature_names") + b"[" * DEEP),
    ],
)
def test_nesting(tmp_path: Path, kind: str, content: bytes) -> None:
    """A file that overflows the reader's stack ends the reader, not the server."""
    path = tmp_path / "forest"
    path.write_bytes(content)
    assert refused(path, kind) == "the process that read it died of signal 11"


def test_a_length_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UBJSON has arrays of any length in a few bytes: a reader that counts for ever is ended."""
    monkeypatch.setattr(reading, "LONGEST", 3.0)
    path = tmp_path / "forest"
    endless = b"[$T#L" + struct.pack(">q", 1 << 60)
    path.write_bytes(b"{" + key(b"learner") + b"{" + key(b"feature_names") + endless)
    assert refused(path, "xgboost_ubj") == "reading it has not come to an end in 3 s"


def set_features(tree: dict[str, Any]) -> None:
    tree["split_indices"] = [1_000_000] * len(tree["split_indices"])


def set_cycle(tree: dict[str, Any]) -> None:
    tree["left_children"] = [-1 if each == -1 else 0 for each in tree["left_children"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_features, "tree 0: it asks for feature 1000000 of 30"),
        (set_cycle, "Check failed: current_node_key_ != left_child_key"),
    ],
)
def test_trees_that_lead_nowhere(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    """What an engine would follow beyond the row or for ever is refused."""
    path = tmp_path / "forest.json"
    xgboost_model().save_model(path)
    forest = json.loads(path.read_bytes())
    change(forest["learner"]["gradient_booster"]["model"]["trees"][0])
    path.write_text(json.dumps(forest))
    assert refused(path, "xgboost_json").startswith(message)


def test_a_checkpoint_whose_nodes_are_no_tree(tmp_path: Path) -> None:
    """treelite believes a checkpoint's numbers: a node that is its own child would be walked for ever."""
    path = tmp_path / "checkpoint.tl"
    write_sklearn(RandomForestClassifier(1, max_depth=1, random_state=0).fit(*data("iris")), path)
    content = path.read_bytes()
    left = struct.pack("<3i", 1, -1, -1)
    assert content.count(left) == 1
    path.write_bytes(content.replace(left, struct.pack("<3i", 0, -1, -1)))
    assert refused(path, "treelite_checkpoint") == "tree 0: its nodes are no tree"


@pytest.mark.parametrize("name", ["onnxruntime", "treelite", "library"])
def test_more_threads_than_there_are(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """treelite refuses such a number and ONNX Runtime dies of it: they get one for each CPU, and the log says so."""
    model = xgboost_model()
    config = forest_config(cpu_nthread="100000", conch_forest_engine=name, predict_proba="true")
    served = load(tmp_path, model.save_model, "xgboost.json", config)
    x = data("breast_cancer")[0]
    np.testing.assert_allclose(ask(served, x), model.predict_proba(x), rtol=1e-5, atol=1e-6)
    assert "model 'forest': parameter 'cpu_nthread' is 100000 and has the effect of 2, the number of CPUs" in (
        caplog.messages
    )


def test_fewer_threads_than_cpus(tmp_path: Path) -> None:
    """Where OpenMP is told to have fewer threads (OMP_NUM_THREADS), treelite runs with as many as there are."""
    path = tmp_path / "forest.json"
    xgboost_model().save_model(path)
    forest = engine.Interpreter(read_forest(path, "xgboost_json", False), 1 << 20)
    assert forest(data("breast_cancer")[0]).shape == (569, 1, 1)
