"""`conch demo` from end to end."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_passes() -> None:
    """The demo trains, serves, classifies over both protocols, and ends with a verdict and exit code 0."""
    command = [sys.executable, "-m", "conch.cli.main", "demo", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the demo passed" in ended.stdout
    assert ended.stderr == ""
