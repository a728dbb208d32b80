"""Loads several models as one: all new versions of all of them are made ready, then one swap, or nothing is changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.attempts import Attempt, OutdatedError, Report
from conch.registry.ensembles import is_ensemble
from conch.registry.failure import with_hint
from conch.registry.lease import Read, leased
from conch.registry.load import needs
from conch.registry.loading import Ready
from conch.registry.promises import after, promise, settle
from conch.registry.served import ServedVersion, let_go
from conch.types.error import InferError, foreign, invalid

if TYPE_CHECKING:
    from conch.registry.assembly import Assembly

log = logging.getLogger("conch.registry")


@dataclass(slots=True)
class _Member:
    """One model of the group."""

    name: str
    parameters: Mapping[str, str | bytes]
    config: ModelConfig
    #: An ensemble, which is loaded when the models of its steps are there; its files are kept until the load is over.
    read: Read | None = None
    ready: Ready | None = None

    def needs(self) -> list[str]:
        return needs(self.config)


class Group:
    """One load of a group. No thread waits: the lanes of its models are kept until it is decided."""

    def __init__(
        self,
        assembly: Assembly,
        asked: Mapping[str, Mapping[str, str | bytes]],
        *,
        gated: bool,
        anew: frozenset[str] = frozenset(),
    ) -> None:
        """`anew` are the models that are loaded even where nothing of them has changed."""
        self._assembly = assembly
        self._asked = asked
        self._gated = gated
        self._anew = anew
        self._lock = threading.Lock()
        self._members: dict[str, _Member] = {}
        self._attempts: dict[str, Attempt] = {}
        #: Ends when other loads of these models may go on.
        self._decided = promise()

    def begin(self) -> Future[None]:
        """Returns at once. The future ends with None or an InferError that names the model that failed."""
        outer = promise()
        self._attempts = {name: self._assembly.attempt(name) for name in self._asked}
        works = {name: partial(self._make, name, parameters) for name, parameters in self._asked.items()}
        firsts = self._assembly.lanes.hold(works, self._decided)
        # The last work ends in a lane's thread, or right here: what comes next takes its time.
        after(firsts, lambda: self._spawn(outer, firsts))
        return outer

    def _spawn(self, outer: Future[None], firsts: Sequence[Future[None]]) -> None:
        second = self._assembly.lanes.submit(f"group {id(self)}", partial(self._finish, firsts))
        after([second], lambda: self._end(outer, second))

    def _end(self, outer: Future[None], second: Future[None]) -> None:
        error = second.exception()
        if not self._decided.done():
            # The server is stopping, and nothing has been decided.
            self._give_up("Server exiting")
        for member in self._members.values():
            if member.read is not None:
                member.read[2].drop()
        for attempt in self._attempts.values():
            self._assembly.over(attempt)
        if error is not None:
            settle(outer, error)
            return
        names = list(self._asked)
        self._assembly.renew_dependents(names, set(names), partial(settle, outer, None))

    def _make(self, name: str, parameters: Mapping[str, str | bytes]) -> None:
        """In the model's lane."""
        loading = self._assembly.loading
        stored, config = loading.read(name, parameters)
        stored = replace(stored, anew=name in self._anew)
        member = _Member(name, parameters, config)
        if is_ensemble(config):
            member.read = leased(stored, config)
        else:
            member.ready = loading.make(stored, config, gated=self._gated)
        with self._lock:
            self._members[name] = member

    def _finish(self, firsts: Sequence[Future[None]]) -> None:
        """All are made, or have failed. Raises InferError."""
        for name, first in zip(self._asked, firsts, strict=True):
            raised = first.exception()
            if raised is not None:
                raise self._failed(name, raised)
        for member in self._ensembles():
            try:
                self._make_ensemble(member)
            except BaseException as raised:
                raise self._failed(member.name, raised) from raised
        assembly = self._assembly
        members = list(self._members.values())
        try:
            assembly.note(*[self._report(member) for member in members])
        except OutdatedError as outdated:
            name = next(name for name, each in self._attempts.items() if each.outdated)
            raise self._failed(name, outdated) from outdated
        try:
            assembly.loading.commit([member.ready for member in members if member.ready is not None])
            for member in members:
                assembly.ended(member.name, None)
            log.info("successfully loaded together: %s", ", ".join(self._members))
        finally:
            settle(self._decided, None)

    def _report(self, member: _Member) -> Report:
        return Report(
            self._attempts[member.name], member.needs(), asked=True, overridden=bool(member.parameters),
            read=member.read,
        )  # fmt: skip

    def _failed(self, name: str, raised: BaseException) -> InferError:
        error = foreign(raised)
        self._give_up(f"'{name}' of the same group could not be loaded")
        self._assembly.ended(name, error)
        others = ", ".join([f"'{each}'" for each in self._asked if each != name])
        text = f"failed to load {len(self._asked)} models together, none was changed: {error.message}"
        log.error("%s", with_hint(text.rstrip("\n"), error.hint))
        return InferError(error.code, text, error.hint or (f"mend it, or load {others} without it" if others else ""))

    def _give_up(self, why: str) -> None:
        for member in self._members.values():
            if member.ready is not None:
                self._assembly.loading.discard(member.ready, why)
        settle(self._decided, None)

    # ---- ensembles

    def _ensembles(self) -> list[_Member]:
        """Those of the group, each after those that it needs. Raises InferError for a circle."""
        left = {name: member for name, member in self._members.items() if member.read is not None}
        order = []
        while left:
            found = next((member for member in left.values() if not left.keys() & set(member.needs())), None)
            if found is None:
                name = next(iter(left))
                raise self._failed(name, invalid(f"circular dependency between ensembles: {' -> '.join(left)}"))
            order.append(left.pop(found.name))
        return order

    def _make_ensemble(self, member: _Member) -> None:
        ensembles, loading = self._assembly.ensembles, self._assembly.loading
        if ensembles is None:
            raise invalid(f"model '{member.name}' is an ensemble, and this server was made without any")
        assert member.read is not None
        stored, config, lease = member.read
        steps = self._hold_steps(member)
        try:
            ensembles.check(config, steps)
            bound = "".join([f"|{each.identity}:{each.version}#{each.serial}" for each in steps])
            previous = self._assembly.roster.table.versions(member.name)
            load = partial(ensembles.load, steps, previous)
            lease.hold()
            member.ready = loading.make(stored, config, load, bound, gated=self._gated)
        finally:
            let_go(steps)

    def _hold_steps(self, member: _Member) -> list[ServedVersion]:
        """The versions that run the steps: new ones of the group where they are in it, else what serves."""
        while True:
            steps = [
                self._step(member.name, name, step.model_version)
                for name, step in zip(member.needs(), member.config.ensemble_scheduling.step, strict=True)
            ]
            held = [each for each in steps if each.hold()]
            if len(held) == len(steps):
                return steps
            let_go(held)

    def _step(self, ensemble: str, name: str, wanted: int) -> ServedVersion:
        versions = dict(self._assembly.roster.table.versions(name))
        mate = self._members.get(name)
        if mate is not None and mate.ready is not None:
            arrival = mate.ready.arrival
            versions = {number: each for number, each in versions.items() if number in arrival.todo.keep}
            versions.update(arrival.made)
        if not versions:
            raise invalid(
                f"ensemble '{ensemble}' depends on '{name}' which has no loaded version.",
                f"add '{name}' to the group, or load it before",
            )
        number = wanted if wanted > 0 else max(versions)
        if number not in versions:
            raise invalid(
                f"ensemble '{ensemble}' depends on '{name}' whose required version {number} is not loaded.",
                f"loaded are {', '.join(map(str, sorted(versions)))}: see its version_policy",
            )
        return versions[number]
