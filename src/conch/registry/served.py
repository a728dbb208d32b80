"""One version that is loaded: everything a request needs of it, and how it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from conch.backend.api import Instance, LoadedModel
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.lifecycle import Key
from conch.schedule.api import Scheduler
from conch.types.model import ModelSpec


class ServedVersion:
    """Made by the loader when everything is open; from then on only `close` changes it."""

    __slots__ = (
        "_closed", "config", "instances", "key", "loaded", "name", "release", "scheduler", "spec", "stats", "version",
    )  # fmt: skip

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelConfig,
        *,
        stats: ModelStats,
        scheduler: Scheduler,
        loaded: LoadedModel,
        instances: Sequence[Instance],
        key: Key,
        release: Callable[[], None],
    ) -> None:
        self.name = spec.name
        self.version = spec.version
        self.spec = spec
        self.config = config
        self.stats = stats
        self.scheduler = scheduler
        self.loaded = loaded
        self.instances = tuple(instances)
        self.key = key
        #: Gives the model's files back.
        self.release = release
        self._closed = False

    def ready(self) -> bool:
        """Whether the runtime can answer now. A runtime that cannot even say so is not ready."""
        try:
            return not self._closed and self.loaded.ready()
        except Exception:  # noqa: BLE001  a model's code may raise anything
            return False

    @property
    def tags(self) -> Mapping[str, str]:
        """The labels that the config's `metric_tags` adds to the metrics."""
        return self.config.metric_tags

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
            for instance in self.instances:
                stack.callback(instance.close)
            stack.callback(self.scheduler.close)
        # Who still holds this version (a form, a page of statistics) must not hold the model.
        self.instances = ()

    def __repr__(self) -> str:
        return f"ServedVersion({self.name!r}, {self.version})"
