"""A store whose models' repository agents have their say: they may stop a load, or have it come from another folder."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from conch.config.json import parse_json, to_json
from conch.config.pbtxt import parse_text
from conch.pb.model_config_pb2 import ModelConfig
from conch.repository.agent import Action, Agent, AgentModel
from conch.repository.api import Fingerprint, ModelStore, StoredModel, Survey
from conch.repository.fingerprint import Contents, stamp
from conch.repository.local import CONFIG_FILE, read_config, read_folder
from conch.types.error import InferError, internal, invalid

log = logging.getLogger("conch.repository")

_SPELLINGS = ("model_repository_agents", "modelRepositoryAgents")


class FindAgent(Protocol):
    def find(self, name: str) -> Agent:
        """Raises InferError."""


class AgentStore:
    """Wraps a store. Models without agents pass through; those with agents are one `_Visit` per content."""

    def __init__(self, inner: ModelStore, agents: FindAgent) -> None:
        self._inner = inner
        self._agents = agents
        self._contents = Contents()
        self._lock = threading.Lock()
        #: The visit that serves, by model: while nothing changes, nobody is asked again.
        self._serving: dict[str, _Visit] = {}

    @property
    def namespaces(self) -> Sequence[str]:
        return self._inner.namespaces

    def names(self) -> list[str]:
        return self._inner.names()

    def duplicates(self) -> frozenset[str]:
        return self._inner.duplicates()

    def survey(self) -> Survey:
        return self._inner.survey()

    def contents(self, name: str) -> str:
        return self._inner.contents(name)

    def fetch(self, name: str) -> StoredModel:
        return self._visited(self._inner.fetch(name))

    def fetch_override(self, name: str, config: str, files: Mapping[str, bytes]) -> StoredModel:
        return self._visited(self._inner.fetch_override(name, config, files))

    def _visited(self, stored: StoredModel) -> StoredModel:
        try:
            config = _config(stored)
            if config is None:
                return stored
            with self._lock:
                serving = self._serving.get(stored.identity)
                again = serving is not None and serving.source == _source(stored) and serving.hold()
            if serving is not None and again:
                stored.release()
                return serving.stored
            visit = _Visit(stored, config, self._serves, self._left)
        except BaseException:
            stored.release()
            raise
        try:
            visit.load(self._agents, self._contents)
        except BaseException:
            visit.drop()
            raise
        return visit.stored

    def _serves(self, visit: _Visit) -> None:
        with self._lock:
            self._serving[visit.stored.identity] = visit

    def _left(self, visit: _Visit) -> None:
        with self._lock:
            if self._serving.get(visit.stored.identity) is visit:
                del self._serving[visit.stored.identity]


@dataclass(frozen=True, slots=True)
class _Guest:
    name: str
    agent: Agent
    model: AgentModel


class _Visit:
    """One load of a model with agents, from LOAD to UNLOAD_COMPLETE. Holders drop it; the last one ends it."""

    def __init__(
        self,
        stored: StoredModel,
        config: ModelConfig,
        serves: Callable[[_Visit], None],
        left: Callable[[_Visit], None],
    ) -> None:
        self.source = _source(stored)
        self._config = config
        self._serves, self._left = serves, left
        self._lock = threading.Lock()
        self._holders = 1
        self._told_served = self._told_leaves = False
        self._guests: list[_Guest] = []
        self._give_back = stored.release
        self.stored = replace(stored, release=self.drop, served=self.served, leaves=self.leaves)

    def load(self, agents: FindAgent, contents: Contents) -> None:
        """Ask all agents. Raises InferError when one refuses; then `drop` is to follow."""
        shown = json.loads(to_json(self._config))
        stored = self.stored
        directory = stored.directory
        for wanted in self._config.model_repository_agents.agents:
            agent = agents.find(wanted.name)
            model = AgentModel(stored.name, directory, dict(sorted(wanted.parameters.items())), shown)
            self._guests.append(_Guest(wanted.name, agent, model))
            directory = _asked(wanted.name, agent, model)
        if directory != stored.directory:
            self.stored = _moved(stored, directory, contents)

    def hold(self) -> bool:
        """One holder more; False when it has ended, or is about to."""
        with self._lock:
            if not self._holders or self._told_leaves:
                return False
            self._holders += 1
            return True

    def served(self) -> None:
        with self._lock:
            first, self._told_served = not self._told_served, True
        if first:
            self._tell(Action.LOAD_COMPLETE)
            self._serves(self)

    def leaves(self) -> None:
        with self._lock:
            # Another load of the same content serves on, or may.
            if self._holders > 1 or self._told_leaves or not self._told_served:
                return
            self._told_leaves = True
        self._left(self)
        self._tell(Action.UNLOAD)

    def drop(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._left(self)
        if self._told_served:
            self.leaves()
            self._tell(Action.UNLOAD_COMPLETE)
        else:
            self._tell(Action.LOAD_FAIL)
        for guest in self._guests:
            for folder in guest.model._own:
                shutil.rmtree(folder, ignore_errors=True)
        self._give_back()

    def _tell(self, action: Action) -> None:
        for guest in self._guests:
            try:
                guest.agent.model_action(str(action), guest.model)
            except (Exception, SystemExit):
                log.exception("repository agent '%s' failed at %s of '%s'", guest.name, action, guest.model.name)


def _config(stored: StoredModel) -> ModelConfig | None:
    """The model's config if it names agents. What is wrong with it is said when the model is prepared."""
    text = stored.config_text
    if text is None or not any(spelling in text for spelling in _SPELLINGS):
        return None
    try:
        config = parse_json(text) if stored.override else parse_text(text, stored.config_source)
    except InferError:
        return None
    return config if config.model_repository_agents.agents else None


def _source(stored: StoredModel) -> tuple[Fingerprint, str | None, str]:
    # Files that came with a request lie in a folder of their own each time.
    return stored.fingerprint, stored.config_text, _place(stored)


def _place(stored: StoredModel) -> str:
    return stored.place or str(stored.directory)


def _asked(name: str, agent: Agent, model: AgentModel) -> Path:
    """Where the model lies after this agent. Raises InferError when it refuses."""
    try:
        found = agent.model_action(str(Action.LOAD), model)
    except InferError:
        raise
    except (Exception, SystemExit) as error:
        log.exception("repository agent '%s' failed at LOAD of '%s'", name, model.name)
        reason = f"{type(error).__name__}: {error}"
        raise internal(f"repository agent '{name}' refused model '{model.name}': {reason}") from error
    if found is None:
        return model.directory
    if not isinstance(found, str | Path) or not Path(found).is_dir():
        raise invalid(
            f"repository agent '{name}' returned {found!r} for model '{model.name}', expected a folder or None",
            "return the folder to load from, such as model.mutable_directory()",
        )
    return Path(found).absolute()


def _moved(stored: StoredModel, directory: Path, contents: Contents) -> StoredModel:
    """The same model with the files of another folder."""
    found = read_folder(stored.name, directory, contents)
    moved = replace(stored, directory=directory, versions=found.versions, place=_place(stored))
    config = directory / CONFIG_FILE
    if not stored.override and config.is_file():
        moved = replace(moved, config_text=read_config(config), config_source=str(config))
    looks = Fingerprint(
        stored.fingerprint.config if moved.config_source == stored.config_source else stamp(config, contents),
        stored.fingerprint.shared + found.fingerprint.shared,
        found.fingerprint.versions,
    )
    return replace(moved, fingerprint=looks)
