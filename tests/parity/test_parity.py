"""The same requests, the same answers: Conch beside what the real Triton answered (golden/, by record.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from parity.differences import DIFFERENCES, Difference
from parity.modes import MODES
from parity.replay import Answer, replay, text
from support.server import Server

GOLDEN: dict[str, dict[str, Answer]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "golden").glob("*.json"))
}

#: The first test of a mode asks all its cases.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Answer]]:
    """What Conch answers in a mode, by case; each server is started once, when first needed, and asked all in order."""

    @cache
    def ask(name: str) -> dict[str, Answer] | Exception:
        mode = MODES[name]
        repository = tmp_path_factory.mktemp(name).resolve()
        mode.write(repository, False)
        try:
            first, others = mode.place(repository)
            with Server(first, *others, *mode.flags, *mode.ours) as server:
                return replay(server, mode.cases, repository)
        except Exception as failure:
            return failure

    def answers_of(name: str) -> dict[str, Answer]:
        found = ask(name)
        if isinstance(found, Exception):
            raise found
        return found

    return answers_of


@pytest.mark.parametrize(
    ("mode", "name"),
    [pytest.param(name, case.name, id=case.name) for name, mode in MODES.items() for case in mode.cases],
)
def test_answer(answers: Callable[[str], dict[str, Answer]], mode: str, name: str) -> None:
    """Conch answers as Triton does, except where a difference is intended and written down."""
    golden, ours = GOLDEN[mode][name], answers(mode)[name]
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
    """golden/ holds exactly the cases: `record.py` was run after they were changed."""
    assert {mode: list(answers) for mode, answers in GOLDEN.items()} == {
        name: [case.name for case in mode.cases] for name, mode in MODES.items()
    }


def _differences(mode: str, name: str, golden: Answer) -> list[Difference]:
    return [d for d in DIFFERENCES if d.concerns(mode, name, golden)]
