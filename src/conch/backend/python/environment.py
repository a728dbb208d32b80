"""Which Python runs a model: the server's own, that of EXECUTION_ENV_PATH, or one made for the model's requirements."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from conch.backend.api import ModelFiles
from conch.backend.python import archive, installer, requirements
from conch.backend.python.environment_cache import EnvironmentCache, Held
from conch.config.environments import EnvironmentOptions, activated
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal

_LOG = logging.getLogger("conch.backend")
#: The parameter of a model's config that names its environment.
PATH: Final = "EXECUTION_ENV_PATH"
_DIRECTORY: Final = "$$TRITON_MODEL_DIRECTORY"
#: A stub that somebody has built for another Python, which Triton starts instead of its own.
_STUB: Final = "triton_python_backend_stub"
#: What a shell sets of itself.
_SHELL: Final = frozenset({b"_", b"PS1", b"PWD", b"OLDPWD", b"SHLVL"})
#: As Triton does; a conda environment that was not packed has scripts of its packages alone.
_ACTIVATE: Final = (
    'if [ -f "$1/bin/activate" ]; then . "$1/bin/activate" >&2; '
    'else for script in "$1"/etc/conda/activate.d/*.sh; do . "$script" >&2; done; fi; env -0'
)


#: What was told already: a load asks twice, for the config and for the model.
_told: set[str] = set()


def _tell(level: int, text: str) -> None:
    if text not in _told:
        _told.add(text)
        _LOG.log(level, "%s", text)


def _nothing() -> None:
    """What nobody holds needs no letting go."""


@dataclass(frozen=True, slots=True)
class Environment:
    """`close` once the last worker has ended. `variables` are None for the server's own."""

    python: str
    variables: Mapping[str, str] | None = None
    close: Callable[[], None] = _nothing


def environment(
    config: ModelConfig, files: ModelFiles, options: EnvironmentOptions, shared: Sequence[Path] = ()
) -> Environment:
    """Blocks while an environment is unpacked or made, which happens once; `shared` are folders of a backend, whose
    requirements count where the model has none. Raises InferError."""
    folders = (files.version_directory, files.directory, *shared)
    stub = files.directory / _STUB
    if stub.exists():
        _tell(
            logging.WARNING, f"model '{config.name}': '{stub}' has no effect, no stub is needed to run another Python"
        )
    if PATH in config.parameters and config.parameters[PATH].string_value:
        found = next((f for folder in folders if (f := folder / "requirements.txt").is_file()), None)
        if found is not None and options.automatic:
            _tell(logging.INFO, f"model '{config.name}': '{found}' is not used, its config names an environment")
        return _named(config, files, options)
    if not options.automatic:
        return Environment(sys.executable)
    needs = requirements.find(folders)
    if needs is None:
        return Environment(sys.executable)
    return _required(config.name, needs, options)


# --- EXECUTION_ENV_PATH ---


def _named(config: ModelConfig, files: ModelFiles, options: EnvironmentOptions) -> Environment:
    model = config.name
    text = config.parameters[PATH].string_value.replace(_DIRECTORY, str(files.directory))
    # Triton looks where the server was started; beside the model is where people put it.
    path = next((each for each in (files.directory / text, Path(text).absolute()) if each.exists()), None)
    if path is None:
        raise internal(
            f"Failed to get the canonical path for {text}.",
            f"the parameter {PATH} of model '{model}' names nothing that exists, neither '{files.directory / text}' "
            f"nor '{Path(text).absolute()}'",
        )
    path = path.resolve()
    if path.is_dir():
        return _open(model, path, path, _nothing)
    held = _unpacked(model, path, options)
    try:
        return _open(model, archive.find_root(held.folder, _has_python) or held.folder, path, held.close)
    except BaseException:
        held.close()
        raise


def _unpacked(model: str, path: Path, options: EnvironmentOptions) -> Held:
    about = f"model '{model}'"

    def make(folder: Path, lock: int) -> None:
        begun = time.monotonic()
        _LOG.info("%s: unpacking the Python environment '%s'", about, path)
        archive.unpack(path, folder)
        root = archive.find_root(folder, _has_python)
        if root is None:
            raise _no_python(model, folder, path)
        # conda-pack's own program, which writes the new place into the files that name the old one.
        relocate = root / "bin" / "conda-unpack"
        if relocate.is_file():
            command = [str(root / "bin" / "python"), str(relocate)]
            code, lines = installer.run(command, root, lock, lambda line: _LOG.info("%s: %s", about, line))
            if code:
                raise internal(
                    f"{about}: conda-unpack of the environment '{path}' ended with exit code {code}. Its last "
                    "lines:\n" + "\n".join(lines)
                )
        _LOG.info("%s: unpacked the Python environment in %.1f s", about, time.monotonic() - begun)

    cache = EnvironmentCache(options.cache, options.keep, options.keep_days)
    return cache.get(f"archive-{_content(path)}", make, about)


def _open(model: str, root: Path, source: Path, close: Callable[[], None]) -> Environment:
    """The environment in a folder. Raises InferError."""
    if not _has_python(root):
        raise _no_python(model, root, source)
    variables = activated(root)
    if (root / "bin" / "activate").is_file() or any((root / "etc" / "conda" / "activate.d").glob("*.sh")):
        # What its scripts say of the place it was made in does not hold where it lies now.
        variables = activated(root, _scripted(model, root, variables))
    return Environment(str(root / "bin" / "python"), variables, close)


def _scripted(model: str, root: Path, variables: dict[str, str]) -> dict[str, str]:
    """The variables after the environment's own scripts."""
    command = ["bash", "-c", _ACTIVATE, "activate", str(root)]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, timeout=30, check=True)  # noqa: S603  the environment's own scripts
    except (OSError, subprocess.SubprocessError) as error:
        _LOG.warning("model '%s': the scripts that activate the environment '%s' failed: %s", model, root, error)
        return variables
    pairs = [each.partition(b"=") for each in done.stdout.split(b"\0") if b"=" in each]
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name not in _SHELL}


def _has_python(folder: Path) -> bool:
    return os.access(folder / "bin" / "python", os.X_OK)


def _no_python(model: str, folder: Path, source: Path) -> InferError:
    link = folder / "bin" / "python"
    seen: set[Path] = set()
    while link.is_symlink() and link not in seen:
        seen.add(link)
        link = link.parent / link.readlink()
    if seen:
        return internal(
            f"model '{model}': bin/python of the environment '{source}' is a link to '{link}', which is not here",
            "a virtual environment needs the Python that it was made with; install that, or pack a conda environment, "
            "which contains its own",
        )
    return internal(
        f"model '{model}': the environment '{source}' has no bin/python",
        f"{PATH} names a folder with a virtual or conda environment, or an archive of one (.tar.gz)",
    )


#: Digests of archives by path, size and time: a large one is not read again at each load.
_contents: dict[tuple[str, int, int, int], str] = {}


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
            if key not in _contents:
                _contents[key] = hashlib.file_digest(file, "sha256").hexdigest()[:32]
            return _contents[key]
    except OSError as error:
        raise internal(f"the environment archive '{path}' cannot be read: {error.strerror}") from error


# --- requirements beside the model ---


def _required(model: str, needs: requirements.Requirements, options: EnvironmentOptions) -> Environment:
    about = f"model '{model}'"
    if needs.plain and not needs.python and requirements.missing(needs.wanted, requirements.installed) is None:
        _tell(logging.INFO, f"{about}: the server's own Python has all that '{needs.source}' asks for")
        return Environment(sys.executable)
    version = platform.python_version()
    _check_version(needs, version)
    key = needs.digest(version, sys.implementation.cache_tag or "", platform.platform(), sys.base_prefix,
                       options.index, options.extra_index, options.find_links)  # fmt: skip
    cache = EnvironmentCache(options.cache, options.keep, options.keep_days)
    held = cache.get(f"requirements-{key}", partial(_make, needs, options, about), about)
    return Environment(str(held.folder / "bin" / "python"), activated(held.folder), held.close)


def _make(needs: requirements.Requirements, options: EnvironmentOptions, about: str, folder: Path, lock: int) -> None:
    begun = time.monotonic()
    _LOG.info("%s: making a Python environment for '%s' in '%s'", about, needs.source, folder)
    installer.install(needs, options, folder, lock, about)
    _LOG.info("%s: made the Python environment in %.1f s", about, time.monotonic() - begun)


def _check_version(needs: requirements.Requirements, version: str) -> None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415  for few models

    try:
        suits = SpecifierSet(needs.python).contains(version, prereleases=True)
    except InvalidSpecifier as error:
        raise internal(f"'{needs.source}': requires-python is '{needs.python}', expected such as '>=3.11'") from error
    if not suits:
        raise internal(
            f"'{needs.source}' wants Python {needs.python}, and this server's is {version}",
            f"pack an environment with that Python and name it in the parameter {PATH}",
        )
