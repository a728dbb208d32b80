"""Edits of a config's text that leave comments and layout as they are. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from conch.check.finding import Edit
from conch.check.outline import Field, Span


class Writer:
    """Edits of one text, whose outline is `root`."""

    def __init__(self, path: Path, text: str, root: Field) -> None:
        self.path = path
        self.text = text
        self.root = root

    def replace(self, span: Span, text: str) -> Edit:
        return Edit(self.path, span.start, span.end, text)

    def scalar(self, parent: Field, name: str, value: str) -> list[Edit]:
        """Let `name` be `value`, written as it stands; the field is added where it is not there."""
        found = parent.first(name)
        if found is not None:
            return [self.replace(found.value, value)]
        return [self.add(parent, f"{name}: {value}")]

    def numbers(self, parent: Field, name: str, values: Sequence[int]) -> list[Edit]:
        """Let the repeated field `name` be these numbers."""
        written = f"[ {', '.join(map(str, values))} ]" if values else "[ ]"
        entries = parent.all(name)
        if not entries:
            return [self.add(parent, f"{name}: {written}")]
        first = self.replace(entries[0].whole, f"{name}: {written}")
        others = {each.whole: each for each in entries[1:] if each.whole != entries[0].whole}
        return [first, *(edit for each in others.values() for edit in self.remove(parent, each))]

    def add(self, parent: Field, written: str) -> Edit:
        """Put a field at the end of `parent`."""
        if parent is self.root:
            end = len(self.text.rstrip())
            return Edit(self.path, end, end, f"\n{written}")
        end = (
            parent.value.end - 1 if self.text[parent.value.end - 1 : parent.value.end] in {"}", ">"} else len(self.text)
        )
        before = self.text[parent.value.start : end]
        inner = before[1:]
        if "\n" not in inner:
            kept = len(before.rstrip()) + parent.value.start
            return Edit(self.path, kept, end, f" {written} ")
        last = [line for line in inner.split("\n") if line.strip()]
        indent = re.match(r"[ \t]*", last[-1])[0] if last else "  "  # type: ignore[index]
        place = parent.value.start + len(before.rstrip())
        return Edit(self.path, place, place, f"\n{indent}{written}")

    def remove(self, parent: Field, gone: Field) -> list[Edit]:
        """Take out one value of `parent`: of a list the entry, otherwise the field."""
        siblings = [each for each in parent.all(gone.name) if each.whole == gone.whole]
        if gone.listed and len(siblings) > 1:
            return [self._remove_entry(siblings, gone)]
        start, end = gone.whole.start, gone.whole.end
        separator = re.compile(r"[ \t]*[,;]").match(self.text, end)
        end = separator.end() if separator else end
        line = self.text.rfind("\n", 0, start) + 1
        rest = re.compile(r"[ \t]*(?:\r?\n|$)").match(self.text, end)
        if not self.text[line:start].strip() and rest is not None:
            return [Edit(self.path, line, rest.end(), "")]
        blank = re.compile(r"[ \t]*").match(self.text, end)
        return [Edit(self.path, start, blank.end() if blank else end, "")]

    def _remove_entry(self, siblings: Sequence[Field], gone: Field) -> Edit:
        index = siblings.index(gone)
        if index + 1 < len(siblings):
            return Edit(self.path, gone.value.start, siblings[index + 1].value.start, "")
        return Edit(self.path, siblings[index - 1].value.end, gone.value.end, "")


def overlap(one: Edit, other: Edit) -> bool:
    """Whether both edits touch the same characters; two insertions at one place do."""
    if one.path != other.path:
        return False
    if (one.start, one.end) == (other.start, other.end):
        return True
    return one.start < other.end and other.start < one.end


def edited(text: str, edits: Sequence[Edit]) -> str:
    """`text` after all of the edits, which do not overlap."""
    for edit in sorted(edits, key=lambda each: each.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both count from 1."""
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def quoted(text: str) -> str:
    """As the text format writes a text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
