"""All that the registry remembers: the lifecycle of each model, which versions serve, and what is going away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from conch.registry.lifecycle import Key, Lifecycle, Plan, plan
from conch.registry.reaper import Reaper
from conch.registry.served import ServedVersion
from conch.registry.succession import succeed
from conch.registry.table import ServingTable, parse_version
from conch.types.error import InferError, invalid, not_found, unavailable
from conch.types.model import IndexEntry, identity

log = logging.getLogger("conch.registry")

DUPLICATE = "model appears in two or more repositories"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A load of a model that is ready: what it had to do, and the versions that it made."""

    name: str
    todo: Plan
    made: Mapping[int, ServedVersion]
    #: The versions whose folders exist.
    present: Sequence[int]


class Roster:
    """Any thread; every change of one model's state is one step that others see whole or not at all."""

    def __init__(self, reaper: Reaper, namespaces: Sequence[str] = ()) -> None:
        """`namespaces` are those that models may lie in; their models are known by identity."""
        self._namespaces = tuple(namespaces)
        self.table = ServingTable()
        self._reaper = reaper
        self._lock = threading.Lock()
        self._models: dict[str, Lifecycle] = {}

    # What a load does, in this order; loads of one model must not overlap.

    def refused(self, name: str, error: InferError, *, known: bool) -> None:
        """A load failed before it came to any version; `known`: its config was understood."""
        with self._lock:
            self._models.setdefault(name, Lifecycle()).refused(str(error), known=known)

    def begin(self, name: str, wanted: Mapping[int, Key], *, anew: bool = False) -> Plan:
        """A load of these versions begins; says what it must do. `anew`: to load all of them, changed or not."""
        serving = self.table.versions(name)
        # Outside the lock: this asks runtimes.
        broken = [number for number, served in serving.items() if anew or not served.ready()]
        elastic = [number for number, served in serving.items() if served.elastic]
        todo = plan({number: served.key for number, served in serving.items()}, wanted, broken, elastic)
        with self._lock:
            self._models.setdefault(name, Lifecycle()).load(todo.load)
        return todo

    def failed(
        self, name: str, todo: Plan, made: Iterable[ServedVersion], reasons: Mapping[int, InferError], why: str = ""
    ) -> None:
        """The load is given up, for these versions could not be loaded, or `why`: what served goes on serving."""
        with self._lock:
            self._models[name].failed({number: str(error) for number, error in reasons.items()}, todo.load, why)
        for served in made:
            self._reaper.retire(served, _nothing)
        self._reaper.tidy()

    def serve(self, loads: Iterable[Arrival]) -> None:
        """Every version of these loads is ready: swap all of them in one step."""
        going: list[tuple[ServedVersion, Callable[[], None]]] = []
        swapped = {}
        with self._lock:
            for load in loads:
                new = self._replace(load, going)
                if new is not None:
                    swapped[load.name] = new
            if swapped:
                self.table.swap(swapped)
        for served, done in going:
            self._reaper.retire(served, done)

    def _replace(
        self, load: Arrival, going: list[tuple[ServedVersion, Callable[[], None]]]
    ) -> dict[int, ServedVersion] | None:
        """What will serve of the model, None if that is what serves now; adds what goes, and what to do then."""
        name, todo, made = load.name, load.todo, load.made
        life = self._models[name]
        # What serves at this moment, which is less than at the beginning when the server is stopping.
        old = self.table.versions(name)
        gone = {number: served for number, served in old.items() if number not in todo.keep}
        life.loaded(todo.load)
        new = {**{number: old[number] for number in todo.keep if number in old}, **made}
        turns = life.unload([number for number in gone if number not in made])
        life.forget([number for number in life.versions if number not in load.present])
        for number, served in gone.items():
            done = partial(self._unloaded, name, number, turns[number]) if number in turns else _nothing
            going.append((served, done))
        if not made and not gone:
            return None
        succeed(old, new)
        return new

    def unload(self, name: str) -> None:
        """Nothing of the model serves from now on; its requests in flight are answered, then it is closed."""
        with self._lock:
            life = self._models.get(name)
            if life is None:
                return
            old = self.table.versions(name)
            turns = life.unload(old)
            life.forgive()
            if old:
                succeed(old, {})
                self.table.swap({name: {}})
            if not life.versions:
                del self._models[name]
        for number, served in old.items():
            self._reaper.retire(served, partial(self._unloaded, name, number, turns[number]))

    def renew(self) -> None:
        """A new generation of the same versions."""
        with self._lock:
            self.table.generation += 1

    # Questions.

    def identities(self, name: str) -> list[str]:
        """The models that a client may mean by `name`, those that were unloaded left out: itself, or those called so
        in the namespaces."""
        named = [name, *[identity(space, name) for space in self._namespaces]]
        with self._lock:
            return [each for each in named if each in self._models and not self._models[each].unloaded_whole()]

    def wanted(self) -> set[str]:
        """Those that somebody has loaded, or tried to, and nobody has unloaded since."""
        with self._lock:
            return {name for name, life in self._models.items() if not life.unloaded_whole()}

    def resolve(self, name: str) -> str:
        """The one model that `name` means, where there are namespaces. Raises InferError for none or several."""
        found = self.identities(name)
        if len(found) == 1:
            return found[0]
        if not found:
            if any(each in self._models for each in (name, *[identity(space, name) for space in self._namespaces])):
                raise not_found(f"Identifier of model '{name}' is not found in global map")
            raise invalid(f"Request for unknown model: '{name}' is not found")
        raise invalid(
            f"There are {len(found)} identifiers of model '{name}' in global map, model namespace must be provided to "
            "resolve ambiguity.",
            f"ask for one of {', '.join(found)}",
        )

    def find(self, name: str, version: str) -> ServedVersion:
        """The slow half of a look-up: odd spellings of versions, and the right error."""
        number = parse_version(version) if version else None
        with self._lock:
            versions = self.table.versions(name)
            found = versions.get(max(versions) if number is None else number) if versions else None
            if found is not None:
                return found
            life = self._models.get(name)
            if life is None or not life.known:
                raise not_found(f"Request for unknown model: '{name}' is not found")
            if number is None:
                raise not_found(f"Request for unknown model: '{name}' has no available versions")
            if number not in life.versions:
                raise not_found(f"Request for unknown model: '{name}' version {number} is not found")
        raise unavailable(f"Request for unknown model: '{name}' version {number} is not at ready state")

    def settled(self) -> bool:
        """Whether every model known is ready, or was unloaded on purpose, and its runtime can answer."""
        with self._lock:
            settled = all(life.settled() for life in self._models.values())
        return settled and all(served.ready() for served in self.table.all())

    def index(self, names: Iterable[str], duplicates: frozenset[str]) -> list[IndexEntry]:
        """The index of models called so: a line per version, one without a version where there are none."""
        entries = []
        with self._lock:
            for name in names:
                life = self._models.get(name)
                if name in duplicates:
                    entries.append(IndexEntry(name, "", "UNAVAILABLE", DUPLICATE))
                elif life is None:
                    entries.append(IndexEntry(name))
                elif not life.versions:
                    entries.append(IndexEntry(name, "", "UNAVAILABLE", life.reason))
                else:
                    entries += [
                        IndexEntry(name, str(number), status.state.value, status.reason or self._note(name, number))
                        for number, status in sorted(life.versions.items())
                    ]
        return entries

    def statuses(self) -> list[tuple[str, str, str]]:
        """Model, version and status of everything known, for the table at start-up."""
        rows = []
        with self._lock:
            for name, life in sorted(self._models.items()):
                for number, status in sorted(life.versions.items()):
                    text = status.state.value + (f": {status.reason}" if status.reason else "")
                    rows.append((name, str(number), text))
                if not life.versions:
                    rows.append((name, "-", f"Not loaded: {life.reason}"))
        return rows

    def _note(self, name: str, number: int) -> str:
        served = self.table.versions(name).get(number)
        return "" if served is None else served.note

    def _unloaded(self, name: str, number: int, turn: int) -> None:
        with self._lock:
            life = self._models.get(name)
            if life is not None:
                life.unloaded(number, turn)
        log.info("successfully unloaded '%s' version %d", name, number)


def _nothing() -> None:
    """Nobody waits."""
