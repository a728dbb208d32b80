"""Makes one version servable: from its config and files to instances behind a scheduler, all or nothing."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from conch.backend.api import Backend, Host, Instance, ModelFiles
from conch.backend.openvino.plan import default_streams
from conch.backend.padded import PaddedModel
from conch.config.gpus import Gpu
from conch.config.ignored import ignored_fields
from conch.config.instances import InstanceGroup
from conch.config.normalize import normalize
from conch.config.rules import validate
from conch.config.sequence_tensors import SequenceTensors, sequence_tensors, with_hidden_tensors
from conch.config.spec import model_spec
from conch.config.swap_gate import swap_gate
from conch.memory.thrift import THRIFT
from conch.observe.latencies import SUMS, Details, latencies_of
from conch.observe.row_stats import RowStats
from conch.observe.stats import WARMUP, ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.crew import Change, Crew, Equipment
from conch.registry.labels import with_labels
from conch.registry.lifecycle import Key
from conch.registry.places import Places
from conch.registry.samples import Check, Sample, samples
from conch.registry.served import ServedVersion
from conch.registry.warmup import Warmup
from conch.repository.api import StoredModel
from conch.schedule.api import Scheduler
from conch.schedule.witness import Witness
from conch.types.error import InferError, foreign
from conch.types.model import ModelSpec

_log = logging.getLogger("conch.registry")
#: Native code that Triton loads into its own process to decide which requests share a batch.
_BATCHING_LIBRARY: Final = "batchstrategy.so"
_Made = TypeVar("_Made")


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


class CheckRuntime(Protocol):
    """Raises InferError where a config's `runtime` is none that its backend has."""

    def __call__(self, config: ModelConfig, files: ModelFiles, /) -> None: ...


class Remember(Protocol):
    """Puts the server's response cache in front of a scheduler."""

    def __call__(
        self, inner: Scheduler, spec: ModelSpec, config: ModelConfig, stats: ModelStats, key: Key, /
    ) -> Scheduler: ...


@dataclass(frozen=True, slots=True)
class Outline:
    """A version that is not open: all that can be said of it without running it."""

    config: ModelConfig
    spec: ModelSpec
    stats: ModelStats
    stored: StoredModel
    key: Key
    backend: Backend
    host: Host
    #: What it took to find that out.
    seconds: float


class Loader:
    """Loads versions; has no state of its own, so any number of threads may use it at once.

    `host` gives what the server lends to the backend of a name. `gpus` are the GPUs that models may use, those of
    compute capability `least` and more; `equipment` is what instances share. `check` is how the inputs of requests,
    and so of warm-up samples, are checked. `remember` is None where the server has no response cache. `details` are of
    the latencies that its versions' statistics keep.
    """

    def __init__(
        self,
        find_backend: Callable[[str], Backend],
        build: BuildScheduler,
        host: Callable[[str], Host],
        *,
        gpus: Sequence[Gpu] = (),
        least: float = 6.0,
        equipment: Equipment | None = None,
        check: Check | None = None,
        check_runtime: CheckRuntime | None = None,
        auto_complete: bool = True,
        retries: int = 0,
        remember: Remember | None = None,
        details: Details = SUMS,
    ) -> None:
        self._find_backend = find_backend
        self._build = build
        self._host = host
        self._equipment = equipment or Equipment()
        self._places = Places(gpus, least, self._equipment)
        self._check = check
        self._check_runtime = check_runtime
        self._auto_complete = auto_complete
        self._retries = retries
        self._remember = remember
        self._details = details

    def load(
        self, config: ModelConfig, stored: StoredModel, version: int, key: Key, release: Callable[[], None]
    ) -> ServedVersion:
        """Load one version; `config` is the model's (normalised and checked, but not completed) and stays as it is.

        `release` is called when the version is closed, not when the load fails. Blocking. Raises InferError whatever
        goes wrong, and then nothing that was opened stays open.
        """

        def load() -> ServedVersion:
            outline = self._outline(config, stored, version, key)
            return self._open(outline, release, lambda scheduler: self.front(scheduler, outline))

        return self._try(load)

    def outline(self, config: ModelConfig, stored: StoredModel, version: int, key: Key) -> Outline:
        """The first half of `load`: the version with its config complete, and nothing of it running. As `load`."""
        outline = self._try(lambda: self._outline(config, stored, version, key))
        self._groups(outline.config, outline.backend)
        return outline

    def open(self, outline: Outline, release: Callable[[], None]) -> ServedVersion:
        """The second half of `load`, but for `front`; any number of times: what is made goes on counting in
        `outline.stats`."""
        return self._try(lambda: self._open(outline, release, lambda scheduler: scheduler))

    def front(self, scheduler: Scheduler, outline: Outline) -> Scheduler:
        """`scheduler` with what the config asks for in front of it: a witness for its gate, the response cache."""
        gate = swap_gate(outline.config)
        if gate is not None:
            # Nearest to the instances: only what they have executed is compared.
            scheduler = Witness(scheduler, gate.requests, gate.max_bytes)
        if self._remember is None or not outline.config.response_cache.enable:
            return scheduler
        return self._remember(scheduler, outline.spec, outline.config, outline.stats, outline.key)

    def _try(self, load: Callable[[], _Made]) -> _Made:
        for attempt in range(self._retries + 1):
            try:
                with THRIFT:
                    return load()
            except InferError as error:
                if attempt == self._retries or error.code.name == "UNSUPPORTED":
                    raise
            except BaseException as error:
                # Models are foreign code: what they raise (SystemExit, and errors of native libraries that are no
                # Exception) ends their load, not the server's thread.
                if attempt == self._retries:
                    raise foreign(error) from error
        raise AssertionError("unreachable")

    def _outline(self, shared: ModelConfig, stored: StoredModel, version: int, key: Key) -> Outline:
        begun = time.monotonic()
        config = ModelConfig()
        config.CopyFrom(shared)
        files = ModelFiles(stored.directory, version)
        if config.runtime and self._check_runtime is not None:
            self._check_runtime(config, files)
        backend = self._find_backend(config.backend)
        host = self._host(config.backend)
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
        stats = (RowStats if rows else ModelStats)(latencies_of(self._details, config, decoupled=spec.decoupled))
        return Outline(config, spec, stats, stored, key, backend, host, time.monotonic() - begun)

    def _open(
        self, outline: Outline, release: Callable[[], None], front: Callable[[Scheduler], Scheduler]
    ) -> ServedVersion:
        begun = time.monotonic() - (0.0 if outline.stats.load_seconds else outline.seconds)
        config = ModelConfig()
        config.CopyFrom(outline.config)
        spec, stats, stored, key = outline.spec, outline.stats, outline.stored, outline.key
        backend, host = outline.backend, outline.host
        files = ModelFiles(stored.directory, spec.version)
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
            # Warm-ups count for these, which are counted without their requests.
            counted = copy.deepcopy(stats.responses), stats.input_elements, stats.padding_elements
            crew.open(self._groups(config, backend))
            stats.responses, stats.input_elements, stats.padding_elements = counted
            sequences = sequence_tensors(config, stored.directory) if config.HasField("sequence_batching") else None
            scheduler = self._build(config, crew.instances, stats, sequences)
            opened.callback(_close_quietly, scheduler)
            crew.serve(scheduler)
            served = ServedVersion(
                spec,
                config,
                stats=stats,
                scheduler=front(scheduler),
                loaded=loaded,
                crew=crew,
                change=partial(self._change, crew, backend),
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

    def _groups(self, config: ModelConfig, backend: Backend) -> list[InstanceGroup]:
        return self._places.groups(config, backend, default_instances(config))

    def _change(
        self, crew: Crew, backend: Backend, served: ServedVersion, wanted: ModelConfig
    ) -> tuple[ModelConfig, Change]:
        """The config of a version that serves with the instance groups of `wanted`, and what makes them true.

        Raises whatever a model's code raises, and then all is as it was.
        """
        config = ModelConfig()
        config.CopyFrom(served.config)
        del config.instance_group[:]
        config.instance_group.MergeFrom(wanted.instance_group)
        return config, crew.change(self._groups(config, backend))


def default_instances(config: ModelConfig) -> int:
    """How many instances a group on CPU has where the config does not say."""
    if config.backend == "openvino":
        return default_streams(config)
    return 2 if config.backend in ("onnxruntime", "pytorch") else 1


class _Closes(Protocol):
    def close(self) -> None: ...


def _close_quietly(opened: _Closes) -> None:
    """The load's own error is the one to report; that of a clean-up after it would hide it."""
    with contextlib.suppress(BaseException):
        opened.close()
