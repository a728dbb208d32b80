"""The same requests, the same answers: Conch beside what the real Triton answered (golden.json, by record.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity import cases, models
from parity.differences import DIFFERENCES, Difference
from parity.replay import Answer, replay, text
from support.server import Server

GOLDEN: dict[str, dict[str, Answer]] = json.loads((Path(__file__).parent / "golden.json").read_text())
ASKED = {"none": cases.NONE, "explicit": cases.EXPLICIT}
FLAGS: dict[str, tuple[str, ...]] = {"none": (), "explicit": cases.EXPLICIT_FLAGS}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Answer]]]:
    """What Conch answers, by mode and case; each server is started once and asked everything in order."""
    found = {}
    for mode, asked in ASKED.items():
        repository = tmp_path_factory.mktemp(mode).resolve()
        models.write_repository(repository, oracle=False, broken=mode == "explicit")
        with Server(repository, *FLAGS[mode]) as server:
            found[mode] = replay(server, asked, repository)
    return found


@pytest.mark.parametrize(
    ("mode", "name"), [pytest.param(mode, case.name, id=case.name) for mode, asked in ASKED.items() for case in asked]
)
def test_answer(answers: dict[str, dict[str, Answer]], mode: str, name: str) -> None:
    """Conch answers as Triton does, except where a difference is intended and written down."""
    golden, ours = GOLDEN[mode][name], answers[mode][name]
    wanted = golden
    for difference in _differences(mode, name, golden):
        wanted = difference.apply(wanted)
    assert text(ours) == text(wanted)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.title)
def test_difference_is_real(difference: Difference) -> None:
    """A difference that is written down applies to some case and changes Triton's answer there."""
    applied = [
        (name, difference.apply(golden), golden)
        for mode, by_name in GOLDEN.items()
        for name, golden in by_name.items()
        if difference.concerns(mode, name, golden)
    ]
    assert applied, "concerns no case"
    assert all(text(after) != text(before) for _, after, before in applied)


def test_every_case_was_recorded() -> None:
    """golden.json holds exactly the cases: `record.py` was run after they were changed."""
    assert {mode: list(answers) for mode, answers in GOLDEN.items()} == {
        mode: [case.name for case in asked] for mode, asked in ASKED.items()
    }


def _differences(mode: str, name: str, golden: Answer) -> list[Difference]:
    return [d for d in DIFFERENCES if d.concerns(mode, name, golden)]
