"""Servers in programs that signals interrupt, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["start", "stop"])
def test_a_server_that_is_interrupted_leaves_nothing(name: str) -> None:
    """No task of it is left on the loop when that ends, no port is opened afterwards, a model that does not end is not
    waited for any longer, and when it does, nothing is left."""
    assert played(name) == (0, "")


def test_signals_end_the_waiting_whatever_it_is_doing() -> None:
    """Those that come while it is told of one, and while it stops, change nothing."""
    assert played("waiting") == (0, "")


def played(name: str) -> tuple[int, str]:
    """Exit code and errors of the program."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-m", "support.interrupted", name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr
