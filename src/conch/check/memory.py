"""Whether the models' files fit into memory: what is loaded takes at least as much as its files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from conch.check.finding import Finding, Place, Severity
from conch.check.subject import Options, Subject
from conch.config.memory import amount


def check_memory(subjects: Iterable[Subject], repository: Path, options: Options) -> list[Finding]:
    limit = options.memory_budget or _machine()
    whose = "the memory budget" if options.memory_budget else "the machine's memory"
    sizes: dict[str, int] = {}
    for subject in subjects:
        sizes[subject.name] = sum(_size(subject.version_folder(version)) for version in subject.served)
        if sizes[subject.name] > limit:
            subject.find(
                "memory-suffices",
                f"its files are {amount(sizes[subject.name])}, {whose} is {amount(limit)}",
                "it can never be loaded: quantize the model, serve fewer versions, or use a larger machine",
                at=subject.directory,
                severity=Severity.ERROR if options.memory_budget else None,
            )
    total = sum(sizes.values())
    if total <= limit or any(size > limit for size in sizes.values()):
        return []
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
    return [
        Finding(
            "memory-suffices",
            Severity.WARNING,
            "",
            Place(repository),
            f"the files of all models are {amount(total)}, {whose} is {amount(limit)}",
            "load only some of them, or let them take turns with --memory-budget; the largest are "
            + ", ".join(f"{name} ({amount(sizes[name])})" for name in largest),
        )
    ]


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root) / file
            total += path.stat().st_size if path.is_file() else 0
    return total
