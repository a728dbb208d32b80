"""What is servable now: loads and unloads models, and knows which version answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from conch.config.server import RepositoryOptions
from conch.observe.loads import Loads
from conch.registry.assembly import Assembly
from conch.registry.attempts import OutdatedError
from conch.registry.ensembles import EnsembleLoader
from conch.registry.lanes import Lanes
from conch.registry.load import Batch
from conch.registry.loading import Loading, Prepare, VersionLoader
from conch.registry.outcomes import Gate
from conch.registry.promises import after, promise, settle
from conch.registry.reaper import Post, Reaper
from conch.registry.roster import Roster
from conch.registry.served import ServedVersion
from conch.registry.stopping import drain
from conch.repository.api import ModelStore
from conch.types.error import internal, invalid, unavailable
from conch.types.model import IndexEntry, identity

log = logging.getLogger("conch.registry")

#: Threads that lead loads and unloads; the versions themselves are loaded by `load_threads` others.
_LANE_THREADS = 16


class Registry:
    """All calls from any thread.

    `post` runs a call on the event loop, where requests are submitted: a version that was swapped out refuses
    requests only after the loop has seen the swap.
    """

    def __init__(
        self,
        store: ModelStore,
        prepare: Prepare,
        loader: VersionLoader,
        options: RepositoryOptions,
        post: Post,
        ensembles: EnsembleLoader | None = None,
        loads: Loads | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._store = store
        self._options = options
        self._reaper = Reaper(post)
        self._roster = Roster(self._reaper, store.namespaces)
        self._namespaces = tuple(store.namespaces)
        self._lanes = Lanes(max(_LANE_THREADS, options.load_threads))
        self._loading = Loading(store, prepare, loader, self._roster, options.load_threads, loads, gate)
        self._assembly = Assembly(self._lanes, self._loading, self._roster, ensembles)
        self._table = self._roster.table
        self._started = False

    @property
    def generation(self) -> int:
        """Grows whenever the set of servable versions changes."""
        return self._table.generation

    def find(self, name: str, version: str) -> ServedVersion:
        """The version that answers; an empty `version` is the highest that is ready. Raises InferError."""
        served = self._table.find(name, version)
        if served is not None:
            return served
        if not self._started:
            raise unavailable("Server not ready")
        if self._namespaces:
            name = self._roster.resolve(name)
            served = self._table.find(name, version)
            if served is not None:
                return served
        return self._roster.find(name, version)

    def ready_versions(self, name: str = "") -> list[ServedVersion]:
        """What serves now, of one model or of all."""
        if not name:
            return list(self._table.all())
        if self._namespaces:
            known = self._roster.identities(name)
            name = known[0] if len(known) == 1 else name
        return list(self._table.versions(name).values())

    def ready(self) -> bool:
        """The server's readiness; strict: every model known is ready and its runtime can answer."""
        return self._started and (not self._options.strict_readiness or self._roster.settled())

    def index(self, ready_only: bool) -> list[IndexEntry]:
        """A line per version of each model that a repository holds now, sorted. Reads the repositories' folders."""
        entries = self._roster.index(self._store.names(), self._store.duplicates())
        if self._namespaces:
            # Clients see names; that several may be equal is what namespaces are for.
            entries = [replace(entry, name=self._plain(entry.name)) for entry in entries]
        return [entry for entry in entries if entry.state == "READY"] if ready_only else entries

    def statuses(self) -> list[tuple[str, str, str]]:
        """Model, version and status of everything known, for the table at start-up."""
        return self._roster.statuses()

    def wanted(self) -> set[str]:
        """The identities of the models that were asked for, loaded or not, and not unloaded since."""
        return self._roster.wanted()

    def start(self) -> None:
        """Load the start-up models, several at once; blocks until all are loaded or have failed.

        Raises InferError when one failed and the server is to exit on errors. Call `stop` even then.
        """
        batch: Batch = {}
        futures = [self._assembly.load(name, {}, batch) for name in self._startup_models()]
        errors = [error for future in futures if (error := future.exception()) is not None]
        # What another model has unloaded meanwhile is as it was asked for.
        errors = [error for error in errors if not isinstance(error, OutdatedError)]
        self._started = True
        if errors and self._options.exit_on_error:
            raise internal(
                "failed to load all models",
                f"{len(errors)} failed, see above; start with --exit-on-error=false to serve the others",
            )

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        """Load the model, or load anew what has changed of it. Until all new versions are ready, and if one of them
        fails, the old ones serve. `parameters` are those of the protocol, already checked. Returns at once."""
        names = self._identities(name, self._store.names()) if self._namespaces else [name]
        return together([self._assembly.load(each, parameters) for each in names])

    def load_group(self, models: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]:
        """As `load` for several models (name -> parameters), swapped in one step: all of them or none."""
        asked = {}
        for name, parameters in models.items():
            for each in self._identities(name, self._store.names()) if self._namespaces else [name]:
                asked[each] = parameters
        return self._assembly.load_group(asked)

    def lend(self, until: Future[None]) -> None:
        """A model waits for this load or unload, maybe in a thread of its own load: it has threads to itself."""
        self._lanes.threads.lend(until)
        self._loading.lend(until)

    def renew(self) -> None:
        """Something else changed by which requests find their versions: all forms are to be prepared again."""
        self._roster.renew()

    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]:
        """Take the model out of service, and the ensembles that need it; a model that is not there is no error. With
        `unload_dependents`, models that an ensemble needed alone, and that nobody asked for, go with it. The
        future does not wait for the requests in flight: they are answered, and then the model is closed. Returns at
        once."""
        names = (self._roster.identities(name) or [name]) if self._namespaces else [name]
        return together([self._assembly.unload(each, cascade=unload_dependents) for each in names])

    def stop(self, deadline: float, tick: float = 1.0) -> bool:
        """Refuse requests, answer those in flight, close everything. Blocks for at most `deadline` seconds; False
        when that was too short: then threads may hang in a model's code, and only ending the process ends them.

        `tick` is the time between two lines of the log, in seconds.
        """
        self._lanes.end()
        self._loading.end()
        drained = drain(self._roster, self._lanes, self._reaper, deadline, tick)
        self._reaper.end()
        self._assembly.end()
        return drained

    def _startup_models(self) -> list[str]:
        mode, wanted = self._options.control_mode, self._options.load_models
        if mode in {"none", "poll"} or wanted == ("*",):
            return self._store.names()
        if "*" in wanted:
            raise invalid("Wildcard model name '*' must be the ONLY startup model if specified at all.")
        if self._namespaces:
            seen = self._store.names()
            wanted = tuple(each for name in wanted for each in self._identities(name, seen))
        return list(dict.fromkeys(wanted))

    def _identities(self, name: str, seen: Sequence[str]) -> list[str]:
        """The models that a load of `name` loads: all that are called so, in any namespace; itself if there is none."""
        if name in seen:
            return [name]
        known = set(seen)
        return [each for space in self._namespaces if (each := identity(space, name)) in known] or [name]

    def _plain(self, known: str) -> str:
        for space in self._namespaces:
            known = known.removeprefix(identity(space, ""))
        return known


def together(futures: Sequence[Future[None]]) -> Future[None]:
    """Ends when all of them have ended, with the first error there is."""
    if len(futures) == 1:
        return futures[0]
    whole = promise()

    def ended() -> None:
        errors = [error for future in futures if (error := future.exception()) is not None]
        settle(whole, errors[0] if errors else None)

    after(futures, ended)
    return whole
