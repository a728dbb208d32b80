"""What is told of a load that failed."""

from __future__ import annotations

import logging


def with_hint(text: str, hint: str) -> str:
    """For people: what happened, and how to fix it."""
    return f"{text} ({hint})" if hint else text


def tell(log: logging.Logger, text: str, hint: str) -> None:
    """Log an error; a hint of many lines, such as a traceback, stands on lines of its own, as it is."""
    if "\n" not in hint:
        log.error("%s", with_hint(text, hint), stacklevel=2)
        return
    log.error("%s", text, stacklevel=2)
    log.error("\n%s\n", hint.strip("\n"), extra={"table": True}, stacklevel=2)
