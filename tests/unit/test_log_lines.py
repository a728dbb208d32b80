"""The log's lines, its switches, and what it does when nobody can read it."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conch.config.server import LogOptions
from conch.observe import log

DEFAULT = re.compile(r'^[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ \S+:\d+\] "')


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave logging as it was."""
    conch = logging.getLogger("conch")
    level = conch.level
    yield
    for handler in [each for each in logging.getLogger().handlers if isinstance(each, log.Handler)]:
        logging.getLogger().removeHandler(handler)
        handler.close()
    conch.setLevel(level)


def written(tmp_path: Path, *records: tuple[int, str], escape: str = "1", **options: object) -> list[str]:
    """The lines that these messages become."""
    path = tmp_path / "log"
    handler = log.configure(
        LogOptions(file=str(path), **options),  # type: ignore[arg-type]
        {"TRITON_SERVER_ESCAPE_LOG_MESSAGES": escape},
    )
    for level, text in records:
        logging.getLogger("conch.test").log(level, "%s", text)
    handler.flush()
    return path.read_text().splitlines()


def test_default_format(tmp_path: Path) -> None:
    """Letter, month and day, time with microseconds in UTC, process, file and line, quoted message."""
    lines = written(tmp_path, (logging.INFO, "hello"), (logging.WARNING, "w"), (logging.CRITICAL, "e"))
    assert [line[0] for line in lines] == ["I", "W", "E"]
    assert all(DEFAULT.match(line) for line in lines)
    assert re.search(r' test_log_lines\.py:\d+\] "hello"$', lines[0])


def test_iso_format(tmp_path: Path) -> None:
    """The date in full, to the second, and the letter after it."""
    (line,) = written(tmp_path, (logging.INFO, "hello"), format="ISO8601")
    assert re.match(r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I \d+ test_log_lines\.py:\d+\] "hello"$', line)


def test_messages_are_escaped(tmp_path: Path) -> None:
    """A message is a JSON string, so that it cannot forge a line; letters beyond ASCII stay."""
    (line,) = written(tmp_path, (logging.ERROR, 'a "b"\n\\ \x1b[31m ü'))
    assert line.endswith(r'"a \"b\"\n\\ \u001b[31m ü"')


def test_escaping_can_be_turned_off(tmp_path: Path) -> None:
    """`TRITON_SERVER_ESCAPE_LOG_MESSAGES=0` writes messages as they are."""
    lines = written(tmp_path, (logging.ERROR, 'a "b"\nc'), escape="0")
    assert lines[0].endswith('] a "b"')
    assert lines[1] == "c"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "IWE"),
        ({"info": False}, "WE"),
        ({"warning": False}, "IE"),
        ({"error": False}, "IW"),
        ({"verbose": 1}, "IWEV"),
        ({"verbose": 2, "info": False}, "WEVX"),
    ],
)
def test_switches(tmp_path: Path, options: dict[str, object], kept: str) -> None:
    """Info, warning and error have a switch each; verbose messages appear from their level on."""
    levels = {"I": 20, "W": 30, "E": 40, "V": log.verbose_level(1), "X": log.verbose_level(2)}
    lines = written(tmp_path, *[(level, name) for name, level in levels.items()], **options)
    assert [line[-2] for line in lines] == list(kept)


def test_configuring_again_replaces(tmp_path: Path) -> None:
    """A later call takes over; nothing is written twice."""
    log.configure(LogOptions(file=str(tmp_path / "first")), {})
    assert len(written(tmp_path, (logging.INFO, "x"))) == 1
    assert (tmp_path / "first").read_text() == ""


def test_tables_stand_on_lines_of_their_own(tmp_path: Path) -> None:
    """A table is not escaped; its lines begin at the margin, as dashboards and eyes expect."""
    path = tmp_path / "log"
    handler = log.configure(LogOptions(file=str(path)), {})
    log.table(logging.getLogger("conch.test"), "+--+\n|ab|\n+--+")
    handler.flush()
    head, *rest = path.read_text().split("\n")
    assert re.match(r"^I\d{4} .* test_log_lines\.py:\d+\] $", head)
    assert rest == ["+--+", "|ab|", "+--+", "", ""]


def test_exceptions_are_part_of_the_message(tmp_path: Path) -> None:
    """A traceback is escaped with the message: one record, one line."""
    path = tmp_path / "log"
    handler = log.configure(LogOptions(file=str(path)), {})
    try:
        int("boom")
    except ValueError:
        logging.getLogger("conch").exception("it failed")
    handler.flush()
    (line,) = path.read_text().splitlines()
    assert '"it failed\\nTraceback' in line
    assert "ValueError: invalid literal" in line


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_broken_stderr_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """When stderr is gone, the log is lost and nothing else."""
    monkeypatch.setattr(sys, "stderr", Broken())
    handler = log.configure(LogOptions(), {})
    logging.getLogger("conch").warning("x")
    handler.flush()
    monkeypatch.setattr(sys, "stderr", None)
    logging.getLogger("conch").warning("x")
    handler.flush()


class Slow(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def write(self, text: str) -> int:
        assert self.gate.wait(30)
        return super().write(text)


@pytest.mark.parametrize(("bound", "most"), [("_BACKLOG", 10), ("_BACKLOG_CHARACTERS", 500)])
def test_slow_reader_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, bound: str, most: int) -> None:
    """While stderr blocks, logging returns; what is more than can be kept is dropped and counted."""
    stderr = Slow()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(log, bound, most)
    handler = log.configure(LogOptions(), {})
    for number in range(50):
        logging.getLogger("conch").info("line %d", number)
    stderr.gate.set()
    handler.flush(30)
    text = stderr.getvalue()
    assert '"line 0"' in text
    assert re.search(r"\d+ lines of the log were dropped", text)


def test_odd_arguments_are_no_error(tmp_path: Path) -> None:
    """A record whose arguments do not fit is written as well as it can be."""
    path = tmp_path / "log"
    handler = log.configure(LogOptions(file=str(path)), {})
    handler.handle(logging.LogRecord("conch", logging.INFO, "x.py", 1, "%d", ("x",), None))
    handler.handle(logging.LogRecord("conch", logging.INFO, "x.py", 1, "\udc80", (), None))
    handler.flush()
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert "'%d' ('x',)" in lines[0]


def test_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    """A log file in a folder that is not there is an error at once."""
    with pytest.raises(OSError, match="No such file"):
        log.configure(LogOptions(file=str(tmp_path / "none" / "log")), {})


def test_settings_change_what_is_logged_from_now_on(tmp_path: Path) -> None:
    """Levels and format of the running log; lines written before stay as they are."""
    path = tmp_path / "log"
    handler = log.configure(LogOptions(file=str(path)), {})
    logger = logging.getLogger("conch.test")

    def write(options: LogOptions) -> None:
        handler.settings.apply(options)
        for level in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, log.verbose_level(2)):
            logger.log(level, "%d", level)

    write(LogOptions(info=False, verbose=1))
    write(LogOptions(error=False, warning=False, format="ISO8601", verbose=0))
    write(LogOptions(info=False, warning=False, error=False, verbose=2))
    handler.flush()
    lines = path.read_text().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ['"40"', '"30"', '"10"', '"20"', '"10"', '"9"']
    assert [bool(re.match(r"^\d{4}-", line)) for line in lines] == [False, False, False, True, False, False]


def test_the_file_cannot_be_changed(tmp_path: Path) -> None:
    """Whatever is asked for, the log goes on where it is."""
    handler = log.configure(LogOptions(file=str(tmp_path / "log")), {})
    handler.settings.apply(LogOptions(file=str(tmp_path / "other")))
    assert handler.settings.options.file == str(tmp_path / "log")
