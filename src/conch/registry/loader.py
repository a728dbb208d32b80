"""Makes one version servable: from its config and files to instances behind a scheduler, all or nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from conch.backend.api import Backend, Host, Instance, LoadedModel, ModelFiles, Placement
from conch.config.ignored import ignored_fields
from conch.config.instances import InstanceGroup, fill_instance_groups, instance_groups
from conch.config.normalize import normalize
from conch.config.rules import validate
from conch.config.spec import model_spec
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.failure import as_infer_error
from conch.registry.labels import with_labels
from conch.registry.lifecycle import Key
from conch.registry.served import ServedVersion
from conch.repository.api import StoredModel
from conch.schedule.api import Scheduler
from conch.types.error import InferError, invalid, unsupported

_log = logging.getLogger("conch.registry")


class BuildScheduler(Protocol):
    """Makes the scheduler that a config asks for, over these instances."""

    def __call__(self, config: ModelConfig, instances: Sequence[Instance], stats: ModelStats, /) -> Scheduler: ...


class Loader:
    """Loads versions; has no state of its own, so any number of threads may use it at once.

    `host` gives what the server lends to the backend of a name. `gpus` are the GPUs that models may use.
    """

    def __init__(
        self,
        find_backend: Callable[[str], Backend],
        build: BuildScheduler,
        host: Callable[[str], Host],
        *,
        gpus: Sequence[int] = (),
        auto_complete: bool = True,
        retries: int = 0,
    ) -> None:
        self._find_backend = find_backend
        self._build = build
        self._host = host
        self._gpus = tuple(gpus)
        self._auto_complete = auto_complete
        self._retries = retries

    def load(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None]
    ) -> ServedVersion:
        """Load one version; `config` is the model's (normalised and checked, but not completed) and stays as it is.

        `release` is called when the version is closed, not when the load fails. Blocking. Raises InferError whatever
        goes wrong, and then nothing that was opened stays open.
        """
        for attempt in range(self._retries + 1):
            try:
                return self._load(config, stored, version, key, release)
            except InferError as error:
                if attempt == self._retries or error.code.name == "UNSUPPORTED":
                    raise
            except BaseException as error:
                # Models are foreign code: what they raise (SystemExit, and errors of native libraries that are no
                # Exception) ends their load, not the server's thread.
                if attempt == self._retries:
                    raise as_infer_error(error) from error
        raise AssertionError("unreachable")

    def _load(
        self, shared: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None]
    ) -> ServedVersion:
        begun = time.monotonic()
        _refuse_unsupported(shared)
        config = ModelConfig()
        config.CopyFrom(shared)
        backend = self._find_backend(config.backend)
        host = self._host(config.backend)
        files = ModelFiles(stored.directory, version)
        if self._auto_complete:
            backend.complete(config, files, host)
            # What the backend filled in (a scheduler, a batch size) has defaults of its own.
            normalize(config)
            validate(config, check_io=True)
        for field in ignored_fields(config):
            _log.warning("model '%s': '%s' in its config is accepted but has no effect yet", config.name, field)
        spec = with_labels(model_spec(config, version), config, stored.directory)
        stats = ModelStats()
        with contextlib.ExitStack() as opened:
            loaded = backend.load(config, spec, files, host, stats)
            opened.callback(_close_quietly, loaded)
            instances = self._instances(config, loaded, opened)
            scheduler = self._build(config, instances, stats)
            opened.callback(_close_quietly, scheduler)
            served = ServedVersion(
                spec,
                config,
                stats=stats,
                scheduler=scheduler,
                loaded=loaded,
                instances=instances,
                key=key,
                release=release,
            )
            stats.load_seconds = time.monotonic() - begun
            opened.pop_all()
        return served

    def _instances(self, config: ModelConfig, loaded: LoadedModel, opened: contextlib.ExitStack) -> list[Instance]:
        # Written into the config, because the config calls show them.
        fill_instance_groups(config, self._gpus, default_instances(config.backend))
        instances = []
        for placement in _placements(instance_groups(config, self._gpus), config.name):
            instance = loaded.instance(placement)
            opened.callback(_close_quietly, instance)
            instances.append(instance)
        return instances


def default_instances(backend: str) -> int:
    """How many instances a group on CPU has where the config does not say."""
    return 2 if backend == "onnxruntime" else 1


class _Closes(Protocol):
    def close(self) -> None: ...


def _close_quietly(opened: _Closes) -> None:
    """The load's own error is the one to report; that of a clean-up after it would hide it."""
    with contextlib.suppress(BaseException):
        opened.close()


def _placements(groups: Sequence[InstanceGroup], name: str) -> list[Placement]:
    """Where each instance goes. Passive groups get none: nothing would ever be given to them."""
    places = [(group.kind, *place) for group in groups if not group.passive for place in group.places()]
    if not places:
        raise invalid(
            f"model '{name}' has no instance that is not passive, so nothing can execute it",
            "remove 'passive' from an instance_group",
        )
    return [Placement(title, kind, device, len(places)) for kind, title, device in places]


def _refuse_unsupported(config: ModelConfig) -> None:
    if config.platform == "ensemble" or config.HasField("ensemble_scheduling"):
        raise unsupported(f"model '{config.name}' is an ensemble; ensembles are not supported yet")
    if config.HasField("sequence_batching"):
        raise unsupported(f"model '{config.name}' asks for sequence_batching, which is not supported yet")
