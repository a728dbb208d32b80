"""Makes one version servable: from its config and files to instances behind a scheduler, all or nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from conch.backend.api import Backend, Host, Instance, ModelFiles
from conch.backend.padded import PaddedModel
from conch.config.ignored import ignored_fields
from conch.config.instances import InstanceGroup, fill_instance_groups, instance_groups
from conch.config.normalize import normalize
from conch.config.rules import validate
from conch.config.sequence_tensors import SequenceTensors, sequence_tensors, with_hidden_tensors
from conch.config.spec import model_spec
from conch.observe.row_stats import RowStats
from conch.observe.stats import WARMUP, ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.crew import Change, Crew, Equipment
from conch.registry.failure import as_infer_error
from conch.registry.labels import with_labels
from conch.registry.lifecycle import Key
from conch.registry.samples import Check, Sample, samples
from conch.registry.served import ServedVersion
from conch.registry.warmup import Warmup
from conch.repository.api import StoredModel
from conch.schedule.api import Scheduler
from conch.types.error import InferError
from conch.types.model import ModelSpec

_log = logging.getLogger("conch.registry")
#: Native code that Triton loads into its own process to decide which requests share a batch.
_BATCHING_LIBRARY: Final = "batchstrategy.so"


class BuildScheduler(Protocol):
    """Makes the scheduler that a config asks for, over these instances."""

    def __call__(
        self,
        config: ModelConfig,
        instances: Sequence[Instance],
        stats: ModelStats,
        sequences: SequenceTensors | None = None,
        /,
    ) -> Scheduler: ...


class Remember(Protocol):
    """Puts the server's response cache in front of a scheduler."""

    def __call__(
        self, inner: Scheduler, spec: ModelSpec, config: ModelConfig, stats: ModelStats, key: Key, /
    ) -> Scheduler: ...


class Loader:
    """Loads versions; has no state of its own, so any number of threads may use it at once.

    `host` gives what the server lends to the backend of a name. `gpus` are the GPUs that models may use, `equipment` is
    what instances share. `check` is how the inputs of requests, and so of warm-up samples, are checked. `remember` is
    None where the server has no response cache.
    """

    def __init__(
        self,
        find_backend: Callable[[str], Backend],
        build: BuildScheduler,
        host: Callable[[str], Host],
        *,
        gpus: Sequence[int] = (),
        equipment: Equipment | None = None,
        check: Check | None = None,
        auto_complete: bool = True,
        retries: int = 0,
        remember: Remember | None = None,
    ) -> None:
        self._find_backend = find_backend
        self._build = build
        self._host = host
        self._gpus = tuple(gpus)
        self._equipment = equipment or Equipment()
        self._check = check
        self._auto_complete = auto_complete
        self._retries = retries
        self._remember = remember

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
        for folder in (files.version_directory, files.directory):
            if (folder / _BATCHING_LIBRARY).is_file():
                _log.warning(
                    "model '%s': custom batching libraries are not supported, %s/%s has no effect",
                    config.name, folder, _BATCHING_LIBRARY,
                )  # fmt: skip
        spec = with_labels(model_spec(config, version), config, stored.directory)
        # The direct strategy of sequences has rows without a request.
        rows = config.HasField("sequence_batching") and not config.sequence_batching.HasField("oldest")
        stats = RowStats() if rows else ModelStats()
        with contextlib.ExitStack() as opened:
            seen = with_hidden_tensors(spec, config)
            loaded = backend.load(config, seen, files, host, stats)
            if spec.padding is not None:
                loaded = PaddedModel(loaded, spec, spec.padding, stats)
            opened.callback(_close_quietly, loaded)
            made = self._samples(config, spec, seen, stored)
            warmup = Warmup(config.name, config.max_batch_size, made, stats, host.loop)
            crew = Crew(config.name, loaded, self._equipment, host.loop.call_soon_threadsafe, warmup.run)
            opened.callback(_close_quietly, crew)
            crew.open(self._groups(config))
            # These are counted without their requests.
            stats.responses.clear()
            stats.input_elements = stats.padding_elements = 0
            sequences = sequence_tensors(config, stored.directory) if config.HasField("sequence_batching") else None
            scheduler = self._build(config, crew.instances, stats, sequences)
            opened.callback(_close_quietly, scheduler)
            crew.serve(scheduler)
            if self._remember is not None and config.response_cache.enable:
                scheduler = self._remember(scheduler, spec, config, stats, key)
            served = ServedVersion(
                spec,
                config,
                stats=stats,
                scheduler=scheduler,
                loaded=loaded,
                crew=crew,
                change=partial(self._change, crew),
                key=key,
                release=release,
                namespace=stored.namespace,
            )
            stats.load_seconds = time.monotonic() - begun
            opened.pop_all()
        return served

    def _samples(self, config: ModelConfig, spec: ModelSpec, seen: ModelSpec, stored: StoredModel) -> list[Sample]:
        if not config.model_warmup:
            return []
        assert self._check is not None, "a loader of models with model_warmup needs `check`"
        return samples(config, spec, seen, stored.directory, self._check, WARMUP)

    def _groups(self, config: ModelConfig) -> list[InstanceGroup]:
        # Written into the config, because the config calls show them.
        fill_instance_groups(config, self._gpus, default_instances(config.backend))
        if self._equipment.turns is None and any(group.HasField("rate_limiter") for group in config.instance_group):
            _log.warning(
                "model '%s': 'instance_group.rate_limiter' in its config has no effect without "
                "--rate-limit=execution_count",
                config.name,
            )
        for policy in {group.host_policy for group in config.instance_group} - {"", *self._equipment.policies}:
            _log.warning(
                "model '%s': host policy '%s' of an instance group has no effect, no --host-policy=%s,... defines it",
                config.name, policy, policy,
            )  # fmt: skip
        return instance_groups(config, self._gpus)

    def _change(self, crew: Crew, served: ServedVersion, wanted: ModelConfig) -> tuple[ModelConfig, Change]:
        """The config of a version that serves with the instance groups of `wanted`, and what makes them true.

        Raises whatever a model's code raises, and then all is as it was.
        """
        config = ModelConfig()
        config.CopyFrom(served.config)
        del config.instance_group[:]
        config.instance_group.MergeFrom(wanted.instance_group)
        return config, crew.change(self._groups(config))


def default_instances(backend: str) -> int:
    """How many instances a group on CPU has where the config does not say."""
    return 2 if backend == "onnxruntime" else 1


class _Closes(Protocol):
    def close(self) -> None: ...


def _close_quietly(opened: _Closes) -> None:
    """The load's own error is the one to report; that of a clean-up after it would hide it."""
    with contextlib.suppress(BaseException):
        opened.close()
