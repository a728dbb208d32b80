"""The tables at start-up, line by line as Triton prints them."""

from __future__ import annotations

from conch.registry import tables


def test_models() -> None:
    """A status of several lines makes several lines in its row; the columns are as wide as their longest line."""
    assert tables.models(
        [("bad", "1", "UNAVAILABLE: Internal: boom\n\nAt:\n  model.py(4)\n"), ("good", "2", "READY")]
    ) == (
        "+-------+---------+-----------------------------+\n"
        "| Model | Version | Status                      |\n"
        "+-------+---------+-----------------------------+\n"
        "| bad   | 1       | UNAVAILABLE: Internal: boom |\n"
        "|       |         |                             |\n"
        "|       |         | At:                         |\n"
        "|       |         |   model.py(4)               |\n"
        "| good  | 2       | READY                       |\n"
        "+-------+---------+-----------------------------+"
    )


def test_backends() -> None:
    """A backend's settings are shown as JSON."""
    assert tables.backends([("python", "built-in", {"shm": "1"})]) == (
        "+---------+----------+-------------------------+\n"
        "| Backend | Path     | Config                  |\n"
        "+---------+----------+-------------------------+\n"
        '| python  | built-in | {"cmdline":{"shm":"1"}} |\n'
        "+---------+----------+-------------------------+"
    )


def test_options_and_empty_tables() -> None:
    """A table without rows has its head and foot."""
    assert tables.options([]) == "+--------+-------+\n| Option | Value |\n+--------+-------+\n+--------+-------+"


def test_control_characters_are_shown_not_sent() -> None:
    """A model's error text cannot steer the terminal."""
    assert r"\x1b[31m\r" in tables.models([("m", "1", "\x1b[31m\r")])
