"""The door for repository agents: code of the operator's that sees models come and go, and may stop or move them.

An agent lies in `<--repoagent-directory>/<name>/agent.py`, or comes with a package, under its name among the entry
points `conch.repository_agents`. It is a class called `TritonRepoAgent`; only `model_action` is needed:

    class TritonRepoAgent:
        def initialize(self, name: str) -> None: ...
        def model_action(self, action: str, model: AgentModel) -> str | Path | None: ...
        def finalize(self) -> None: ...

A model names its agents in `model_repository_agents` of its config. At each load of new files they are called in order
with `LOAD`: who raises ends the load; who returns a folder has the model loaded from there, and the next agent sees
that one. A folder with a `config.pbtxt` of its own brings the model's config too, unless that came with the request.
Then comes `LOAD_COMPLETE` when the model serves, or `LOAD_FAIL` when it could not be loaded; in the end `UNLOAD` when
it is taken from service, and `UNLOAD_COMPLETE` when nothing of it is used any more. What is raised after `LOAD` is
logged. Calls come from any thread, those for one load one after another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


class Action(StrEnum):
    """What happens to a model; equal to its name as a `str`."""

    LOAD = "LOAD"
    LOAD_COMPLETE = "LOAD_COMPLETE"
    LOAD_FAIL = "LOAD_FAIL"
    UNLOAD = "UNLOAD"
    UNLOAD_COMPLETE = "UNLOAD_COMPLETE"


@dataclass(slots=True)
class AgentModel:
    """One load of one model, as one agent sees it."""

    name: str
    #: Where the model lies: in its repository, or where the agent before has put it. Not to be written to.
    directory: Path
    #: The agent's parameters in the model's config, in the order of their keys.
    parameters: Mapping[str, str]
    #: The model's config as it was read, in the form of the config call's JSON.
    config: Mapping[str, Any]
    #: The agent's own: kept from LOAD to UNLOAD_COMPLETE.
    state: Any = None
    _own: list[Path] = field(default_factory=list, repr=False)

    def mutable_directory(self) -> Path:
        """An empty folder of this load's, the same at each call; removed when the model is not used any more."""
        if not self._own:
            self._own.append(Path(tempfile.mkdtemp(prefix=f"conch_agent_{self.name[:40].replace('/', '_')}_")))
        return self._own[0]


class Agent(Protocol):
    """Code that somebody else wrote: it may raise anything."""

    def model_action(self, action: str, model: AgentModel) -> object:
        """At LOAD the folder to load from instead, or None."""
