"""One version that is loaded: everything a request needs of it, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from conch.backend.api import Instance, LoadedModel
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.registry.crew import Change, Crew
from conch.registry.lifecycle import Key
from conch.schedule.api import Scheduler
from conch.types.error import unavailable
from conch.types.model import ModelSpec, identity


class MakeChange(Protocol):
    """The loader's half of `ServedVersion.change`: the new config, and the change."""

    def __call__(self, served: ServedVersion, wanted: ModelConfig, /) -> tuple[ModelConfig, Change]: ...


@runtime_checkable
class Noted(Protocol):
    """A loaded model of which there is something to say in the index, though it is READY; empty for nothing."""

    @property
    def note(self) -> str: ...


def _nothing() -> None: ...


_serials = itertools.count(1)
_holding = threading.Lock()


class ServedVersion:
    """Made by the loader when everything is open; from then on only a change of its instances and `close` change it.

    What executes it are `instances`, which stay as they are, or a `crew`, which can change by `change`.
    """

    __slots__ = (
        "_closed", "_crew", "_ending", "_holders", "_instances", "_make_change", "config", "elders", "identity", "key",
        "leave", "loaded", "name", "namespace", "reachable", "release", "scheduler", "serial", "spec", "stats",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelConfig,
        *,
        stats: ModelStats,
        scheduler: Scheduler,
        loaded: LoadedModel,
        instances: Sequence[Instance] = (),
        crew: Crew | None = None,
        change: MakeChange | None = None,
        key: Key,
        release: Callable[[], None],
        namespace: str = "",
    ) -> None:
        self.name = spec.name
        self.namespace = namespace
        #: What the registry knows the model by.
        self.identity = identity(namespace, spec.name)
        self.version = spec.version
        self.spec = spec
        self.config = config
        self.stats = stats
        self.scheduler = scheduler
        self.loaded = loaded
        self._instances = tuple(instances)
        self._crew = crew
        self._make_change = change
        self.key = key
        #: Says that it serves no more and will give the model's files back.
        self.leave: Callable[[], None] = _nothing
        #: Gives the model's files back.
        self.release = release
        #: Tells this version from all others, also from one of the same name and number.
        self.serial = next(_serials)
        self._holders = 0
        self._ending = False
        self._closed = False
        #: Versions before this one with sequences that go on there, see `registry.succession`.
        self.elders: list[ServedVersion] = []
        #: Whether requests of sequences come to it, though another version may have taken over.
        self.reachable = False

    def hold(self) -> bool:
        """An ensemble runs on this version: it is not stopped before `let_go` was called as often. False: too late."""
        with _holding:
            if not self._ending:
                self._holders += 1
            return not self._ending

    def end(self) -> bool:
        """Nobody can hold it from now on; False while somebody does."""
        with _holding:
            self._ending = not self._holders
            return self._ending

    def let_go(self) -> None:
        with _holding:
            self._holders -= 1

    @property
    def closed(self) -> bool:
        return self._closed

    def ready(self) -> bool:
        """Whether the runtime can answer now. A runtime that cannot even say so is not ready."""
        try:
            return not self._closed and self.loaded.ready()
        except Exception:  # noqa: BLE001  a model's code may raise anything
            return False

    @property
    def note(self) -> str:
        """What the index says of it while it serves; empty for nothing."""
        return self.loaded.note if isinstance(self.loaded, Noted) else ""

    @property
    def instances(self) -> Sequence[Instance]:
        return self._instances if self._crew is None else self._crew.instances

    @property
    def elastic(self) -> bool:
        """Whether its instances can change while it serves."""
        return self._make_change is not None and self._crew is not None and self._crew.elastic

    def change(self, wanted: ModelConfig, key: Key) -> Change:
        """Open the instances that `wanted` (the model's config, not completed) has more. Only if `elastic`; blocking.

        Raises whatever a model's code raises, and then all is as it was.
        """
        make = self._make_change
        if make is None:
            # The server is stopping, and has closed the version meanwhile.
            raise unavailable("Server exiting")
        config, change = make(self, wanted)

        def commit() -> None:
            change.commit()
            # Last: what failed is tried again by the next load.
            self.config, self.key = config, key

        return Change(commit, change.cancel)

    @property
    def tags(self) -> Mapping[str, str]:
        """The labels that the config's `metric_tags` adds to the metrics."""
        return self.config.metric_tags

    @property
    def gpus(self) -> Sequence[int]:
        """The GPUs that its instances are on."""
        groups = [group for group in self.config.instance_group if group.kind == ModelInstanceGroup.KIND_GPU]
        return sorted({gpu for group in groups for gpu in group.gpus})

    def pending(self) -> int:
        """Requests that wait and have not begun to execute."""
        return self.scheduler.pending()

    def close(self) -> None:
        """Free everything, once; blocks, never on the loop thread. After `scheduler.inflight()` is 0.

        Everything is closed even if some of it raises; the last error is raised.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as stack:
            stack.callback(self.release)
            stack.callback(self.loaded.close)
            if self._crew is not None:
                stack.callback(self._crew.close)
            for instance in self._instances:
                stack.callback(instance.close)
            stack.callback(self.scheduler.close)
            if self._crew is not None:
                stack.callback(self._crew.settle)
        # Who still holds this version (a form, a page of statistics) must not hold the model.
        self._instances = ()
        self._crew = self._make_change = None
        self.elders = []

    def __repr__(self) -> str:
        return f"ServedVersion({self.name!r}, {self.version})"


def let_go(versions: Iterable[ServedVersion]) -> None:
    for each in versions:
        each.let_go()
