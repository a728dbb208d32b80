"""One model that is checked: what lies on the disk, what is known of it so far, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conch.backend.find import DIRECTORY
from conch.backend.signature import Signature
from conch.check.catalog import rule
from conch.check.finding import Change, Edit, Finding, Fix, Place, Severity
from conch.check.outline import Field, Span, outline
from conch.check.patched import Patched
from conch.check.writing import Writer, line_and_column
from conch.pb.model_config_pb2 import ModelConfig


@dataclass(frozen=True, slots=True)
class Options:
    """What the server would be told, and whether models' own code may run (`run_code`)."""

    config_name: str = ""
    auto_complete: bool = True
    namespacing: bool = False
    run_code: bool = False
    #: Bytes; 0 for the machine's memory.
    memory_budget: int = 0
    #: Where Python-based backends lie.
    backend_directory: Path = DIRECTORY


@dataclass(slots=True)
class Subject:
    name: str
    directory: Path
    options: Options
    #: The config in use, or where it would be.
    config_path: Path
    #: None without a config file.
    patched: Patched | None = None
    root: Field = field(default_factory=lambda: outline(""))
    #: As the operator wrote it; None when it cannot be read.
    written: ModelConfig | None = None
    #: With its backend and defaults; completed by the model's file once that was possible.
    config: ModelConfig | None = None
    #: Whether inputs and outputs are those that would be served.
    complete: bool = False
    versions: tuple[int, ...] = ()
    #: Those of `versions` that the policy picks.
    served: tuple[int, ...] = ()
    signatures: dict[int, Signature] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ensemble(self) -> bool:
        return self.config is not None and (
            self.config.platform == "ensemble" or self.config.HasField("ensemble_scheduling")
        )

    @property
    def writer(self) -> Writer:
        return Writer(self.config_path, self.patched.text if self.patched is not None else "", self.root)

    @property
    def failed(self) -> bool:
        """Whether an error was found: what follows from it need not be told."""
        return any(each.severity is Severity.ERROR for each in self.findings)

    def version_folder(self, version: int) -> Path:
        return self.directory / str(version)

    def find(
        self,
        name: str,
        message: str,
        hint: str = "",
        *,
        at: Field | Span | Path | Place | None = None,
        fix: str = "",
        changes: Sequence[Change] = (),
        severity: Severity | None = None,
    ) -> None:
        """Note a breach of rule `name`. `at` is a field, a span of the (patched) text or a file; by default the place
        that the rule's field has in the config. `changes` belong together, `fix` says what they do."""
        known = rule(name)
        made = Fix(fix, tuple(self._original(each) for each in changes)) if changes else None
        if any(each.rule == name and each.message == message for each in self.findings):
            return
        self.findings.append(
            Finding(name, severity or known.severity, self.name, self._place(at, known.field), message, hint, made)
        )

    def _place(self, at: Field | Span | Path | Place | None, path: str) -> Place:
        if isinstance(at, Place):
            return at
        if isinstance(at, Path):
            return Place(at)
        if self.patched is None:
            return Place(self.config_path if self.config_path.exists() else self.directory)
        if at is None:
            at = self.nearest(path)
        if at is None:
            return Place(self.config_path, 1, 1)
        span = at.label if isinstance(at, Field) and not at.listed else at.value if isinstance(at, Field) else at
        return Place(self.config_path, *line_and_column(self.patched.original, self.patched.before(span.start)))

    def nearest(self, path: str) -> Field | None:
        """The field at `path`, or the one above it that is there; None when none of them is."""
        here = None
        names = path.split(".") if path else []
        for length in range(1, len(names) + 1):
            here = self.root.first(*names[:length]) or here
        return here

    def _original(self, change: Change) -> Change:
        if isinstance(change, Edit) and self.patched is not None and change.path == self.config_path:
            return self.patched.edit_before(change)
        return change
