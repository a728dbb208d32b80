"""Checks repositories: every model by itself, then those that need others, then all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conch.check import files, graph, layout, loading, memory, onnx, python, settings, tensors, text
from conch.check.finding import Finding, Severity
from conch.check.subject import Options, Subject
from conch.repository.local import LocalStore

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


@dataclass(slots=True)
class Report:
    """`models` is how many were looked at."""

    models: int = 0
    findings: list[Finding] = field(default_factory=list)

    def count(self, severity: Severity) -> int:
        return sum(each.severity is severity for each in self.findings)


def check(repositories: Sequence[Path], options: Options, only: Sequence[str] = ()) -> Report:
    """`only` are the models to tell of, all of them when empty; ensembles are compared with all models in any case."""
    report = Report()
    everything: list[tuple[str, Path]] = []
    for repository in dict.fromkeys(path.absolute() for path in repositories):
        problems = layout.repository_problems(repository)
        report.findings += problems
        if any(each.rule == "repository-is-readable" or not each.fix for each in problems):
            continue
        names = LocalStore([repository]).names()
        everything += [(name, repository) for name in names]
    subjects = {(path, name): _alone(name, path / name, options) for name, path in everything}
    inside: dict[Path, dict[str, Subject]] = {}
    for (path, name), subject in subjects.items():
        inside.setdefault(path, {})[name] = subject
    graph.check_ensembles(list(inside.values()))
    for repository, held in inside.items():
        report.findings += memory.check_memory(held.values(), repository, options)
    if not options.namespacing:
        report.findings += layout.duplicates(everything)
    told = [subject for subject in subjects.values() if not only or subject.name in only]
    report.models = len(told)
    for subject in told:
        # What is worst comes first, and then what stands first in the file.
        report.findings += sorted(subject.findings, key=_rank)
    return report


def _alone(name: str, directory: Path, options: Options) -> Subject:
    """Everything that can be said of a model without the others."""
    subject = layout.subject_of(name, directory, options)
    layout.inspect_folder(subject)
    text.read_config(subject)
    layout.versions_are_there(subject)
    settings.settle(subject)
    if subject.config is None:
        return subject
    files.choose_versions(subject)
    files.model_files_are_there(subject)
    onnx.read_files(subject)
    tensors.complete_and_compare(subject)
    python.read_models(subject)
    if subject.config.backend not in {"onnxruntime", "python"}:
        subject.complete = True
    settings.tensors_are_sound(subject)
    settings.groups_suit_the_machine(subject)
    settings.all_has_effect(subject)
    settings.parameters_are_known(subject)
    settings.flags_are_given(subject)
    files.named_files_are_there(subject)
    loading.parts_can_be_made(subject)
    loading.nothing_is_left_out(subject)
    return subject


def _rank(finding: Finding) -> tuple[int, int, int]:
    return _ORDER.index(finding.severity), finding.place.line, finding.place.column
