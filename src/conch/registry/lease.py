"""How long a model's files are kept: until the load and the last version that uses them are done with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from conch.pb.model_config_pb2 import ModelConfig
from conch.repository.api import StoredModel


class Lease:
    """Gives a model's files back when the load and the last version that uses them are done with them."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._lock = threading.Lock()
        self._holders = 1

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def drop(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._release()


#: An ensemble as it was read; the lease keeps its files, and is held once more for each load.
Read = tuple[StoredModel, ModelConfig, Lease]


def leased(stored: StoredModel, config: ModelConfig) -> Read:
    """What was read, to be loaded any number of times. Its files are kept until the lease is dropped."""
    lease = Lease(stored.release)
    return replace(stored, release=lease.drop), config, lease
