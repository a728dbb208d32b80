"""A program of somebody's, with a server inside, as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.until import until


class Running:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def until(self, answers: Callable[[], bool]) -> None:
        """Waits for its server; a program that has ended fails the test with what it said."""

        def answered() -> bool:
            assert self._process.poll() is None, self._process.communicate()
            try:
                return answers()
            except OSError:
                return False

        until(answered)

    def ended(self) -> tuple[int, str, str]:
        """Exit code, output and errors after SIGTERM."""
        self._process.send_signal(signal.SIGTERM)
        out, err = self._process.communicate(timeout=30)
        return self._process.returncode, out, err


@contextmanager
def running(folder: Path, source: str, port: int) -> Iterator[Running]:
    """`source` gets the port as its argument, and `folder` is where it runs."""
    (folder / "server.py").write_text(source)
    process = subprocess.Popen(
        [sys.executable, "server.py", str(port)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()
