"""`conch check`: what would keep the models of a repository from loading, found and mended without a server."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2


def main(argv: Sequence[str]) -> int:
    """Exit code 0 when nothing is wrong, 1 when errors were found (with `--strict` warnings, too), 2 for bad usage."""
    # Not at the top: `--help` and wrong options answer at once.
    try:
        given = _parser().parse_args(argv)
        repositories = _local(given.repositories, given.model)
        from conch.check.engine import Report, check  # noqa: PLC0415
        from conch.check.finding import Severity  # noqa: PLC0415
        from conch.check.fixing import Outcome, fix  # noqa: PLC0415
        from conch.check.report import as_github, as_json, as_text  # noqa: PLC0415
        from conch.check.subject import Options  # noqa: PLC0415

        options = Options(given.model_config_name, not given.disable_auto_complete_config, given.model_namespacing,
                          given.run_code, _ram(given.memory_budget))  # fmt: skip
        if given.backend_directory is not None:
            options = dataclasses.replace(options, backend_directory=given.backend_directory)
    except _UsageError as error:
        print(f"conch check: {error}\nSee conch check --help", file=sys.stderr)
        return USAGE_ERROR

    def look() -> Report:
        report = check(repositories, options, given.model)
        if given.strict:
            report.findings = [
                dataclasses.replace(each, severity=Severity.ERROR) if each.severity is Severity.WARNING else each
                for each in report.findings
            ]
        return report

    outcome = fix(look, dry_run=given.dry_run) if given.fix or given.dry_run else Outcome(look())
    report = outcome.report
    match given.format:
        case "json":
            print(as_json(report, outcome.done, outcome.diffs))
        case "github":
            print(as_github(report))
        case _:
            print(as_text(report, outcome.done, outcome.diffs, fixed=given.fix or given.dry_run, dry_run=given.dry_run))
    return 1 if report.count(Severity.ERROR) else 0


def _local(repositories: Sequence[str], models: Sequence[str]) -> list[Path]:
    """The folders to check, which have all of these models. Raises _UsageError."""
    for text in repositories:
        if "://" in text:
            raise _UsageError(f"{text} is not on this machine: check a copy in a local folder")
    paths = [Path(text) for text in repositories]
    names = {each.name for path in paths if path.is_dir() for each in path.iterdir() if each.is_dir()}
    for model in models:
        if model not in names:
            raise _UsageError(f"no model '{model}' in {', '.join(repositories)}")
    return paths


def _ram(text: str) -> int:
    """Bytes of RAM in the value of --memory-budget; 0 where it gives none. Raises _UsageError."""
    from conch.config.flag_values import FlagValueError  # noqa: PLC0415
    from conch.config.memory import RAM, memory_budget  # noqa: PLC0415

    try:
        return memory_budget(text).get(RAM, 0) if text else 0
    except FlagValueError as error:
        raise _UsageError(f"--memory-budget: {error}") from None


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="conch check",
        description="Check model repositories without a server: configs, model files, ensembles, environments.",
        epilog="Exit codes: 0 nothing is wrong, 1 errors, 2 wrong options. Rules: docs/check.md.",
    )
    parser.add_argument("repositories", nargs="+", metavar="REPOSITORY", help="folder with model folders")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="tell of this model alone; repeat")
    parser.add_argument("--fix", action="store_true", help="carry out the fixes, then check again")
    parser.add_argument("--dry-run", action="store_true", help="show the changes of --fix and make none")
    parser.add_argument("--strict", action="store_true", help="warnings, such as fields without effect, are errors")
    parser.add_argument("--format", choices=("text", "json", "github"), default="text", help="default: text")
    parser.add_argument("--import", dest="run_code", action="store_true",
                        help="run auto_complete_config of Python models, each in a process of its own")  # fmt: skip
    parser.add_argument("--memory-budget", default="", metavar="SIZE", help="as for conch serve")
    parser.add_argument("--model-config-name", default="", metavar="NAME", help="as for conch serve")
    parser.add_argument("--backend-directory", metavar="DIR", type=Path, help="as for conch serve")
    parser.add_argument("--disable-auto-complete-config", action="store_true", help="as for conch serve")
    parser.add_argument("--model-namespacing", nargs="?", const=True, default=False, metavar="BOOL",
                        type=lambda text: text.lower() in {"true", "1", "on"}, help="as for conch serve")  # fmt: skip
    return parser
