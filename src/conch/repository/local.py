"""Model repositories in folders of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from conch.repository import override
from conch.repository.api import Fingerprint, StoredModel, Survey
from conch.repository.fingerprint import Contents, stamp, stamp_all
from conch.repository.versions import version_numbers
from conch.types.error import InferError, internal, invalid, not_found
from conch.types.model import identity

log = logging.getLogger("conch.repository")

CONFIG_FILE = "config.pbtxt"


class LocalStore:
    """One or several repositories: folders with a folder per model. `config_name` is `--model-config-name`.

    With `namespacing` each repository is a namespace, called by its path. `by_content`: fingerprints tell what files
    hold, so that a model whose files were merely touched is the same; without it they tell how files look, and nothing
    is read for them.
    """

    def __init__(
        self, paths: Sequence[Path], config_name: str = "", *, namespacing: bool = False, by_content: bool = True
    ) -> None:
        self._contents = Contents() if by_content else None
        self._paths = tuple(dict.fromkeys(path.absolute() for path in paths))
        self._config_name = config_name
        self._namespacing = namespacing
        #: What was warned of already: a scan happens at each request for the index.
        self._warned: set[str] = set()

    @property
    def namespaces(self) -> Sequence[str]:
        return [str(path) for path in self._paths] if self._namespacing else ()

    def names(self) -> list[str]:
        if self._namespacing:
            held = [(str(path), sorted(self._models(path) or ())) for path in sorted(self._paths)]
            return [identity(path, name) for path, names in held for name in names]
        return sorted({name for path in self._paths for name in self._models(path) or ()})

    def duplicates(self) -> frozenset[str]:
        if len(self._paths) < 2 or self._namespacing:
            return frozenset()
        seen: set[str] = set()
        twice: set[str] = set()
        for path in self._paths:
            names = self._models(path) or set()
            twice |= seen & names
            seen |= names
        return frozenset(twice)

    def places(self, name: str) -> list[str]:
        """The repositories that a model called so lies in, without namespaces."""
        return [str(path) for path in self._paths if is_name(name) and (path / name).is_dir()]

    def survey(self) -> Survey:
        duplicates = self.duplicates()
        looks = {}
        complete = True
        for path in self._paths:
            names = self._models(path)
            complete = complete and names is not None
            for name in names or ():
                looks[identity(str(path), name) if self._namespacing else name] = stamp(path / name)
        return Survey({name: look for name, look in looks.items() if name not in duplicates}, duplicates, complete)

    def contents(self, name: str) -> str:
        return repr(self.fetch(name).fingerprint)

    def fetch(self, name: str) -> StoredModel:
        namespace, name, directory = self._find(name)
        config = self._config_file(directory)
        text = read_config(config) if config is not None else None
        source = str(config or directory / CONFIG_FILE)
        found = self._read(name, directory, text, source, stamp(config, self._contents) if config is not None else "")
        return replace(found, namespace=namespace)

    def fetch_override(self, name: str, config: str, files: Mapping[str, bytes]) -> StoredModel:
        source = "the load request's config"
        if not files:
            namespace, name, directory = self._find(name)
            return replace(self._read(name, directory, config, source, config, overridden=True), namespace=namespace)
        namespace, name = self._split(name)
        check_name(name)
        directory, remove = override.build(name, files)
        try:
            stored = self._read(name, directory, config, source, config, overridden=True)
        except BaseException:
            remove()
            raise
        return replace(stored, override=True, release=remove, namespace=namespace)

    def _read(
        self, name: str, directory: Path, text: str | None, source: str, config: str, *, overridden: bool = False
    ) -> StoredModel:
        found = read_folder(name, directory, self._contents)
        looks = replace(found.fingerprint, config=config)
        return replace(found, config_text=text, config_source=source, fingerprint=looks, override=overridden)

    def _split(self, wanted: str) -> tuple[str, str]:
        """The namespace, empty for none, and the name."""
        for namespace in self.namespaces:
            if wanted.startswith(identity(namespace, "")):
                return namespace, wanted.removeprefix(identity(namespace, ""))
        return "", wanted

    def _find(self, wanted: str) -> tuple[str, str, Path]:
        """Namespace, name and folder of the model with this identity."""
        namespace, name = self._split(wanted)
        if namespace:
            directory = Path(namespace) / name
            if not is_name(name) or not directory.is_dir():
                raise not_found(f"failed to poll model '{wanted}': model not found in any model repository.")
            return namespace, name, directory
        found = [path / name for path in self._paths if is_name(name) and (path / name).is_dir()]
        if len(found) > 1:
            raise invalid(
                f"failed to poll model '{name}': not unique across all model repositories",
                "it lies in " + " and in ".join(str(path) for path in found) + "; keep one of them",
            )
        if not found:
            raise not_found(f"failed to poll model '{name}': model not found in any model repository.")
        return "", name, found[0]

    def _config_file(self, directory: Path) -> Path | None:
        custom = directory / "configs" / f"{self._config_name}.pbtxt"
        if self._config_name and custom.is_file():
            return custom
        usual = directory / CONFIG_FILE
        return usual if usual.is_file() else None

    def _models(self, path: Path) -> set[str] | None:
        """The names of a repository's models; None when it cannot be read."""
        try:
            with os.scandir(path) as entries:
                names = {entry.name for entry in entries if entry.is_dir()}
        except OSError as error:
            self._warn_once(f"failed to read model repository {path}: {error.strerror}")
            return None
        for name in names:
            if not name.startswith(".") and not is_name(name):
                self._warn_once(f"ignore model directory {name!r} of {path}: its name is not UTF-8 text")
        return {name for name in names if is_name(name)}

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)


def read_config(path: Path) -> str:
    """The text of a config file. Raises InferError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"failed to read text proto from {path}: it is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise internal(f"failed to read text proto from {path}: {error.strerror}") from error


def read_folder(name: str, directory: Path, contents: Contents | None = None) -> StoredModel:
    """What a model's folder holds beside its config. Raises InferError."""
    try:
        folders, files = _entries(directory)
    except OSError as error:
        raise internal(f"failed to open directory {directory}: {error.strerror}") from error
    numbers, warnings = version_numbers(folders)
    for warning in warnings:
        log.warning("%s", warning)
    own = {"configs", *(str(number) for number in numbers)}
    shared = [directory / file for file in files if file != CONFIG_FILE]
    shared += [directory / folder for folder in folders if folder not in own]
    fingerprint = Fingerprint(
        "",
        stamp_all(shared, contents),
        {number: stamp(directory / str(number), contents) for number in numbers},
    )
    return StoredModel(name, directory, None, str(directory / CONFIG_FILE), numbers, fingerprint)


def check_name(name: str) -> None:
    """Whether a client may ask for a model called so. Raises InferError."""
    if not name.strip():
        raise invalid("Model name cannot be empty. Please enter a valid name to deploy.")
    if "/" in name or "\0" in name or name in {".", ".."}:
        raise invalid(f"invalid model name '{name}', model name must not contain path traversal characters")


def is_name(name: str) -> bool:
    """Hidden folders are not models (Kubernetes and notebooks make such), nor is what no message can carry."""
    if name.startswith("."):
        return False
    try:
        check_name(name)
        name.encode()
    except (InferError, UnicodeEncodeError):
        return False
    return True


def _entries(directory: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)
