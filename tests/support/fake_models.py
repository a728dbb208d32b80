"""Models without a framework: a store in memory, a loader that makes versions on command, and what they hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from conch.config.server import RepositoryOptions
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.ensembles import EnsembleLoader
from conch.registry.lifecycle import Key
from conch.registry.loading import Prepare
from conch.registry.registry import Registry
from conch.registry.served import ServedVersion
from conch.repository.api import Fingerprint, StoredModel
from conch.types.error import Code, InferError, internal
from conch.types.model import ModelSpec
from conch.types.request import InferRequest


class FakeScheduler:
    """`busy` is what `inflight` says; `stopped` and `closed` count calls."""

    def __init__(self) -> None:
        self.busy = 0
        self.stopped = 0
        self.closed = 0

    def submit(self, request: InferRequest, /) -> None:
        raise NotImplementedError

    def withdraw(self, request: InferRequest, /) -> None:
        raise NotImplementedError

    def pending(self) -> int:
        return self.busy

    def inflight(self) -> int:
        return self.busy

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None:
        assert self.busy == 0, "closed with requests in flight"
        self.closed += 1


class FakeLoaded:
    def __init__(self) -> None:
        self.well = True
        self.closed = threading.Event()
        self.times_closed = 0

    def instance(self, placement: object) -> object:
        raise NotImplementedError

    def ready(self) -> bool:
        return self.well

    def close(self) -> None:
        self.times_closed += 1
        self.closed.set()


class FakeStore:
    """Models by name; `put` changes one as an operator would."""

    def __init__(self) -> None:
        self.models: dict[str, StoredModel] = {}
        self.twice: frozenset[str] = frozenset()
        self.released = 0
        self.namespaces: tuple[str, ...] = ()

    def put(self, name: str, *versions: int, config: str = "", **stamps: str) -> None:
        """`stamps` are fingerprints of versions, as `v1="..."`."""
        looks = {number: stamps.get(f"v{number}", "as made") for number in versions}
        self.models[name] = StoredModel(
            name, Path("/repo") / name, config, "config.pbtxt", versions, Fingerprint(config, "", looks)
        )

    def names(self) -> list[str]:
        return sorted(self.models)

    def duplicates(self) -> frozenset[str]:
        return self.twice

    def fetch(self, name: str) -> StoredModel:
        if name not in self.models:
            raise InferError(Code.NOT_FOUND, f"failed to poll model '{name}': model not found in any model repository.")
        return self.models[name]

    def fetch_override(self, name: str, config: str, files: Mapping[str, bytes]) -> StoredModel:
        made = replace(self.fetch(name), config_text=config, override=True, release=self._release)
        return replace(made, directory=Path("/tmp/made")) if files else made

    def _release(self) -> None:
        self.released += 1


def fake_prepare(stored: StoredModel) -> ModelConfig:
    """The config text is the words `all` or `latest <n>` for the version policy, `broken`, or a tag."""
    config = ModelConfig(name=stored.name, backend="fake")
    text = stored.config_text or ""
    if "broken" in text:
        raise internal("this config is broken")
    if "all" in text:
        config.version_policy.all.SetInParent()
    config.metric_tags["text"] = text.replace("all", "")
    return config


class FakeLoader:
    """Makes versions at once, unless `gates[name]` is closed or `broken` has (name, version)."""

    def __init__(self) -> None:
        self.broken: dict[tuple[str, int], BaseException] = {}
        self.gates: dict[str, threading.Event] = {}
        self.entered = threading.Semaphore(0)
        self.made: list[ServedVersion] = []
        self._lock = threading.Lock()
        self.running: dict[str, int] = {}
        self.most_running: dict[str, int] = {}

    def load(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None]
    ) -> ServedVersion:
        name = stored.name
        with self._lock:
            self.running[name] = self.running.get(name, 0) + 1
            self.most_running[name] = max(self.most_running.get(name, 0), self.running[name])
        self.entered.release()
        try:
            if name in self.gates:
                assert self.gates[name].wait(30)
            if (name, version) in self.broken:
                raise self.broken[name, version]
        finally:
            with self._lock:
                self.running[name] -= 1
        served = ServedVersion(
            ModelSpec(name, version, 0, (), ()),
            config,
            stats=ModelStats(),
            scheduler=FakeScheduler(),
            loaded=FakeLoaded(),
            instances=(),
            key=key,
            release=release,
        )
        with self._lock:
            self.made.append(served)
        return served

    def times_closed(self) -> list[int]:
        return [served.loaded.times_closed for served in self.made]  # type: ignore[attr-defined]


class House:
    """A registry over fakes; a context manager that stops it. `prepare` makes the configs."""

    def __init__(
        self, prepare: Prepare = fake_prepare, ensembles: EnsembleLoader | None = None, **options: object
    ) -> None:
        self.store = FakeStore()
        self.loader = FakeLoader()
        chosen = {"control_mode": "explicit", "exit_on_error": False, **options}
        self.registry = Registry(
            self.store,
            prepare,
            self.loader,
            RepositoryOptions(**chosen),  # type: ignore[arg-type]
            lambda call: call(),
            ensembles,
        )

    def load(self, name: str, **parameters: str) -> None:
        self.registry.load(name, parameters).result(30)

    def unload(self, name: str) -> None:
        self.registry.unload(name).result(30)

    def index(self) -> list[tuple[str, str, str, str]]:
        return [(e.name, e.version, e.state, e.reason) for e in self.registry.index(False)]

    def state(self, name: str) -> dict[str, str]:
        return {version: state for model, version, state, _ in self.index() if model == name}

    def __enter__(self) -> House:
        return self

    def __exit__(self, *error: object) -> None:
        for gate in self.loader.gates.values():
            gate.set()
        for served in self.loader.made:
            served.scheduler.busy = 0  # type: ignore[attr-defined]
        assert self.registry.stop(30.0)


def scheduler_of(served: ServedVersion) -> FakeScheduler:
    assert isinstance(served.scheduler, FakeScheduler)
    return served.scheduler


def loaded_of(served: ServedVersion) -> FakeLoaded:
    assert isinstance(served.loaded, FakeLoaded)
    return served.loaded
