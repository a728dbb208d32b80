"""From a loaded version and the server's cache to a scheduler that remembers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Protocol

from conch.cache.api import Cache
from conch.cache.key import Keys, join
from conch.cache.scheduler import CachedScheduler, Inner, Line, Post
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec

_log = logging.getLogger("conch.cache")


class Identity(Protocol):
    """What decides how a version answers (`registry.lifecycle.Key`): where it lies, its config, its files' stamps."""

    @property
    def directory(self) -> str: ...
    @property
    def config(self) -> bytes: ...
    @property
    def shared(self) -> str: ...
    @property
    def files(self) -> str: ...


class Remember:
    """Puts `cache` in front of schedulers. `line` makes what keeps answers in order, for `preserve_ordering`."""

    def __init__(self, cache: Cache, post: Post, line: Callable[[], Line]) -> None:
        self._cache = cache
        self._post = post
        self._line = line
        self._run = os.urandom(16)

    def __call__(
        self, inner: Inner, spec: ModelSpec, config: ModelConfig, stats: ModelStats, key: Identity, /
    ) -> Inner:
        """`inner` itself where its answers must not be remembered: ensembles are as their members are."""
        reason = _unfit(inner, spec)
        if reason:
            _log.warning("ensemble '%s': 'response_cache' has no effect, %s", spec.name, reason)
            return inner
        identity = [key.directory.encode("utf-8", "surrogatepass"), key.config, key.shared.encode(), key.files.encode()]
        ensemble = config.HasField("ensemble_scheduling")
        if ensemble:
            # Its answers are its members', whose files are not its own: they hold until any model comes or goes, and
            # mean nothing to another server.
            identity.append(self._run)
        return CachedScheduler(
            inner,
            self._cache,
            Keys(spec, join(identity), by_generation=ensemble),
            stats,
            self._post,
            spec.name,
            line=self._line() if config.dynamic_batching.preserve_ordering else None,
        )


def _unfit(inner: Inner, spec: ModelSpec) -> str:
    """Why nothing may be remembered; empty where it may. Models of these kinds are refused by the config's rules."""
    if spec.decoupled:
        return "one of its models may answer a request more than once"
    # See `schedule.api.Sequential`.
    return "one of its models keeps sequences" if getattr(inner, "sequential", False) else ""
