"""The door of the backend room: what a framework adapter must offer, and what it is given.

A backend is found by name, completes a model's config from its files, and loads one version of it. A loaded model
makes instances; each instance executes one batch at a time and settles every request of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from conch.memory.pinned import PinnedPool
from conch.observe.custom import Families
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec
from conch.types.request import InferRequest, RequestForm, RequestHead


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where one version of a model lies on this machine. `directory` is the model's folder."""

    directory: Path
    version: int

    @property
    def version_directory(self) -> Path:
        return self.directory / str(self.version)


class Models(Protocol):
    """The server's models, for models that call others (ensembles, BLS). Any thread; nothing blocks.

    A request: `prepare` a head (equal heads give the same form; prepare again when the `generation` has grown), make
    an `InferRequest` with a sink of your own, `infer` it. Errors are `InferError`. The futures of `load` and `unload`
    are not to be waited for on the loop's thread.
    """

    @property
    def generation(self) -> int: ...
    def prepare(self, head: RequestHead, /) -> RequestForm: ...
    def infer(self, request: InferRequest, /) -> None: ...
    def ready(self, name: str, version: str, /) -> bool: ...
    def config(self, name: str, version: str, /) -> ModelConfig: ...
    def load(self, name: str, parameters: Mapping[str, str | bytes], /) -> Future[None]: ...
    def unload(self, name: str, unload_dependents: bool, /) -> Future[None]: ...


@dataclass(frozen=True, slots=True)
class Host:
    """What the server lends to backends."""

    #: The event loop that owns every socket. Only its `call_soon_threadsafe` may be called from another thread.
    loop: asyncio.AbstractEventLoop
    #: `--backend-config` settings of this backend, the global ones merged in (the backend's own win).
    settings: Mapping[str, str] = field(default_factory=dict)
    #: CPUs that this process may use (the container's quota, at least 1).
    cpus: int = 1
    #: The server's models; None where a backend is used by itself.
    models: Models | None = None
    #: Where metrics that models define go; None where nobody looks at them.
    metrics: Families | None = None
    #: Memory that GPUs copy from and to; a backend opens it when it makes an instance on one.
    pinned: PinnedPool = field(default_factory=lambda: PinnedPool(0))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one instance goes. `name` is Triton's instance name, such as `resnet_0_1`; `kind` CPU, GPU or MODEL."""

    name: str
    kind: str
    device_id: int = 0
    #: How many instances of this model version there are in all, so that they can share the CPUs.
    instances: int = 1
    #: The CPUs that its host policy confines it to; empty for all. The thread that calls `LoadedModel.instance` is on
    #: them already, and what it starts stays there; what is started later has to be put there.
    cores: frozenset[int] = frozenset()


@runtime_checkable
class ThreadInstance(Protocol):
    """An instance that computes in the calling thread and releases the GIL: it gets a thread of its own."""

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request. Never raises: what goes wrong goes to the requests' sinks."""

    def close(self) -> None: ...


@runtime_checkable
class LoopInstance(Protocol):
    """An instance whose work happens elsewhere (a worker process) or is trivial: the event loop drives it.

    `start` is called on the loop thread with one batch at a time and returns at once. The instance settles every
    request of the batch, then calls `idle()` on the loop thread, exactly once; it may do so before `start` returns.
    """

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None: ...

    def close(self) -> None:
        """Blocks until what the instance held is free. Called from a thread other than the loop's."""


@runtime_checkable
class StreamingInstance(LoopInstance, Protocol):
    """A loop instance that may be idle while requests of earlier batches are still being answered (decoupled models).

    Such a request is settled by its final answer, however long after `idle()` that comes.
    """

    def open(self) -> int:
        """How many requests, the batch that executes now left out, wait for their final answer. Any thread."""


Instance = ThreadInstance | LoopInstance


class LoadedModel(Protocol):
    """One version, opened. Its instances may share what it holds (weights, sessions)."""

    def instance(self, placement: Placement) -> Instance:
        """Make one executable copy; blocking, never called on the loop thread. Raises InferError."""

    def ready(self) -> bool:
        """Whether the runtime can answer now (a worker that is being restarted cannot)."""

    def close(self) -> None:
        """After all instances are closed."""


@runtime_checkable
class Housed(Protocol):
    """A loaded model that runs in processes of its own, not in the server's."""

    def processes(self) -> Sequence[int]:
        """Those that run now, without what they have started; none where it runs in the server's after all."""


@runtime_checkable
class Staying(Protocol):
    """A loaded model whose instances on a GPU read tensors that lie there, and can leave there what they compute.

    Inputs of these names may then come as `types.device.OnDevice` in place of bytes, on whatever device; instances on
    CPUs that are made after one on a GPU have to take them, too. Outputs of these names may be answered so where the
    form of every request of a batch allows it (`RequestForm.stays`): complete, and on the instance's own GPU.
    """

    def device_tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of such inputs, and of such outputs."""


@runtime_checkable
class Accelerated(Protocol):
    """A backend whose models can run on GPUs. Instance groups of others go to the CPU where they do not say."""

    def on_gpus(self) -> bool:
        """Whether what is installed can use GPUs; called only where there are some. May import the framework."""


class Backend(Protocol):
    """One framework. Objects are cheap and stateless; frameworks are imported on first use, not at start-up."""

    name: str

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """Fill into `config` (already normalised, with its backend set) what the model's files know: inputs, outputs,
        max_batch_size, dynamic_batching. What the operator wrote wins; conflicts raise InferError. Blocking; not
        called when auto-complete is off."""

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> LoadedModel:
        """Open one version with its final config. Blocking. Raises InferError with Triton's texts."""
