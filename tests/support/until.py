"""Waiting for what another thread or process does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Ask again and again; what is not true after `seconds` fails the test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds:g} seconds"
        time.sleep(0.01)


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more, although nobody may have asked for its exit code yet."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True
