"""Loads and unloads of models that depend on one another: members first, and ensembles anew when a member changes.

No thread waits for another load: what comes next is started by the end of what came before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial

from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.dependents import Dependents, lacking
from conch.registry.ensembles import EnsembleLoader, Held
from conch.registry.failure import with_hint
from conch.registry.groups import Group
from conch.registry.lanes import Lanes
from conch.registry.lease import Read
from conch.registry.load import Batch, Load, needs
from conch.registry.loading import Loading
from conch.registry.promises import after, promise, settle
from conch.registry.roster import Roster
from conch.registry.served import ServedVersion, let_go
from conch.repository.api import StoredModel
from conch.repository.override import forced, split
from conch.types.error import InferError, internal, invalid
from conch.types.model import identity

log = logging.getLogger("conch.registry")


class Assembly:
    """Any thread. The futures end with None or an InferError."""

    def __init__(self, lanes: Lanes, loading: Loading, roster: Roster, ensembles: EnsembleLoader | None) -> None:
        self.lanes = lanes
        self.loading = loading
        self.roster = roster
        self.ensembles = ensembles
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
        outer, fresh = self.enter(name, batch, asked=True)
        if fresh:
            gated, plain = split(parameters)
            Load(self, name, plain, batch, (), asked=True, gated=gated, anew=forced(parameters)).begin(outer)
        return outer

    def enter(self, name: str, batch: Batch | None, *, asked: bool) -> tuple[Future[None], bool]:
        """The future of a load; False where the batch has begun it already."""
        with self._lock:
            begun = None if batch is None else batch.get(name)
            if begun is not None:
                if asked:
                    self._graph_asked(name)
                return begun, False
            outer = promise()
            if batch is not None:
                batch[name] = outer
        return outer, True

    def load_group(self, asked: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]:
        """Load all of these or none, swapped in one step; then the ensembles that need them are made anew, once."""
        split_all = {name: split(parameters) for name, parameters in asked.items()}
        # One word for all: what is swapped together is let through together.
        gated = all(gated for gated, _ in split_all.values())
        anew = frozenset(name for name, parameters in asked.items() if forced(parameters))
        return Group(self, {name: plain for name, (_, plain) in split_all.items()}, gated=gated, anew=anew).begin()

    def unload(self, name: str, *, cascade: bool = False) -> Future[None]:
        """With `cascade`, models that only this one needed, and that nobody asked for, go with it."""
        with self._lock:
            gone = self._graph.remove(name, cascade=cascade) or [name]
            for each in gone:
                self._forget(each)
        outer = promise()
        futures = [self.lanes.submit(each, partial(self.roster.unload, each)) for each in gone]

        def unloaded() -> None:
            errors = [error for future in futures if (error := future.exception()) is not None]
            self.renew_dependents(gone, set(gone), partial(settle, outer, errors[0] if errors else None))

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
            return name in self._overridden and bool(self.roster.table.versions(name))

    def load_plain(self, stored: StoredModel, config: ModelConfig, *, gated: bool) -> None:
        self.loading.carry_out(stored, config, gated=gated)

    def load_ensemble(self, read: Read, *, again: bool = False) -> None:
        """Blocking; the members have been loaded, or have failed. `again`: a member has changed. Raises InferError."""
        stored, config, lease = read
        name = stored.identity
        if self.ensembles is None:
            raise internal(f"model '{name}' is an ensemble, and this server was made without any")
        previous = self.roster.table.versions(name)
        members: list[ServedVersion] = []
        try:
            members = self._hold_members(name, config)
            self.ensembles.check(config, members)
        except InferError as error:
            let_go(members)
            self.loading.loads.failed(name)
            log.error("%s", with_hint(str(error), error.hint))  # noqa: TRY400  the text says it
            if previous and (again or not self._intact(previous)):
                self.roster.unload(name)
            elif not previous:
                self.roster.refused(name, error, known=True)
            self.ended(name, error)
            raise invalid(f"load failed for model '{name}': {error.message}\n", error.hint) from error
        bound = "".join([f"|{member.identity}:{member.version}#{member.serial}" for member in members])
        load = partial(self.ensembles.load, members, previous)
        lease.hold()
        try:
            self.loading.carry_out(stored, config, load, bound)
        finally:
            # The ensemble, if there is one now, holds them itself.
            let_go(members)

    def keep(self, read: Read) -> None:
        """Remember an ensemble, and its files, to make it anew."""
        with self._lock:
            before = self._read.get(read[0].identity)
            self._read[read[0].identity] = read
        if before is not None:
            before[2].drop()

    def finish(self, name: str, outer: Future[None], error: InferError | None, batch: Batch | None,
               path: tuple[str, ...]) -> None:  # fmt: skip
        """A load is over: the ensembles that need the model follow, but for those that are waiting for it (`path`)."""
        if batch is not None:
            settle(outer, error)
        else:
            self.renew_dependents([name], {name, *path}, partial(settle, outer, error))

    def _hold_members(self, name: str, config: ModelConfig) -> list[ServedVersion]:
        """As `_members`; none of them ends meanwhile."""
        while True:
            members = self._members(name, config)
            held = [member for member in members if member.hold()]
            if len(held) == len(members):
                return members
            # One was replaced between the look and the hold: its successor serves already.
            let_go(held)

    def _members(self, name: str, config: ModelConfig) -> list[ServedVersion]:
        """The versions that run the steps. Raises InferError with Triton's texts."""
        with self._lock:
            if not self._graph.knows(name):
                raise invalid(
                    "Newer operation has been applied to the model lifecycle, current load operation is out-dated."
                )
            circle = self._graph.circle(name)
            wanted = needs(config)
            missing = [each for each in wanted if not self._graph.knows(each)]
            failures = {each: self._failures.get(each) for each in wanted}
            ensembles = {each for each in wanted if self._graph.needs(each)}
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
            versions = self.roster.table.versions(model)
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
            self.roster.table.versions(member.identity).get(member.version) is member
            for members in held
            for member in members
        )

    def renew_dependents(self, names: Iterable[str], but: set[str], then: Callable[[], None]) -> None:
        """Make anew the ensembles that need one of these, then those that need them, and so on; then call `then`."""
        with self._lock:
            levels = self._graph.affected(names, but)
        self._renew_levels(levels, then)

    def _renew_levels(self, levels: list[list[str]], then: Callable[[], None]) -> None:
        if not levels:
            then()
            return
        futures = [self.lanes.submit(each, partial(self._renew, each)) for each in levels[0]]
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
