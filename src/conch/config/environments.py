"""Environments of Python models: what the operator says of them, and what makes an interpreter's environment active."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conch.types.error import InferError, internal, invalid

#: The settings of `--backend-config=python,...` that are read here.
SETTINGS: Final = frozenset({
    "environments", "environment-cache", "environment-keep", "environment-keep-days", "environment-index",
    "environment-extra-index", "environment-find-links", "environment-offline",
})  # fmt: skip
#: Variables that would lead an installer, or an interpreter of another environment, astray.
_MISLEADING: Final = ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True, slots=True)
class EnvironmentOptions:
    """How environments are made and kept."""

    #: Whether requirements that lie beside a model are installed for it.
    automatic: bool
    #: Where environments are kept, for all servers of a user.
    cache: Path
    #: So many stay, in use or not, and a day count after which what nobody has used goes.
    keep: int = 20
    keep_days: int = 30
    #: Of packages; empty for what pip and uv are set to. May contain passwords.
    index: str = ""
    extra_index: str = ""
    find_links: str = ""
    #: Take nothing from the network.
    offline: bool = False


def environment_options(settings: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> EnvironmentOptions:
    """Raises InferError where a value is none of those expected."""
    automatic = settings.get("environments", "auto")
    if automatic not in ("auto", "off"):
        raise invalid(
            f"the Python backend's setting environments={automatic} must be auto or off",
            "write --backend-config=python,environments=off to leave requirements.txt beside models alone",
        )
    return EnvironmentOptions(
        automatic == "auto",
        _cache(settings.get("environment-cache", ""), environ),
        _count(settings, "environment-keep", 20),
        _count(settings, "environment-keep-days", 30),
        settings.get("environment-index", ""),
        settings.get("environment-extra-index", ""),
        settings.get("environment-find-links", ""),
        _truth(settings, "environment-offline"),
    )


def activated(folder: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a process that runs in the environment in `folder`, as its `activate` would set them."""
    variables = {name: value for name, value in environ.items() if name not in _MISLEADING}
    if (folder / "conda-meta").is_dir():
        variables["CONDA_PREFIX"] = variables["CONDA_DEFAULT_ENV"] = str(folder)
    else:
        variables["VIRTUAL_ENV"] = str(folder)
    variables["PATH"] = _before(folder / "bin", variables.get("PATH", os.defpath))
    # As in Triton: libraries of the environment win over the machine's.
    if (folder / "lib").is_dir():
        variables["LD_LIBRARY_PATH"] = _before(folder / "lib", variables.get("LD_LIBRARY_PATH", ""))
    return variables


def without_python(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for an installer: proxies and its own settings stay, what belongs to this Python does not."""
    misleading = {*_MISLEADING, "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
    return {name: value for name, value in environ.items() if name not in misleading}


def find_uv(environ: Mapping[str, str] = os.environ) -> str:
    """The program `uv`, beside this Python or in the PATH; empty where there is none."""
    beside = Path(sys.executable).parent / "uv"
    if os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("uv", path=environ.get("PATH", os.defpath)) or ""


def _before(folder: Path, path: str) -> str:
    """`folder` first in a list of folders."""
    return os.pathsep.join([str(folder), *[each for each in path.split(os.pathsep) if each not in {"", str(folder)}]])


def _cache(given: str, environ: Mapping[str, str]) -> Path:
    if given:
        return Path(given).absolute()
    home = environ.get("XDG_CACHE_HOME") or (f"{environ['HOME']}/.cache" if environ.get("HOME") else "")
    if home:
        return Path(home).absolute() / "conch" / "environments"
    try:
        return Path.home() / ".cache" / "conch" / "environments"
    except RuntimeError as error:
        raise _no_home() from error


def _no_home() -> InferError:
    return internal(
        "there is no home folder to keep Python environments in", "give --backend-config=python,environment-cache=DIR"
    )


def _count(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, str(default))
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise invalid(
            f"the Python backend's setting {name}={text} must be a whole number from 1",
            f"write --backend-config=python,{name}={default}",
        )
    return int(text)


def _truth(settings: Mapping[str, str], name: str) -> bool:
    text = settings.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise invalid(
            f"the Python backend's setting {name}={text} must be true or false",
            f"write --backend-config=python,{name}=true",
        )
    return text in ("true", "1")
