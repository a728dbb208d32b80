"""docs/parity.md names tests: they must be there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parity.modes import MODES

ROOT = Path(__file__).parent.parent.parent
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in (ROOT / "docs" / "parity.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| area ")
]
STATES = ("same", "better", "different", "missing", "not run here")
NAMES = [case.name for mode in MODES.values() for case in mode.cases]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row(row: list[str]) -> None:
    """A row has four cells, a state of the five, and in the last cell nothing, a test that exists, or known cases."""
    assert len(row) == 4, row
    _area, _theirs, ours, test = row
    named = re.fullmatch(r"`(?P<path>[\w/]+\.py)::(?P<name>\w+)`", test)
    cases_of = re.fullmatch(r"PARITY `(?P<words>.+)`", test)
    assert not ours or ours.startswith(STATES)
    if named:
        assert re.search(rf"def {named['name']}\(", (ROOT / named["path"]).read_text()), "no such test"
    elif cases_of:
        assert any(_selects(cases_of["words"], name) for name in NAMES), "selects no case"
    else:
        assert test == "-"


def _selects(expression: str, name: str) -> bool:
    """pytest's `-k`: words, `and`, `or`, `not` and brackets."""
    terms = re.sub(r"\b(?!and\b|or\b|not\b)\w+", lambda word: str(word[0].lower() in name.lower()), expression)
    return bool(eval(terms, {"__builtins__": {}}))  # the table is ours
