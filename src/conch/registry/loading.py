"""One load of a model, from its folder to versions that serve, all or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from conch.observe.loads import Loads
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.crew import Change
from conch.registry.failure import tell, with_hint
from conch.registry.lease import Lease
from conch.registry.lifecycle import Key, Plan
from conch.registry.outcomes import Gate, let_through, outcome_of, rejected_by
from conch.registry.roster import Arrival, Roster
from conch.registry.served import ServedVersion
from conch.registry.threads import Threads
from conch.repository.api import ModelStore, StoredModel
from conch.repository.override import PREFIX
from conch.repository.versions import select
from conch.types.error import Code, InferError, foreign, internal, invalid, unavailable
from conch.types.model import identity

log = logging.getLogger("conch.registry")

#: A model's config from what the store read: filled in, normalised, checked; its backend has not completed it.
Prepare = Callable[[StoredModel], ModelConfig]


class LoadVersion(Protocol):
    def __call__(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None], /
    ) -> ServedVersion: ...


class VersionLoader(Protocol):
    def load(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None], /
    ) -> ServedVersion: ...


@runtime_checkable
class Lender(Protocol):
    """A loader that loads so many versions at a time, and more while models wait for loads."""

    def lend(self, until: Future[None], /) -> None: ...


class Loading:
    """Carries loads out. Calls for one model must not overlap; calls for different models may."""

    def __init__(
        self,
        store: ModelStore,
        prepare: Prepare,
        loader: VersionLoader,
        roster: Roster,
        threads: int,
        loads: Loads | None = None,
        gate: Gate | None = None,
    ) -> None:
        #: What became of the loads.
        self.loads = loads or Loads()
        self._gate = gate or let_through
        self._store = store
        self._prepare = prepare
        self._loader = loader
        self._roster = roster
        self.threads = Threads(max(1, threads), "conch-version")

    def carry_out(
        self,
        stored: StoredModel,
        config: ModelConfig,
        load: LoadVersion | None = None,
        identity: str = "",
        *,
        gated: bool = True,
    ) -> None:
        """Load what was read. Blocking. Raises InferError with Triton's texts; then what served goes on serving.

        `load` makes a version, and `identity` decides beside its files how it behaves.
        """
        self.commit([self.make(stored, config, load, identity, gated=gated)])

    def make(
        self,
        stored: StoredModel,
        config: ModelConfig,
        load: LoadVersion | None = None,
        identity: str = "",
        *,
        gated: bool = True,
    ) -> Ready:
        """The first half of `carry_out`: all versions are made, and none serves yet. Then `commit` or `discard`."""
        name = stored.identity
        lease = Lease(stored.release, stored.leaves)
        try:
            wanted = self._wanted(stored, config, identity)
            todo = self._roster.begin(name, wanted, anew=stored.anew)
            made, changes = self._load_versions(stored, config, todo, wanted, lease, load or self._loader.load, gated)
        except BaseException as raised:
            self.loads.failed(name, rejected=isinstance(raised, RejectedError))
            lease.drop()
            raise
        return Ready(Arrival(name, todo, made, stored.versions), changes, stored.served, lease)

    def commit(self, loads: Sequence[Ready]) -> None:
        """Swap all of them in one step. Raises InferError where instances could not be put to work after that."""
        self._roster.serve([each.arrival for each in loads])
        errors = []
        for each in loads:
            error = _put_in_force(each)
            if error is not None:
                errors.append(error)
                self.loads.failed(each.arrival.name)
                continue
            if each.arrival.made:
                log.info("successfully loaded '%s'", each.arrival.name)
            elif each.changes:
                log.info("successfully changed the instances of '%s'", each.arrival.name)
            self.loads.succeeded(each.arrival.name)
        for each in loads:
            each.lease.drop()
        if errors:
            raise errors[0]

    def discard(self, load: Ready, why: str) -> None:
        """It is not wanted any more: what served goes on serving."""
        for change in load.changes:
            change.cancel()
        self._roster.failed(load.arrival.name, load.arrival.todo, load.arrival.made.values(), {}, why)
        load.lease.drop()

    def lend(self, until: Future[None]) -> None:
        """See `Registry.lend`."""
        self.threads.lend(until)
        if isinstance(self._loader, Lender):
            self._loader.lend(until)

    def end(self) -> None:
        """Versions that have not begun to load never will."""
        self.threads.end(cancel=True)

    def read(self, name: str, parameters: Mapping[str, str | bytes]) -> tuple[StoredModel, ModelConfig]:
        try:
            stored = self._fetch(name, parameters)
            try:
                config = self._prepare(stored)
                self._name_members(stored, config)
            except BaseException:
                stored.release()
                raise
            return stored, config
        except BaseException as raised:
            error = foreign(raised)
            reason = with_hint(error.message, error.hint)
            polled = reason.startswith("failed to poll model")
            log.error("%s", reason if polled else f"Poll failed for model directory '{name}': {reason}")  # noqa: TRY400  the text says it
            self.loads.failed(name)
            # A mistake in the request (a name that is nowhere, a bad override) says nothing of the server's health.
            if not parameters and error.code is not Code.NOT_FOUND:
                self._roster.refused(name, error, known=False)
            # What is wrong with the request itself is told in its own words.
            if parameters and error.code is Code.INVALID_ARG and error.message.startswith("Invalid "):
                raise error from raised
            raise internal(f"failed to load '{name}', failed to poll from model repository", reason) from raised

    def _fetch(self, name: str, parameters: Mapping[str, str | bytes]) -> StoredModel:
        if not parameters:
            return self._store.fetch(name)
        config = parameters.get("config", "")
        files = {key.removeprefix(PREFIX): value for key, value in parameters.items() if key.startswith(PREFIX)}
        return self._store.fetch_override(
            name,
            config if isinstance(config, str) else config.decode(),
            {path: value.encode() if isinstance(value, str) else value for path, value in files.items()},
        )

    def _name_members(self, stored: StoredModel, config: ModelConfig) -> None:
        """Which models the steps of an ensemble mean: those of its own namespace, else the only one of that name."""
        spaces = self._store.namespaces
        if not spaces or not config.HasField("ensemble_scheduling"):
            return
        seen = set(self._store.names())
        for step in config.ensemble_scheduling.step:
            name = step.model_name
            found = [space for space in spaces if identity(space, name) in seen]
            near = stored.namespace in found or len(found) != 1
            step.model_namespace = step.model_namespace or (stored.namespace if near else found[0])

    def _wanted(self, stored: StoredModel, config: ModelConfig, identity: str) -> dict[int, Key]:
        name = stored.identity
        try:
            selected, missing = select(config.version_policy, stored.versions, name)
        except InferError as error:
            log.error("failed to load model '%s': %s", name, with_hint(error.message, error.hint))  # noqa: TRY400
            self._roster.refused(name, error, known=True)
            raise invalid(f"load failed for model '{name}': {error.message}\n", error.hint) from error
        for text in missing:
            log.error("%s", text)
        plain = ModelConfig()
        plain.CopyFrom(config)
        plain.ClearField("version_policy")
        instances = ModelConfig(instance_group=plain.instance_group).SerializeToString(deterministic=True)
        plain.ClearField("instance_group")
        settings = plain.SerializeToString(deterministic=True)
        looks = stored.fingerprint
        return {
            number: Key(
                stored.place or str(stored.directory),
                settings,
                looks.shared + identity,
                looks.versions.get(number, ""),
                instances,
            )
            for number in selected
        }

    def _load_versions(
        self,
        stored: StoredModel,
        config: ModelConfig,
        todo: Plan,
        wanted: Mapping[int, Key],
        lease: Lease,
        load: LoadVersion,
        gated: bool,
    ) -> tuple[dict[int, ServedVersion], list[Change]]:
        """Load all of them side by side, and open what changes; if one fails, give up the others and raise."""
        name = stored.identity
        made: dict[int, ServedVersion] = {}
        changes: list[Change] = []
        reasons: dict[int, InferError] = {}
        futures: dict[int, Future[ServedVersion]] = {}
        changing: dict[int, Future[Change]] = {}
        for number in todo.load:
            log.info("loading: %s:%d", name, number)
            lease.hold()
            try:
                futures[number] = self.threads.submit(load, config, stored, number, wanted[number], lease.drop)
            except RuntimeError as error:
                lease.drop()
                reasons[number] = unavailable(str(error))
        serving = self._roster.table.versions(name)
        for number in todo.change:
            try:
                changing[number] = self.threads.submit(serving[number].change, config, wanted[number])
            except RuntimeError as error:
                reasons[number] = unavailable(str(error))
            except KeyError:
                # It has been unloaded, as the server is stopping.
                reasons[number] = unavailable("Server exiting")
        for number, future in futures.items():
            served = outcome_of(future, f"failed to load '{name}' version {number}", number, reasons)
            if served is None:
                lease.drop()
            else:
                served.leave = lease.leave
                made[number] = served
        for number, coming in changing.items():
            change = outcome_of(coming, f"failed to change the instances of '{name}' version {number}", number, reasons)
            if change is not None:
                changes.append(change)
        rejected = rejected_by(self._gate, name, made, serving) if gated and not reasons else {}
        reasons.update(rejected)
        if not reasons:
            return made, changes
        for change in changes:
            change.cancel()
        self._roster.failed(name, todo, made.values(), reasons)
        log.info("failed to load '%s'", name)
        parts = [
            f"version {number} is at {'READY' if number in todo.change else 'UNAVAILABLE'} state: {error};"
            for number, error in reasons.items()
        ]
        hints = "; ".join(dict.fromkeys([error.hint for error in reasons.values() if error.hint]))
        failed = RejectedError if rejected else InferError
        raise failed(Code.INVALID_ARG, f"load failed for model '{name}': {''.join(parts)}\n", hints)


@dataclass(frozen=True, slots=True)
class Ready:
    """A load that only has to be put in force."""

    arrival: Arrival
    changes: Sequence[Change]
    #: Tells where the files came from that they serve.
    served: Callable[[], None]
    #: Keeps the files until it is decided, even where no version needs them: it is the load itself that ends then.
    lease: Lease


def _put_in_force(load: Ready) -> InferError | None:
    """What follows the swap; all of it is done, whatever foreign code says. Returns what went wrong with instances."""
    name = load.arrival.name
    try:
        load.served()
    except BaseException:
        log.exception("'%s' is served, and who is to hear of it could not be told", name)
    failed = None
    for change in load.changes:
        try:
            change.commit()
        except BaseException as raised:  # noqa: BLE001  other changes and models are not to suffer
            cause = foreign(raised)
            tell(log, f"failed to change the instances of '{name}': {cause}", cause.hint)
            failed = internal(f"failed to change the instances of '{name}': {cause.message}", cause.hint)
    return failed


class RejectedError(InferError):
    """The gate would not let a version through."""
