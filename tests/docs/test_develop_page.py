"""docs/develop.md: its commands, run one after another, do what it says."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from support.server import Server

PAGE = (Path(__file__).parent.parent.parent / "docs" / "develop.md").read_text()


@pytest.mark.slow
def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    """A model is written, served, changed and answers anew, without a failed request."""
    write, serve, ask, change = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run(["bash", "-ec", write], cwd=tmp_path, check=True)
    assert serve.split() == ["conch", "serve", "models", "--watch"]
    with Server(tmp_path / "models", "--watch") as server:

        def answer() -> str:
            command = ask.replace("localhost:8000", server.http)
            done = subprocess.run(["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, check=True)
            return str(json.loads(done.stdout)["outputs"][0]["data"][0])

        assert answer() == "Hello Ada"
        subprocess.run(["bash", "-ec", change], cwd=tmp_path, check=True)
        deadline = time.monotonic() + 60
        while (said := answer()) == "Hello Ada":
            assert time.monotonic() < deadline, server.log
        assert said == "Good morning Ada"
