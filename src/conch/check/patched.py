"""A text that is mended step by step, and where each of its characters stood before. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from conch.check.finding import Edit
from conch.check.writing import edited


@dataclass(slots=True)
class Patched:
    """`text` is `original` after all edits so far."""

    original: str
    text: str = ""
    #: Start, end and new length of each replacement, in the text as it then was; in order.
    _steps: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.original

    def apply(self, edits: Sequence[Edit]) -> None:
        for edit in sorted(edits, key=lambda each: each.start, reverse=True):
            self._steps.append((edit.start, edit.end, len(edit.text)))
        self.text = edited(self.text, edits)

    def before(self, offset: int) -> int:
        """Where the character at `offset` of `text` is in the original; for a new one, where it was put in."""
        for start, end, length in reversed(self._steps):
            if offset >= start + length:
                offset += end - start - length
            elif offset > start:
                offset = start
        return offset

    def edit_before(self, edit: Edit) -> Edit:
        """The same edit of the original."""
        start = self.before(edit.start)
        return Edit(edit.path, start, max(start, self.before(edit.end)), edit.text)
