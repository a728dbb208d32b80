"""What `conch serve` serves beside repositories: model files, functions, other servers' models. Laid in a repository
of their own for as long as the server runs, and described when it answers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conch.config.repository_url import RepositoryUrl
from conch.config.server import ServerOptions

if TYPE_CHECKING:
    from conch.adopt.api import Entry
    from conch.pb.model_config_pb2 import ModelConfig

HELP: Final = """\
conch serve TARGET ... [options]

A TARGET is a model repository (a folder, or a URL such as s3://bucket/models), the folder of one model, a model file
(model.onnx, model.pt, model.pt2, model.xml, xgboost.json, model.joblib), a SavedModel folder, a Python file with a
TritonPythonModel or with functions under @conch.model, a TorchServe archive (.mar), the folder of an MLServer model
(model-settings.json), or TensorFlow Serving's folders or models.config.

For targets that are no repository:
  --name NAME
	What the model is called, in place of the file's name.
  --write-config[=FILE]
	Write the config that was decided on: to FILE, or to config.pbtxt in the current folder.
  --force
	Let --write-config replace a file.

"""


@dataclass(slots=True)
class Wishes:
    """What the command line says of targets alone. `write` is None where no config is to be written."""

    name: str = ""
    write: str | None = None
    force: bool = False


def take(argv: Sequence[str]) -> tuple[Wishes, list[str]]:
    """The flags for targets, and the rest of the command line."""
    wishes, rest = Wishes(), []
    waiting = list(reversed(argv))
    while waiting:
        word = waiting.pop()
        flag, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *reversed(waiting)]
            break
        if flag == "--name" and (equals or waiting):
            wishes.name = value if equals else waiting.pop()
        elif flag == "--write-config":
            wishes.write = value if equals else "config.pbtxt"
        elif word == "--force":
            wishes.force = True
        else:
            rest.append(word)
    return wishes, rest


def serve(options: ServerOptions, named: Sequence[str], wishes: Wishes) -> int:
    """Serve the options' repositories, of which the last are those that `named` names. The exit code."""
    # Not at the top: `--help` and wrong flags answer without loading the server.
    from conch.adopt.api import AdoptError  # noqa: PLC0415
    from conch.process import run  # noqa: PLC0415

    with ExitStack() as stack:
        try:
            options, found = _adopt(options, named, wishes, stack)
        except AdoptError as error:
            print(f"conch serve: {error}", file=sys.stderr)
            return 1
        if not found:
            return run(options, advice=_advice(options))

        def greet(port: int) -> None:
            url = f"{'http' if options.http.tls is None else 'https'}://{options.http.address}:{port}"
            print("\n" + "\n\n".join(_described(found, url)) + "\n", flush=True)

        if options.repository.watch:
            stack.enter_context(_following(options, named, wishes, found))
        return run(options, greet)


def _advice(options: ServerOptions) -> str:
    """What helps when models do not load."""
    local = [str(path) for path in options.repository.paths if "://" not in str(path)]
    return f"what is wrong, and how to mend it: conch check {' '.join(local)}" if local else ""


def _adopt(
    options: ServerOptions, named: Sequence[str], wishes: Wishes, stack: ExitStack
) -> tuple[ServerOptions, list[tuple[Entry, ModelConfig]]]:
    """The options with a repository of links in place of targets, and what is in it. Raises AdoptError."""
    from conch.adopt.api import AdoptError  # noqa: PLC0415
    from conch.adopt.targets import read_target  # noqa: PLC0415

    paths = options.repository.paths
    kept: list[Path | RepositoryUrl] = []
    entries: list[Entry] = []
    for place, path in enumerate(paths):
        index = place - (len(paths) - len(named))
        read = None
        if index >= 0 and isinstance(path, Path) and _may_be_model(path):
            read = read_target(path, wishes.name)
        if read is None:
            kept.append(path)
        else:
            entries += read
    if not entries:
        asked = [flag for flag, value in (("--name", wishes.name), ("--write-config", wishes.write)) if value]
        if asked:
            raise AdoptError(f"{' and '.join(asked)} is for a model that is no repository", "name a model file")
        return options, []
    if wishes.name and len(entries) > 1:
        raise AdoptError(f"there are {len(entries)} models, --name can name one", "leave --name out")
    temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conch-serve-")))
    found = _decide(entries, temporary, options, wishes)
    return replace(options, repository=replace(options.repository, paths=(*kept, temporary))), found


def _following(
    options: ServerOptions, named: Sequence[str], wishes: Wishes, found: Sequence[tuple[Entry, ModelConfig]]
) -> AbstractContextManager[object]:
    from conch.cli.following import Following  # noqa: PLC0415

    entries = [entry for entry, _ in found]
    sources = {source for entry in entries for source in (entry.source, *entry.source.parents)}
    followed = [path for path in map(Path, named) if path in sources]
    repository = options.repository.paths[-1]
    assert isinstance(repository, Path)
    return Following(followed, wishes.name, repository, entries)


def _may_be_model(path: Path) -> bool:
    """What does not exist is left to the server, which says so, unless it looks like a file."""
    return path.exists() or bool(path.suffix)


def _decide(
    entries: list[Entry], temporary: Path, options: ServerOptions, wishes: Wishes
) -> list[tuple[Entry, ModelConfig]]:
    from conch.adopt.api import AdoptError  # noqa: PLC0415
    from conch.adopt.decide import decide  # noqa: PLC0415
    from conch.adopt.lay import lay, write_config  # noqa: PLC0415
    from conch.config.pbtxt import format_text  # noqa: PLC0415

    if wishes.write is not None and len(entries) > 1:
        raise AdoptError(f"there are {len(entries)} models, --write-config writes one", "conch import writes them all")
    folders = lay(entries, temporary)
    found = [(entry, decide(entry, folder, options.backend)) for entry, folder in zip(entries, folders, strict=True)]
    if wishes.write is not None:
        file = Path(wishes.write)
        write_config(found[0][1], file, force=wishes.force)
        print(f"wrote {file}")
    if not options.repository.auto_complete:
        for (_, config), folder in zip(found, folders, strict=True):
            (folder / "config.pbtxt").write_text(format_text(config), encoding="utf-8")
    return found


def _described(found: Sequence[tuple[Entry, ModelConfig]], url: str) -> list[str]:
    from conch.adopt.describe import describe  # noqa: PLC0415

    return [describe(entry, config, url) for entry, config in found]
