"""One load of a model: read it; if it is an ensemble, load the models of its steps; then load it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.attempts import OutdatedError, Report
from conch.registry.ensembles import is_ensemble
from conch.registry.lease import Read, leased
from conch.registry.promises import after
from conch.types.error import foreign
from conch.types.model import identity

if TYPE_CHECKING:
    from conch.registry.assembly import Assembly

#: The loads of a start-up, by model: each model is loaded once, whoever needs it.
Batch = dict[str, Future[None]]


class Load:
    """No thread waits: what comes next is started by the end of what came before."""

    def __init__(
        self,
        assembly: Assembly,
        name: str,
        parameters: Mapping[str, str | bytes],
        batch: Batch | None,
        path: tuple[str, ...],
        *,
        asked: bool,
        gated: bool = True,
        anew: bool = False,
    ) -> None:
        self._assembly = assembly
        self._name = name
        self._parameters = parameters
        self._batch = batch
        self._path = path
        self._asked = asked
        self._gated = gated
        self._anew = anew
        self._attempt = assembly.attempt(name)
        #: An ensemble, once it is read; its files are kept until the load is over.
        self._found: Read | None = None

    def begin(self, outer: Future[None]) -> None:
        first = self._assembly.lanes.submit(self._name, self._read)
        after([first], lambda: self._members(outer, first))

    def _read(self) -> None:
        assembly = self._assembly
        self._attempt.check()
        stored, config = assembly.loading.read(self._name, self._parameters)
        stored = replace(stored, anew=self._anew)
        found = leased(stored, config) if is_ensemble(config) else None
        try:
            assembly.note(Report(self._attempt, needs(config), self._asked, bool(self._parameters), found))
        except OutdatedError:
            stored.release()
            raise
        self._found = found
        if found is None:
            assembly.load_plain(stored, config, gated=self._gated)

    def _members(self, outer: Future[None], first: Future[None]) -> None:
        if self._found is None:
            self._end(outer, first)
            return
        config = self._found[1]
        members = list(dict.fromkeys(needs(config)))
        if self._assembly.circular(self._name):
            members = []
        futures = [self._member(each) for each in members if not self._assembly.left_alone(each)]
        after(futures, lambda: self._load(outer))

    def _member(self, name: str) -> Future[None]:
        outer, fresh = self._assembly.enter(name, self._batch, asked=False)
        if fresh:
            load = Load(self._assembly, name, {}, self._batch, (*self._path, self._name), asked=False)
            load.begin(outer)
        return outer

    def _load(self, outer: Future[None]) -> None:
        assert self._found is not None
        second = self._assembly.lanes.submit(
            self._name, partial(self._assembly.load_ensemble, self._found, self._attempt)
        )
        after([second], lambda: self._end(outer, second))

    def _end(self, outer: Future[None], last: Future[None]) -> None:
        raised = last.exception()
        error = None if raised is None else foreign(raised)
        if self._found is None or error is None:
            self._assembly.ended(self._name, error)
        if self._found is not None:
            self._found[2].drop()
        self._assembly.over(self._attempt)
        self._assembly.finish(self._name, outer, error, self._batch, self._path)


def needs(config: ModelConfig) -> list[str]:
    """The models of an ensemble's steps; those in namespaces by their identity."""
    return [identity(step.model_namespace, step.model_name) for step in config.ensemble_scheduling.step]
