"""The parts of `conch demo` that need no server."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from conch.cli import demo
from conch.cli.digits import Digits, show_images, tile


def console(width: int = 80) -> Console:
    return Console(width=width, record=True, file=io.StringIO(), color_system=None)


def test_a_tile_shows_ink() -> None:
    """Two pixels share a character: ink above, below, both or none."""
    image = np.zeros((8, 8), np.float32)
    image[0, 0], image[1, 1], image[:2, 2] = 16, 16, 16
    lines = [line.plain for line in tile(image.reshape(-1), 3, 3)]
    assert lines == ["▀▄█     ", " " * 8, " " * 8, " " * 8, "   3    ", " " * 8]


def test_a_mistake_names_both_digits() -> None:
    """The line below a misread image says what was meant."""
    assert tile(np.zeros(64, np.float32), 4, 5)[4].plain == "4, not 5"


@pytest.mark.parametrize(("brief", "shown"), [(True, 10), (False, 30)])
def test_mistakes_are_always_shown(brief: bool, shown: int) -> None:
    """Every image is printed, or with --brief all mistakes and eight others."""
    digits = Digits(np.zeros((30, 64), np.float32), np.arange(30) % 10)
    answers = {index: index % 10 for index in range(30)}
    answers[3], answers[7] = 9, 9
    out = console(100)
    show_images(out, digits, answers, brief=brief)
    text = out.export_text()
    captions = [word for line in text.splitlines()[2:] for word in line.replace(", not ", "/").split()]
    assert len(captions) == shown
    assert {"9/3", "9/7"} <= set(captions)


@pytest.mark.parametrize(("right", "code", "verdict"), [(97, 0, "the demo passed"), (96, 1, "the demo failed")])
def test_the_exit_code_tells_the_accuracy(right: int, code: int, verdict: str) -> None:
    """Exit code 0 needs 97 % over both protocols."""
    tallies = {
        "HTTP": demo.Tally(sent=100, right=100, seconds=1.0),
        "gRPC": demo.Tally(sent=100, right=right, seconds=1.0),
    }
    out = console()
    assert demo.report(out, tallies, 2.0, (200, 50)) == code
    text = out.export_text()
    assert verdict in text
    assert "throughput 100 images/s, mean batch size 4.00 (200 images in 50 executions)" in text


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its packages the demo says what to install."""
    monkeypatch.setattr(demo, "PACKAGES", ("json", "surely_not_there"))
    assert demo.main([]) == 2
    printed = capsys.readouterr().out
    assert "surely_not_there" in printed
    assert "pip install 'conch[demo]'" in printed
