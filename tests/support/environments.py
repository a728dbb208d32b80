"""Python environments for tests: made with uv, of whatever interpreters the machine has."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

UV = str(Path(sys.executable).parent / "uv")


@functools.cache
def interpreter(version: str) -> str:
    """A Python of this version on the machine, empty if there is none."""
    found = subprocess.run(
        [UV, "python", "find", "--no-python-downloads", "--no-project", "--system", version],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode == 0:
        return found.stdout.strip()
    # pyenv's, which need not be in the PATH.
    known = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(known[-1]) if known else ""


def make_venv(folder: Path, *packages: str, python: str = sys.executable) -> Path:
    subprocess.run([UV, "venv", "-q", "--python", python, str(folder)], check=True)
    if packages:
        subprocess.run([UV, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), *packages], check=True)
    return folder
