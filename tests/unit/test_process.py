"""The server as a process: what it says and how it ends when it cannot begin."""

from __future__ import annotations

import asyncio
import faulthandler
from pathlib import Path
from typing import Any

import pytest

from conch import process
from conch.config.server import LogOptions, ServerOptions


class Broken:
    """A server that cannot start, for a reason that nobody has thought of."""

    registry = None

    def __init__(self) -> None:
        self.ended = 0

    async def start(self, stop: asyncio.Event) -> bool:
        raise ValueError("never thought of")

    async def end(self) -> bool:
        self.ended += 1
        return True


def test_what_was_begun_is_ended_whatever_went_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers and threads of models that were loaded already do not outlive a start that failed."""
    monkeypatch.setattr(faulthandler, "register", lambda number: None)
    server: Any = Broken()
    assert asyncio.run(process._serve(server, None, "")) == 1
    assert server.ended == 1
    assert "never thought of" in caplog.text


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said where errors are said."""
    options = ServerOptions(log=LogOptions(file=str(tmp_path / "none" / "log")))
    assert process.run(options) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        f"conch: cannot write the log to {tmp_path}/none/log: No such file or directory\n",
    )
