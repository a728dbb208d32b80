"""The door of the repository room: which models a store holds, and where one lies on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from conch.types.model import identity


def _keep() -> None:
    """A model in its repository has nothing to give back, and nobody to tell."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a model's files look like now. Two equal ones mean that nothing has to be loaded again.

    Each part is an opaque text; parts are compared for equality alone.
    """

    #: The config file in use.
    config: str
    #: The model's files outside its version folders (labels and the like).
    shared: str
    #: Version number -> that version's folder with everything in it.
    versions: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model as a store holds it. `versions` are the numbers of its version folders, ascending."""

    name: str
    directory: Path
    #: The text of the config; None when the model has none. JSON when `override`, else protobuf text format.
    config_text: str | None
    #: Where `config_text` comes from, for error texts.
    config_source: str
    versions: tuple[int, ...]
    fingerprint: Fingerprint
    #: The config came with the load request instead of from the repository.
    override: bool = False
    #: Gives back what lies behind `directory`; called once nothing uses it any more.
    release: Callable[[], None] = _keep
    #: The repository that it lies in, where models of one name may lie in several.
    namespace: str = ""
    #: Called when the versions of this load serve, before `release`; never called when the load failed.
    served: Callable[[], None] = _keep
    #: Called when the last version of this load has answered all it had and is about to be closed, any number of times
    #: before `release`. Where that moment is not known it is left out.
    leaves: Callable[[], None] = _keep
    #: Where the model comes from when `directory` is a copy made for one load; empty where it is the place itself.
    place: str = ""
    #: Whether its versions are loaded anew even where nothing has changed.
    anew: bool = False

    @property
    def identity(self) -> str:
        """What the model is called everywhere but in its config: its name, where there are no namespaces."""
        return identity(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Survey:
    """What can be seen of a store at a glance."""

    #: Identity -> an opaque text that changes whenever a file of the model may have changed (sizes, times, tags).
    looks: Mapping[str, str]
    #: Names that more than one repository holds.
    duplicates: frozenset[str] = frozenset()
    #: False when a part of the store could not be read: what is missing in `looks` may still be there.
    complete: bool = True


class ModelStore(Protocol):
    """Models are asked for by identity; without namespaces that is their name."""

    @property
    def namespaces(self) -> Sequence[str]:
        """Empty where a name is enough."""

    def names(self) -> list[str]:
        """The identities that can be seen now, sorted. Cheap. A store that cannot be read holds none (it is logged)."""

    def duplicates(self) -> frozenset[str]:
        """Names that more than one repository holds: none of them can be loaded."""

    def survey(self) -> Survey:
        """What there is now and how it looks. Blocking, but reads no contents and never raises; asked at each poll."""

    def contents(self, name: str) -> str:
        """A text that changes when what the model's files hold changes, however they look. Blocking: it may read all of
        them. Raises InferError."""

    def fetch(self, name: str) -> StoredModel:
        """Read one model. Blocking. Raises InferError with the reason why it cannot be had."""

    def fetch_override(self, name: str, config: str, files: Mapping[str, bytes]) -> StoredModel:
        """A model with another config and, where `files` (path inside the model's folder -> content) is not empty,
        with these files in place of the repository's. Raises InferError."""
