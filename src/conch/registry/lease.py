"""How long a model's files are kept: until the load and the last version that uses them are done with them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from conch.pb.model_config_pb2 import ModelConfig
from conch.repository.api import StoredModel

log = logging.getLogger("conch.registry")


class Lease:
    """Gives a model's files back when the load and the last version that uses them are done with them."""

    def __init__(self, release: Callable[[], None], leaves: Callable[[], None] | None = None) -> None:
        """`leaves` is called once, before `release`, when all who still hold it have said that they will drop it."""
        self._release = release
        self._leaves = leaves
        self._lock = threading.Lock()
        self._holders = 1
        #: Holders that will drop it soon.
        self._leaving = 0

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def leave(self) -> None:
        """A holder has ended its service, and drops the lease once it is closed."""
        with self._lock:
            self._leaving += 1
            last = self._leaving == self._holders
        if last and self._leaves is not None:
            _tell(self._leaves, "failed to tell that a model's files will not be used any more")

    def drop(self) -> None:
        with self._lock:
            self._holders -= 1
            self._leaving = max(0, self._leaving - 1)
            last = self._holders == 0
        if last:
            _tell(self._release, "failed to give a model's files back")


def _tell(call: Callable[[], None], failed: str) -> None:
    """A repository agent may have a word in it, which is foreign code; whoever lets a lease go is done with it."""
    try:
        call()
    except BaseException:
        log.exception(failed)


#: An ensemble as it was read; the lease keeps its files, and is held once more for each load.
Read = tuple[StoredModel, ModelConfig, Lease]


def leased(stored: StoredModel, config: ModelConfig) -> Read:
    """What was read, to be loaded any number of times. Its files are kept until the lease is dropped."""
    lease = Lease(stored.release)
    return replace(stored, release=lease.drop), config, lease
