"""What a check finds: where, what, how to fix it, and the changes that do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Severity(Enum):
    """An error keeps a model from loading; a warning is something that has no effect, or another than it looks like."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Place:
    """`line` and `column` count from 1; both are 0 where a file or folder is meant as a whole."""

    path: Path
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the characters from `start` to `end` of a text file."""

    path: Path
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Move:
    """Rename; nothing that exists is ever written over."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class MakeFolder:
    path: Path


Change = Edit | Move | MakeFolder


@dataclass(frozen=True, slots=True)
class Fix:
    """All changes or none: they belong together."""

    summary: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """`rule` is one of `catalog.RULES`; `model` is empty where a whole repository is meant."""

    rule: str
    severity: Severity
    model: str
    place: Place
    message: str
    hint: str = ""
    fix: Fix | None = None
