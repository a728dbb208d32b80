"""What was found, as text for people, as JSON for programs, and as annotations for GitHub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from conch.check.catalog import rule
from conch.check.engine import Report
from conch.check.finding import Change, Edit, Finding, Fix, MakeFolder, Move, Place, Severity
from conch.check.fixing import Done

#: Grows with each change that could break a reader of the JSON.
SCHEMA: Final = 1


def as_text(report: Report, done: Sequence[Done], diffs: Sequence[str], *, fixed: bool, dry_run: bool = False) -> str:
    """`fixed`: fixes have been asked for, so they need not be advertised."""
    parts = [_finding(each, offer=not fixed) for each in report.findings]
    if diffs:
        parts.append("\n".join(diffs))
    if done:
        verb = "would fix" if dry_run else "fixed"
        lines = [
            f"{verb} {each.finding.rule} in {each.finding.model or 'the repository'}: {each.summary}" for each in done
        ]
        parts.append("\n".join(lines))
    parts.append(summary(report, fixed=fixed))
    return _printable("\n\n".join(parts))


def as_json(report: Report, done: Sequence[Done], diffs: Sequence[str]) -> str:
    content = {
        "schema": SCHEMA,
        "models": report.models,
        "errors": report.count(Severity.ERROR),
        "warnings": report.count(Severity.WARNING),
        "notes": report.count(Severity.NOTE),
        "findings": [_object(each) for each in report.findings],
        "fixed": [{"rule": each.finding.rule, "model": each.finding.model, "summary": each.summary} for each in done],
        "diffs": list(diffs),
    }
    # A name that is no UTF-8 becomes an escape of JSON.
    return _printable(json.dumps(content, indent=2, ensure_ascii=False))


def as_github(report: Report) -> str:
    """Workflow commands: an annotation at each place."""
    lines = []
    for each in report.findings:
        kind = "notice" if each.severity is Severity.NOTE else each.severity.value
        place = f"file={_property(_shown(each.place.path))}"
        if each.place.line:
            place += f",line={each.place.line},col={each.place.column}"
        text = each.message + (f"\n{each.hint}" if each.hint else "")
        lines.append(f"::{kind} {place},title={_property(each.rule)}::{_escaped(text)}")
    return _printable("\n".join([*lines, summary(report, fixed=False)]))


def _printable(text: str) -> str:
    """With escapes for the bytes of files' names that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def summary(report: Report, *, fixed: bool) -> str:
    def count(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    if not report.findings:
        return f"{count(report.models, 'model')}: no findings"
    found = ", ".join(
        count(report.count(each), each.value) for each in (Severity.ERROR, Severity.WARNING, Severity.NOTE)
    )
    fixable = sum(each.fix is not None for each in report.findings)
    offer = f"; --fix heals {fixable}" if fixable and not fixed else ""
    return f"{count(report.models, 'model')}: {found}{offer}"


def _finding(finding: Finding, *, offer: bool) -> str:
    lines = [f"{_where(finding.place)}: {finding.severity.value}: {finding.message} [{finding.rule}]"]
    lines += _excerpt(finding.place)
    lines.append(f"  why: {rule(finding.rule).why}")
    if finding.hint:
        lines.append("  how: " + finding.hint.replace("\n", "\n       "))
    if finding.fix is not None and offer:
        lines.append(f"  --fix: {finding.fix.summary}")
    return "\n".join(lines)


def _where(place: Place) -> str:
    shown = _shown(place.path)
    return f"{shown}:{place.line}:{place.column}" if place.line else shown


def _shown(path: Path) -> str:
    """As seen from the working folder, where it lies below: editors and GitHub want it so."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _excerpt(place: Place) -> list[str]:
    """The line, and a mark under the column."""
    if not place.line:
        return []
    try:
        line = place.path.read_text(encoding="utf-8", errors="replace").split("\n")[place.line - 1].rstrip("\r")
    except (OSError, IndexError):
        return []
    start = max(0, place.column - 60)
    shown = line[start : start + 110].replace("\t", " ")
    return [f"  {place.line:>4} | {shown}", f"       | {' ' * (place.column - 1 - start)}^"] if shown.strip() else []


def _object(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity.value,
        "model": finding.model,
        "path": str(finding.place.path),
        "line": finding.place.line or None,
        "column": finding.place.column or None,
        "message": finding.message,
        "why": rule(finding.rule).why,
        "hint": finding.hint,
        "fix": _fix(finding.fix) if finding.fix is not None else None,
    }


def _fix(fix: Fix) -> dict[str, Any]:
    return {"summary": fix.summary, "changes": [_change(each) for each in fix.changes]}


def _change(change: Change) -> dict[str, Any]:
    match change:
        case Edit(path, start, end, text):
            return {"kind": "edit", "path": str(path), "start": start, "end": end, "text": text}
        case Move(source, target):
            return {"kind": "move", "path": str(source), "to": str(target)}
        case MakeFolder(path):
            return {"kind": "make_folder", "path": str(path)}


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
