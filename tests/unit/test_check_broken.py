"""`conch check` names the cause of each broken repository, and mends most of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conch.check.engine import check
from conch.check.finding import Severity
from conch.check.fixing import fix
from conch.check.subject import Options
from support.broken_repositories import ALL, Broken


@pytest.mark.parametrize("broken", ALL.values(), ids=ALL)
def test_the_cause_is_named(broken: Broken, tmp_path: Path) -> None:
    """Rule, message and place are those of the one thing that is wrong."""
    broken.build(tmp_path)
    findings = check([tmp_path], Options()).findings
    found = [each for each in findings if each.rule == broken.rule]
    assert found, findings
    places = [
        str(each.place.path.relative_to(tmp_path)) + (f":{each.place.line}" if each.place.line else "")
        for each in found
    ]
    texts = [f"{each.message} {each.hint}" for each in found]
    assert any(broken.says in text for text in texts), texts
    assert broken.at in places, places


@pytest.mark.parametrize("broken", [each for each in ALL.values() if each.heals], ids=lambda each: each.name)
def test_a_fix_leaves_nothing_behind(broken: Broken, tmp_path: Path) -> None:
    """After --fix a check finds no error, and no file's content has gone."""
    broken.build(tmp_path)
    contents = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pbtxt")
    outcome = fix(lambda: check([tmp_path], Options()))
    assert outcome.done
    assert not [each for each in outcome.report.findings if each.severity is Severity.ERROR]
    after = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pbtxt")
    assert after == contents or "config.pbtxt.txt" in broken.says


def test_there_are_enough_of_them() -> None:
    """More than thirty causes, of which more than twenty can be mended."""
    assert len(ALL) >= 30
    assert sum(each.heals for each in ALL.values()) >= 20
