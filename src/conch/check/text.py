"""Reads a model's config; mistakes in its text are noted, and mended in memory so that the rest can be checked."""

from __future__ import annotations

import re
from collections import Counter

from conch.check.finding import Edit
from conch.check.outline import Span, outline
from conch.check.patched import Patched
from conch.check.repair import Wrong, repair
from conch.check.subject import Subject
from conch.config.pbtxt import parse_text
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError

_SOURCE = "\0"
_SAID = re.compile(r"failed to read text proto from \0(?::(\d+):(\d+))?: (.*)", re.DOTALL)
_MOST = 60
_MAPS = frozenset({"parameters", "input_map", "output_map", "cc_model_filenames", "priority_queue_policy", "inputs"})


def read_config(subject: Subject) -> None:
    """Sets `patched`, `root` and `written`; `written` stays None where the text cannot be read even when mended."""
    if not subject.config_path.is_file():
        subject.written = ModelConfig()
        return
    try:
        content = subject.config_path.read_bytes().decode()
    except UnicodeDecodeError as error:
        subject.find(
            "config-text-is-sound",
            f"byte {error.start} is not UTF-8",
            "save the file as UTF-8 text",
            at=subject.config_path,
        )
        return
    except OSError as error:
        subject.find("config-text-is-sound", f"the file cannot be read: {error.strerror}", at=subject.config_path)
        return
    patched = subject.patched = Patched(content)
    for _ in range(_MOST):
        try:
            subject.written = parse_text(patched.text, _SOURCE)
            break
        except InferError as error:
            if not _mend(subject, patched, error):
                break
    subject.root = outline(patched.text)
    if subject.written is not None:
        _keys_are_unique(subject)


def _mend(subject: Subject, patched: Patched, error: InferError) -> bool:
    """Note the mistake; whether it was mended."""
    said = _SAID.fullmatch(error.message)
    found = said[3] if said else error.message
    if said is None or said[1] is None:
        subject.find("config-text-is-sound", found, error.hint)
        return False
    offset = _offset(patched.text, int(said[1]), int(said[2]))
    edits = repair(Wrong(subject.config_path, patched.text, offset, found, error.hint))
    subject.find(
        "config-text-is-sound",
        found,
        error.hint,
        at=Span(offset, offset),
        fix=_summary(patched.text, edits),
        changes=edits,
    )
    patched.apply(edits)
    return bool(edits)


def _offset(text: str, line: int, column: int) -> int:
    """A BOM is not counted by the parser."""
    lines = text.split("\n")
    start = sum(len(each) + 1 for each in lines[: line - 1])
    return min(len(text), start + column - 1 + (1 if line == 1 and text.startswith("\ufeff") else 0))


def _summary(text: str, edits: list[Edit]) -> str:
    parts = []
    for edit in edits:
        gone, new = text[edit.start : edit.end].strip(), edit.text.strip()
        if gone and new:
            parts.append(f"write {new} instead of {gone}")
        else:
            parts.append(f"add {new}" if new else f"remove {gone}")
    return ", ".join(parts)


def _keys_are_unique(subject: Subject) -> None:
    for parent in subject.root.walk():
        for name in {child.name for child in parent.children or ()} & _MAPS:
            entries = [entry for entry in parent.all(name) if entry.first("key") is not None]
            counts = Counter(entry.scalar("key") for entry in entries)
            for key, count in counts.items():
                if count > 1:
                    last = [entry for entry in entries if entry.scalar("key") == key][-1]
                    subject.find(
                        "map-key-is-given-once",
                        f"{name} has the key '{key}' {count} times",
                        "only the last one counts: give each entry a key of its own",
                        at=last,
                    )
