"""Loads and unloads of models that depend on one another: members first, and ensembles anew when a member changes.

No thread waits for another load: what comes next is started by the end of what came before.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial

from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.dependents import Dependents, lacking
from conch.registry.ensembles import EnsembleLoader, Held, is_ensemble
from conch.registry.failure import as_infer_error, with_hint
from conch.registry.lanes import Lanes
from conch.registry.loading import Lease, Loading
from conch.registry.promises import after, promise, settle
from conch.registry.roster import Roster
from conch.registry.served import ServedVersion
from conch.repository.api import StoredModel
from conch.types.error import InferError, internal, invalid
from conch.types.model import identity

log = logging.getLogger("conch.registry")

#: The loads of a start-up, by model: each model is loaded once, whoever needs it.
Batch = dict[str, Future[None]]
#: An ensemble as it was read; the lease keeps its files, and is held once more for each load.
Read = tuple[StoredModel, ModelConfig, Lease]


class Assembly:
    """Any thread. The futures end with None or an InferError."""

    def __init__(self, lanes: Lanes, loading: Loading, roster: Roster, ensembles: EnsembleLoader | None) -> None:
        self._lanes = lanes
        self._loading = loading
        self._roster = roster
        self._ensembles = ensembles
        self._lock = threading.Lock()
        self._graph = Dependents()
        #: Ensembles as they were read last, to be made anew without reading them again.
        self._read: dict[str, Read] = {}
        #: Why the last load of a model failed.
        self._failures: dict[str, InferError] = {}
        #: Models that were loaded with parameters: the load of an ensemble leaves them as they are.
        self._overridden: set[str] = set()

    def load(self, name: str, parameters: Mapping[str, str | bytes], batch: Batch | None = None) -> Future[None]:
        """Load the model, those that it needs before it, and afterwards make anew the ensembles that need it.

        With `batch` all ensembles are being loaded anyway, and none is made anew.
        """
        with self._lock:
            begun = None if batch is None else batch.get(name)
            if begun is not None:
                self._graph_asked(name)
                return begun
            outer = promise()
            if batch is not None:
                batch[name] = outer
        _Load(self, name, parameters, batch, (), asked=True).begin(outer)
        return outer

    def unload(self, name: str, *, cascade: bool = False) -> Future[None]:
        """With `cascade`, models that only this one needed, and that nobody asked for, go with it."""
        with self._lock:
            gone = self._graph.remove(name, cascade=cascade) or [name]
            for each in gone:
                self._forget(each)
        outer = promise()
        futures = [self._lanes.submit(each, partial(self._roster.unload, each)) for each in gone]

        def unloaded() -> None:
            errors = [error for future in futures if (error := future.exception()) is not None]
            self._renew_dependents(gone, set(gone), partial(settle, outer, errors[0] if errors else None))

        after(futures, unloaded)
        return outer

    # What a load does.

    def note(self, name: str, needs: list[str], *, asked: bool, overridden: bool) -> bool:
        """A model was read. Returns whether it needs itself."""
        with self._lock:
            self._graph.note(name, needs, asked=asked)
            self._overridden.discard(name)
            if overridden:
                self._overridden.add(name)
            return bool(self._graph.circle(name))

    def ended(self, name: str, error: InferError | None) -> None:
        with self._lock:
            if error is None:
                self._failures.pop(name, None)
            else:
                self._failures[name] = error

    def left_alone(self, name: str) -> bool:
        """Whether a member stays as it is when an ensemble is loaded."""
        with self._lock:
            return name in self._overridden and bool(self._roster.table.versions(name))

    def load_plain(self, stored: StoredModel, config: ModelConfig) -> None:
        self._loading.carry_out(stored, config)

    def load_ensemble(self, read: Read, *, again: bool = False) -> None:
        """Blocking; the members have been loaded, or have failed. `again`: a member has changed. Raises InferError."""
        stored, config, lease = read
        name = stored.identity
        if self._ensembles is None:
            raise internal(f"model '{name}' is an ensemble, and this server was made without any")
        previous = self._roster.table.versions(name)
        try:
            members = self._members(name, config)
            self._ensembles.check(config, members)
        except InferError as error:
            log.error("%s", with_hint(str(error), error.hint))  # noqa: TRY400  the text says it
            if previous and (again or not self._intact(previous)):
                self._roster.unload(name)
            elif not previous:
                self._roster.refused(name, error, known=True)
            self.ended(name, error)
            raise invalid(f"load failed for model '{name}': {error.message}\n", error.hint) from error
        bound = "".join([f"|{member.identity}:{member.version}#{member.serial}" for member in members])
        load = partial(self._ensembles.load, members, previous)
        lease.hold()
        self._loading.carry_out(stored, config, load, bound)

    def keep(self, stored: StoredModel, config: ModelConfig) -> Read:
        """Remember an ensemble, and its files, to make it anew."""
        lease = Lease(stored.release)
        read = (dataclasses.replace(stored, release=lease.drop), config, lease)
        with self._lock:
            before = self._read.get(stored.identity)
            self._read[stored.identity] = read
        if before is not None:
            before[2].drop()
        return read

    def finish(self, name: str, outer: Future[None], error: InferError | None, batch: Batch | None,
               path: tuple[str, ...]) -> None:  # fmt: skip
        """A load is over: the ensembles that need the model follow, but for those that are waiting for it (`path`)."""
        if batch is not None:
            settle(outer, error)
        else:
            self._renew_dependents([name], {name, *path}, partial(settle, outer, error))

    def _members(self, name: str, config: ModelConfig) -> list[ServedVersion]:
        """The versions that run the steps. Raises InferError with Triton's texts."""
        with self._lock:
            if not self._graph.knows(name):
                raise invalid(
                    "Newer operation has been applied to the model lifecycle, current load operation is out-dated."
                )
            circle = self._graph.circle(name)
            needs = _needs(config)
            missing = [each for each in needs if not self._graph.knows(each)]
            failures = {each: self._failures.get(each) for each in needs}
            ensembles = {each for each in needs if self._graph.needs(each)}
        if circle:
            raise invalid(f"circular dependency between ensembles: {name} -> ... -> {circle} -> {name}")
        if missing:
            raise invalid(
                f"ensemble {name} contains models that are not available or ambiguous: {missing[0]}",
                f"not loaded, and not to be found in a model repository: {', '.join(missing)}",
            )
        members = []
        for step in config.ensemble_scheduling.step:
            model = identity(step.model_namespace, step.model_name)
            versions = self._roster.table.versions(model)
            depends = f"ensemble '{name}' depends on '{model}'"
            if not versions:
                raise lacking(depends, model, failures[model], ensemble=model in ensembles)
            number = step.model_version if step.model_version > 0 else max(versions)
            if number not in versions:
                raise invalid(
                    f"{depends} whose required version {number} is not loaded.",
                    f"loaded are {', '.join(map(str, versions))}: see its version_policy",
                )
            members.append(versions[number])
        return members

    def _intact(self, previous: Mapping[int, ServedVersion]) -> bool:
        """Whether an ensemble's members still serve, so that it can go on as it is."""
        held = [served.loaded.members for served in previous.values() if isinstance(served.loaded, Held)]
        return all(
            self._roster.table.versions(member.identity).get(member.version) is member
            for members in held
            for member in members
        )

    def _renew_dependents(self, names: Iterable[str], but: set[str], then: Callable[[], None]) -> None:
        """Make anew the ensembles that need one of these, then those that need them, and so on; then call `then`."""
        with self._lock:
            levels = self._graph.affected(names, but)
        self._renew_levels(levels, then)

    def _renew_levels(self, levels: list[list[str]], then: Callable[[], None]) -> None:
        if not levels:
            then()
            return
        futures = [self._lanes.submit(each, partial(self._renew, each)) for each in levels[0]]
        after(futures, lambda: self._renew_levels(levels[1:], then))

    def _renew(self, name: str) -> None:
        with self._lock:
            read = self._read.get(name)
        if read is None:
            return
        try:
            self.load_ensemble(read, again=True)
        except InferError as error:
            # It has been logged, and is what the ensemble's own state says.
            log.debug("%s", error)
        else:
            self.ended(name, None)

    def _graph_asked(self, name: str) -> None:
        if self._graph.knows(name):
            self._graph.note(name, self._graph.needs(name), asked=True)

    def _forget(self, name: str) -> None:
        self._failures.pop(name, None)
        self._overridden.discard(name)
        read = self._read.pop(name, None)
        if read is not None:
            read[2].drop()


class _Load:
    """One load: read, load the members, load."""

    def __init__(
        self,
        assembly: Assembly,
        name: str,
        parameters: Mapping[str, str | bytes],
        batch: Batch | None,
        path: tuple[str, ...],
        *,
        asked: bool,
    ) -> None:
        self._assembly = assembly
        self._name = name
        self._parameters = parameters
        self._batch = batch
        self._path = path
        self._asked = asked
        #: An ensemble, once it is read.
        self._found: Read | None = None
        self._circular = False

    def begin(self, outer: Future[None]) -> None:
        first = self._assembly._lanes.submit(self._name, self._read)
        after([first], lambda: self._members(outer, first))

    def _read(self) -> None:
        assembly, name = self._assembly, self._name
        stored, config = assembly._loading.read(name, self._parameters)
        needs = _needs(config)
        self._circular = assembly.note(name, needs, asked=self._asked, overridden=bool(self._parameters))
        if is_ensemble(config):
            self._found = assembly.keep(stored, config)
        else:
            assembly.load_plain(stored, config)

    def _members(self, outer: Future[None], first: Future[None]) -> None:
        if self._found is None:
            self._end(outer, first)
            return
        config = self._found[1]
        needs = list(dict.fromkeys(_needs(config)))
        futures = (
            [] if self._circular else [self._member(each) for each in needs if not self._assembly.left_alone(each)]
        )
        after(futures, lambda: self._load(outer))

    def _member(self, name: str) -> Future[None]:
        batch = self._batch
        with self._assembly._lock:
            begun = None if batch is None else batch.get(name)
            if begun is not None:
                return begun
            outer = promise()
            if batch is not None:
                batch[name] = outer
        load = _Load(self._assembly, name, {}, batch, (*self._path, self._name), asked=False)
        load.begin(outer)
        return outer

    def _load(self, outer: Future[None]) -> None:
        assert self._found is not None
        second = self._assembly._lanes.submit(self._name, partial(self._assembly.load_ensemble, self._found))
        after([second], lambda: self._end(outer, second))

    def _end(self, outer: Future[None], last: Future[None]) -> None:
        raised = last.exception()
        error = None if raised is None else as_infer_error(raised)
        if self._found is None or error is None:
            self._assembly.ended(self._name, error)
        self._assembly.finish(self._name, outer, error, self._batch, self._path)


def _needs(config: ModelConfig) -> list[str]:
    """The models of an ensemble's steps; those in namespaces by their identity."""
    return [identity(step.model_namespace, step.model_name) for step in config.ensemble_scheduling.step]
