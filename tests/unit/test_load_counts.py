"""What the metrics page says of loads."""

from __future__ import annotations

import pytest

from conch.observe import loads
from conch.observe.loads import Loads


def test_loads_are_counted_by_result() -> None:
    """Success, failure and rejection by the gate, and how the last one went."""
    counts = Loads(lambda: 7.5)
    counts.succeeded("m")
    counts.failed("m", rejected=True)
    assert counts.rows() == [("m", {"success": 1, "failure": 0, "rejected": 1}, False, 7.5)]
    assert 'conch_model_load_total{model="m",result="rejected"} 1' in loads.render(counts).decode()


def test_names_that_are_nowhere_do_not_hide_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for loads of more names than are kept: models that were ever loaded stay, new ones come."""
    monkeypatch.setattr(loads, "_MOST", 5)
    counts = Loads(lambda: 0.0)
    counts.succeeded("old")
    for number in range(100):
        counts.failed(f"nowhere {number}")
    counts.succeeded("new")
    names = [name for name, *_ in counts.rows()]
    assert len(names) == 5
    assert {"old", "new"} <= set(names)
    assert len(counts.counts) <= 5
    for number in range(10):
        counts.succeeded(f"good {number}")
    assert {"old", "new"} <= {name for name, *_ in counts.rows()}
    assert len(counts.rows()) == 5
