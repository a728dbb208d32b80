"""Loads and unloads of models that depend on one another: members first, and ensembles anew when a member changes.

No thread waits for another load: what comes next is started by the end of what came before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.attempts import Attempt, Attempts, OutdatedError, Report
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
        self._attempts = Attempts()
        #: Ensembles as they were read last, to be made anew without reading them again.
        self._read: dict[str, Read] = {}
        #: Why the last load of a model failed that was read once.
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
                    self._graph.ask(name)
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
            reads = [self._read.pop(each, None) for each in gone]
            for each in gone:
                self._attempts.outdate(each)
                self._failures.pop(each, None)
                self._overridden.discard(each)
        _drop(reads)
        outer = promise()
        futures = [self.lanes.submit(each, partial(self.roster.unload, each)) for each in gone]

        def unloaded() -> None:
            errors = [error for future in futures if (error := future.exception()) is not None]
            self.renew_dependents(gone, set(gone), partial(settle, outer, errors[0] if errors else None))

        after(futures, unloaded)
        return outer

    def end(self) -> None:
        """No ensemble is made anew any more: their files are given back."""
        with self._lock:
            reads, self._read = list(self._read.values()), {}
        _drop(reads)

    # What a load does.

    def attempt(self, name: str) -> Attempt:
        """A load begins; `over` is to follow."""
        with self._lock:
            return self._attempts.begin(name)

    def over(self, attempt: Attempt) -> None:
        with self._lock:
            self._attempts.end(attempt)

    def note(self, *reports: Report) -> None:
        """These models were read. Raises OutdatedError where one was unloaded meanwhile, and then notes nothing."""
        with self._lock:
            for each in reports:
                each.attempt.check()
            before = [self._note(each) for each in reports]
        _drop(before)

    def _note(self, report: Report) -> Read | None:
        """With the lock held. Returns what is not kept any more."""
        name = report.attempt.name
        self._graph.note(name, report.needs, asked=report.asked)
        self._overridden.discard(name)
        if report.overridden:
            self._overridden.add(name)
        before = self._read.pop(name, None)
        if report.read is not None:
            stored, config, lease = report.read
            lease.hold()
            # What was forced is so once.
            self._read[name] = (replace(stored, anew=False), config, lease)
        return before

    def circular(self, name: str) -> bool:
        """Whether it needs itself."""
        with self._lock:
            return bool(self._graph.circle(name))

    def ended(self, name: str, error: InferError | None) -> None:
        with self._lock:
            self._failures.pop(name, None)
            # Names that mean nothing are not remembered: clients may think of many.
            if error is not None and self._graph.knows(name):
                self._failures[name] = InferError(error.code, error.message, error.hint)

    def left_alone(self, name: str) -> bool:
        """Whether a member stays as it is when an ensemble is loaded."""
        with self._lock:
            return name in self._overridden and bool(self.roster.table.versions(name))

    def load_plain(self, stored: StoredModel, config: ModelConfig, *, gated: bool) -> None:
        self.loading.carry_out(stored, config, gated=gated)

    def load_ensemble(self, read: Read, attempt: Attempt | None) -> None:
        """Blocking; the members have been loaded, or have failed. Without `attempt` because a member has changed.
        Raises InferError."""
        stored, config, lease = read
        name = stored.identity
        if self.ensembles is None:
            raise internal(f"model '{name}' is an ensemble, and this server was made without any")
        previous = self.roster.table.versions(name)
        members: list[ServedVersion] = []
        try:
            members = self._hold_members(name, config, attempt)
            self.ensembles.check(config, members)
        except OutdatedError:
            raise
        except InferError as error:
            let_go(members)
            self.loading.loads.failed(name)
            log.error("%s", with_hint(str(error), error.hint))  # noqa: TRY400  the text says it
            if previous and (attempt is None or not self._intact(previous)):
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

    def finish(self, name: str, outer: Future[None], error: InferError | None, batch: Batch | None,
               path: tuple[str, ...]) -> None:  # fmt: skip
        """A load is over: the ensembles that need the model follow, but for those that are waiting for it (`path`)."""
        if batch is not None:
            settle(outer, error)
        else:
            self.renew_dependents([name], {name, *path}, partial(settle, outer, error))

    def _hold_members(self, name: str, config: ModelConfig, attempt: Attempt | None) -> list[ServedVersion]:
        """As `_members`; none of them ends meanwhile."""
        while True:
            members = self._members(name, config, attempt)
            held = [member for member in members if member.hold()]
            if len(held) == len(members):
                return members
            # One was replaced between the look and the hold: its successor serves already.
            let_go(held)

    def _members(self, name: str, config: ModelConfig, attempt: Attempt | None) -> list[ServedVersion]:
        """The versions that run the steps. Raises InferError with Triton's texts."""
        with self._lock:
            if attempt is not None:
                attempt.check()
            if not self._graph.knows(name):
                raise OutdatedError(name)
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
            # It may be unloaded meanwhile.
            read[2].hold()
        try:
            self.load_ensemble(read, None)
        except InferError as error:
            # It has been logged, and is what the ensemble's own state says.
            log.debug("%s", error)
        else:
            self.ended(name, None)
        finally:
            read[2].drop()


def _drop(reads: Iterable[Read | None]) -> None:
    for read in reads:
        if read is not None:
            read[2].drop()
