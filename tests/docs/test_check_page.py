"""docs/check.md lists every rule of `conch check`, and says of it what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from conch.check.catalog import RULES
from conch.check.report import SCHEMA
from conch.check.settings import rule_id
from conch.cli.check import main
from conch.config.rules import IO_RULES, MODEL_RULES
from support.broken_repositories import ALL, ONNX, file_of, put
from support.onnx_models import identity

PAGE = (Path(__file__).parent.parent.parent / "docs" / "check.md").read_text()


def test_page_and_code_agree() -> None:
    """Each rule has one row, with its severity and its reason."""
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", PAGE.partition("## Rules")[2], re.MULTILINE))
    assert rows == {name: f"{rule.severity.value} | {rule.why}" for name, rule in RULES.items()}


def test_the_servers_own_rules_are_listed() -> None:
    """A rule that refuses configs has a row of its own."""
    assert {rule_id(each) for each in (*MODEL_RULES, *IO_RULES)} <= set(RULES)


def test_the_schema_is_the_pages() -> None:
    """Whoever changes the JSON changes the page."""
    assert f"| `schema` | {SCHEMA} |" in PAGE


def test_the_pages_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the page, in repositories such as it names, does what its comment says."""
    monkeypatch.chdir(tmp_path)
    for name in ("models/resnet50", "a/other", "b/resnet50"):
        put(tmp_path, {f"{name}/config.pbtxt": ONNX, f"{name}/1/model.onnx": file_of(identity())})
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [each[:2] for each in lines] == [["conch", "check"]] * 6
    assert [main(line[2:]) for line in lines] == [0] * 6


def test_the_pages_finding_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the page shows is what is printed."""
    monkeypatch.chdir(tmp_path)
    ALL["batch_in_dims"].build(tmp_path / "models")
    (tmp_path / "models" / "batch_in_dims").rename(tmp_path / "models" / "resnet")
    shown = re.findall(r"```\n(models/resnet.*?)```", PAGE, re.DOTALL)[0].strip()
    main(["models"])
    assert shown in capsys.readouterr().out
