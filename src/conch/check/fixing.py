"""Carries out the fixes of findings: edits and renames, never a deletion; checked again until nothing is left to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conch.check.engine import Report
from conch.check.finding import Change, Edit, Finding, MakeFolder, Move
from conch.check.writing import edited, overlap

#: Each round heals at least one finding; more rounds than this mean that fixes undo one another.
_MOST_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Done:
    """A fix that was made."""

    finding: Finding
    summary: str


@dataclass(slots=True)
class Outcome:
    """`report` is what is left. `diffs` are unified diffs and lines such as `rename a -> b`, in order."""

    report: Report
    done: list[Done] = field(default_factory=list)
    diffs: list[str] = field(default_factory=list)


def fix(look: Callable[[], Report], *, dry_run: bool = False) -> Outcome:
    """`look` checks anew. With `dry_run` nothing is written, and only the first round is shown."""
    outcome = Outcome(look())
    seen: set[tuple[str, str, str]] = set()
    for _ in range(_MOST_ROUNDS):
        chosen = choose([each for each in outcome.report.findings if _key(each) not in seen])
        if not chosen:
            break
        for finding in chosen:
            seen.add(_key(finding))
        done, diffs = carry_out(chosen, dry_run=dry_run)
        outcome.done += done
        outcome.diffs += diffs
        if dry_run:
            break
        outcome.report = look()
    return outcome


def choose(findings: Sequence[Finding]) -> list[Finding]:
    """Those whose fixes do not get into each other's way: the first ones win, the others have another turn."""
    chosen: list[Finding] = []
    edits: list[Edit] = []
    touched: set[Path] = set()
    for finding in findings:
        if finding.fix is None:
            continue
        ours = [each for each in finding.fix.changes if isinstance(each, Edit)]
        paths = {path for each in finding.fix.changes for path in _paths(each)}
        if paths & touched or {each.path for each in ours} & touched or paths & {each.path for each in edits}:
            continue
        if any(overlap(one, other) for one in ours for other in edits):
            continue
        chosen.append(finding)
        edits += ours
        touched |= paths
    return chosen


def carry_out(findings: Sequence[Finding], *, dry_run: bool = False) -> tuple[list[Done], list[str]]:
    """Edits first, while the files are where the findings saw them. What cannot be changed stays as it is, and the
    fixes that it belongs to are not done."""
    diffs: list[str] = []
    texts: dict[Path, list[Edit]] = {}
    failed: set[Change] = set()
    changes = [change for finding in findings if finding.fix is not None for change in finding.fix.changes]
    for change in changes:
        if isinstance(change, Edit):
            texts.setdefault(change.path, []).append(change)
    for path, edits in texts.items():
        try:
            before = path.read_bytes().decode()
            after = edited(before, edits)
            if not dry_run:
                path.write_bytes(after.encode())
            diffs.append(_diff(path, before, after))
        except OSError as error:
            diffs.append(f"not written: {path}: {error.strerror}")
            failed.update(edits)
    for change in changes:
        if isinstance(change, Edit):
            continue
        try:
            line = _move(change, dry_run=dry_run)
        except OSError as error:
            line = _undone(change, error)
            failed.add(change)
        if line:
            diffs.append(line)
    done = [
        Done(finding, finding.fix.summary)
        for finding in findings
        if finding.fix is not None and failed.isdisjoint(finding.fix.changes)
    ]
    return done, diffs


def _move(change: MakeFolder | Move, *, dry_run: bool) -> str:
    """What was done, in words; empty when there was nothing to do. Raises OSError."""
    if isinstance(change, MakeFolder):
        if change.path.is_dir():
            return ""
        if not dry_run:
            change.path.mkdir(parents=True)
        return f"make folder {change.path}"
    if change.target.exists() and not _same(change.source, change.target):
        raise FileExistsError
    if not dry_run:
        change.source.rename(change.target)
    return f"rename {change.source} -> {change.target}"


def _undone(change: MakeFolder | Move, error: OSError) -> str:
    if isinstance(change, MakeFolder):
        return f"not made: {change.path}: {error.strerror}"
    if isinstance(error, FileExistsError):
        return f"not renamed: {change.target} exists"
    return f"not renamed: {change.source}: {error.strerror}"


def _same(one: Path, other: Path) -> bool:
    """On file systems that do not tell upper from lower case."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _paths(change: Change) -> list[Path]:
    if isinstance(change, Move):
        return [change.source, change.target]
    return []


def _diff(path: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(path), str(path), n=1
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines).rstrip("\n")


def _key(finding: Finding) -> tuple[str, str, str]:
    changes = finding.fix.changes if finding.fix is not None else ()
    return finding.rule, finding.message, repr(changes)
