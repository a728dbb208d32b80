"""`conch import`: makes models of a Triton repository out of other servers' models, files and functions, to stay."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conch.adopt.api import AdoptError, Entry, said
from conch.adopt.functions import with_neighbours
from conch.adopt.lay import lay
from conch.adopt.targets import read_target


def main(argv: Sequence[str]) -> int:
    """Exit code 0 when all was imported, 1 when something could not be, 2 for a wrong command line."""
    options = _parser().parse_args(argv)
    try:
        entries = _entries(options.source, options.name)
        options.into.mkdir(parents=True, exist_ok=True)
        folders = lay(entries, options.into, copy=not options.link, force=options.force)
    except AdoptError as error:
        print(f"conch import: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"conch import: {said(error)}", file=sys.stderr)
        return 1
    for entry, folder in zip(entries, folders, strict=True):
        print(report(entry, folder))
    print(f"serve it: conch serve {options.into}")
    return 0


def _entries(sources: Sequence[Path], name: str) -> list[Entry]:
    """Raises AdoptError."""
    entries: list[Entry] = []
    for source in sources:
        if not source.exists():
            raise AdoptError(f"there is no {source}")
        found = read_target(source, name)
        if found is None:
            raise AdoptError(f"{source} is a Triton repository already (or holds no model)", "conch serve serves it")
        entries += found
    return [with_neighbours(each) if each.what == "Python function" else each for each in entries]


def report(entry: Entry, folder: Path) -> str:
    """What was made of what, and what was lost on the way."""
    lines = [f"{folder}: {entry.what} {entry.source}"]
    lines += [f"  taken over  {text}" for text in entry.mapped]
    lines += [f"  NOT taken   {text}" for text in entry.unmapped]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conch import",
        description=__doc__,
        epilog="SOURCE: a TorchServe archive (.mar) or a folder of them, an MLServer folder or model-settings.json, "
        "TensorFlow Serving's folders or models.config, a model file, or a Python file with @conch.model.",
    )
    parser.add_argument("source", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("--into", type=Path, default=Path("model_repository"), metavar="REPOSITORY",
                        help="where the models go (default: ./model_repository)")  # fmt: skip
    parser.add_argument("--name", default="", help="what the model is called, for a single one")
    parser.add_argument("--link", action="store_true", help="link to the files in place of copying them")
    parser.add_argument("--force", action="store_true", help="replace models that are there already")
    return parser
