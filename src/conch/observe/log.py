"""The server's log: the standard library's loggers, written in Triton's line format.

Rooms use `logging.getLogger("conch.<room>")`. A line is made in the thread that logs and written by another one, so
that a slow reader of our stderr never holds up requests.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TextIO

from conch.config.server import LogOptions

#: Lines, and characters of them, that may wait for a slow reader; more are dropped and counted.
_BACKLOG = 20_000
_BACKLOG_CHARACTERS = 1 << 26
_ROOT = "conch"
_LETTERS = ((logging.ERROR, "E"), (logging.WARNING, "W"))


def configure(options: LogOptions, environment: Mapping[str, str] = os.environ) -> Handler:
    """Send all logging to stderr, or to the log file, from now on; replaces what an earlier call set up.

    `TRITON_SERVER_ESCAPE_LOG_MESSAGES=0` in `environment` writes messages as they are. Raises OSError when the file
    cannot be opened.
    """
    stream = open(options.file, "a", encoding="utf-8", errors="backslashreplace") if options.file else None  # noqa: SIM115, PTH123
    handler = Handler(stream)
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, Handler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    Settings(handler, options, escape=environment.get("TRITON_SERVER_ESCAPE_LOG_MESSAGES", "1") != "0")
    return handler


def verbose_level(verbosity: int) -> int:
    """The standard library's level of Triton's `--log-verbose=<verbosity>`: 1 is DEBUG, 2 is one below it, ..."""
    return max(1, logging.DEBUG + 1 - verbosity)


def table(logger: logging.Logger, text: str) -> None:
    """Log a table under an empty heading, on lines of its own."""
    logger.info("\n%s\n", text.rstrip("\n"), extra={"table": True}, stacklevel=2)


def detached() -> Settings:
    """Settings of a handler that nobody uses: whoever the server is a part of decides what is logged, and where."""
    return Settings(Handler(None), LogOptions(), escape=False, levels=False)


class Settings:
    """What is logged and how, changeable while the server runs. Belongs to one handler, as `handler.settings`.

    `levels`: whether it also says what the server's loggers pass on.
    """

    def __init__(self, handler: Handler, options: LogOptions, *, escape: bool, levels: bool = True) -> None:
        self._levels = levels
        self._handler = handler
        self._escape = escape
        self.options = options
        handler.settings = self
        self.apply(options)

    def apply(self, options: LogOptions) -> None:
        """From now on log by `options`; the file stays what it is. Any thread."""
        handler = self._handler
        self.options = options = dataclasses.replace(options, file=self.options.file)
        handler.setFormatter(LineFormatter(iso=options.format == "ISO8601", escape=self._escape))
        for old in list(handler.filters):
            handler.removeFilter(old)
        handler.addFilter(Threshold(options))
        if self._levels:
            logging.getLogger(_ROOT).setLevel(verbose_level(options.verbose) if options.verbose > 0 else logging.INFO)


class Threshold(logging.Filter):
    """Triton's switches: each of info, warning and error is on or off by itself; verbose messages have a level."""

    def __init__(self, options: LogOptions) -> None:
        super().__init__()
        self._options = options

    def filter(self, record: logging.LogRecord) -> bool:
        options, level = self._options, record.levelno
        if level >= logging.ERROR:
            return options.error
        if level >= logging.WARNING:
            return options.warning
        if level >= logging.INFO:
            return options.info
        return options.verbose > 0 and level >= verbose_level(options.verbose)


class LineFormatter(logging.Formatter):
    """`I1120 20:33:52.123456 <pid> <file>:<line>] "<message>"`, or with a date as in ISO 8601. Times are UTC."""

    def __init__(self, *, iso: bool, escape: bool) -> None:
        super().__init__()
        self._iso = iso
        self._escape = escape

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if self._escape and not getattr(record, "table", False):
            message = json.dumps(message, ensure_ascii=False)
        letter = next((letter for level, letter in _LETTERS if record.levelno >= level), "I")
        when = time.gmtime(record.created)
        if self._iso:
            head = time.strftime("%Y-%m-%dT%H:%M:%SZ ", when) + letter
        else:
            head = letter + time.strftime("%m%d %H:%M:%S", when) + f".{int(record.created % 1 * 1e6):06d}"
        return f"{head} {record.process} {record.filename}:{record.lineno}] {message}\n"


class Handler(logging.Handler):
    """Queues lines for a thread that writes them to `stream` (None: stderr). What cannot be written is lost."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        #: How it logs; set by `Settings` itself.
        self.settings: Settings
        self._stream = stream
        self._lines: deque[str] = deque()
        self._characters = 0
        self._changed = threading.Condition()
        self._writing = False
        self._dropped = 0
        self._ended = False
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  arguments that do not fit their format: say what can be said
            line = f"{record.levelname} {record.filename}:{record.lineno}] {record.msg!r} {record.args!r}\n"
        with self._changed:
            if self._ended:
                return
            if len(self._lines) >= _BACKLOG or self._characters >= _BACKLOG_CHARACTERS:
                self._dropped += 1
                return
            self._lines.append(line)
            self._characters += len(line)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="conch-log", daemon=True)
                self._writer.start()
            self._changed.notify_all()

    def flush(self, seconds: float = 2.0) -> None:
        """Wait until everything logged so far is written, but not for a reader that reads nothing."""
        with self._changed:
            if threading.current_thread() is not self._writer:
                self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            writer = self._writer
        if writer is not None:
            writer.join(1.0)
        if self._stream is not None and (writer is None or not writer.is_alive()):
            self._stream.close()
        super().close()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._ended:
                    self._changed.wait()
                if not self._lines:
                    return
                text = "".join(self._lines)
                self._lines.clear()
                self._characters = 0
                if self._dropped:
                    text += f"{self._dropped} lines of the log were dropped: nobody read them in time\n"
                    self._dropped = 0
                self._writing = True
            stream = self._stream if self._stream is not None else sys.stderr
            try:
                if self._stream is None:
                    text = text.encode(stream.encoding or "utf-8", "backslashreplace").decode(
                        stream.encoding or "utf-8"
                    )
                stream.write(text)
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # A closed stderr ends the log, not the server.
            finally:
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()
