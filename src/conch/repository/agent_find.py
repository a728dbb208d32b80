"""From the name of a repository agent to the agent: built in, in the operator's folder, or in an installed package."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from conch.repository.agent import Agent
from conch.repository.checksum import Checksum
from conch.types.error import InferError, internal, invalid, unsupported

log = logging.getLogger("conch.repository")

ENTRY_POINTS: Final = "conch.repository_agents"
_FILE, _CLASS = "agent.py", "TritonRepoAgent"
_BUILT_IN: Final[dict[str, Callable[[], Agent]]] = {"checksum": Checksum}


class Agents:
    """The agents in use, each made once and told of the end. Any thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._made: dict[str, tuple[Agent, str]] = {}

    def find(self, name: str) -> Agent:
        """The agent called so. Raises InferError where there is none, or it cannot be made."""
        with self._lock:
            made = self._made.get(name)
            if made is None:
                made = self._made[name] = self._make(name)
            return made[0]

    def used(self) -> list[tuple[str, str]]:
        """Name and place of the agents that models have asked for, for the table at start-up."""
        with self._lock:
            return sorted((name, place) for name, (_, place) in self._made.items())

    def close(self) -> None:
        """No model runs any more."""
        with self._lock:
            for name, (agent, _) in self._made.items():
                try:
                    getattr(agent, "finalize", _nothing)()
                except (Exception, SystemExit):
                    log.exception("repository agent '%s' failed at its end", name)
            self._made.clear()

    def _make(self, name: str) -> tuple[Agent, str]:
        kind, place = self._kind(name)
        try:
            agent = kind()
            getattr(agent, "initialize", _take)(name)
        except InferError:
            raise
        except (Exception, SystemExit) as error:
            log.exception("repository agent '%s' cannot be made", name)
            raise internal(f"repository agent '{name}' cannot be made: {type(error).__name__}: {error}") from error
        if not callable(getattr(agent, "model_action", None)):
            raise invalid(f"repository agent '{name}' has no method model_action", f"add it to {place}")
        return agent, place

    def _kind(self, name: str) -> tuple[Callable[[], Agent], str]:
        """What makes the agent, and where it lies; the operator's folder goes before all else."""
        if not name or "/" in name or name.startswith("."):
            raise invalid(f"'{name}' is no name of a repository agent", "name a folder of --repoagent-directory")
        library = f"libtritonrepoagent_{name}.so"
        file = self._directory / name / _FILE
        if file.is_file():
            return _class_of(name, file), str(file)
        for point in entry_points(group=ENTRY_POINTS, name=name):
            return _loaded(name, point.load), f"{point.value} ({ENTRY_POINTS})"
        if name in _BUILT_IN:
            return _BUILT_IN[name], "built in"
        if (self._directory / name / library).is_file():
            raise unsupported(
                f"repository agent '{name}' is the native library {self._directory / name / library}",
                f"write it in Python, as {file} with a class {_CLASS}",
            )
        raise invalid(
            f"unable to find '{library}' for repo agent '{name}', searched: {self._directory}",
            f"put a class {_CLASS} into {file}; built in: {', '.join(_BUILT_IN)}",
        )


def _class_of(name: str, file: Path) -> Callable[[], Agent]:
    module = _loaded(name, lambda: _module(name, file))
    kind = getattr(module, _CLASS, None)
    if not isinstance(kind, type):
        raise invalid(f"repository agent '{name}' has no class {_CLASS} in {file}", f"call its class {_CLASS}")
    return kind


def _module(name: str, file: Path) -> ModuleType:
    called = f"conch_repository_agent_{name}"
    spec = importlib.util.spec_from_file_location(called, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[called] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        with contextlib.suppress(KeyError):
            del sys.modules[called]
        raise
    return module


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:
        log.exception("repository agent '%s' cannot be imported", name)
        raise internal(f"repository agent '{name}' cannot be imported: {type(error).__name__}: {error}") from error


def _nothing() -> None: ...


def _take(name: str) -> None: ...
