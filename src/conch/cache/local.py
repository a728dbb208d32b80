"""The cache in this process: as many bytes as its size allows, the answers used last."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from conch.cache.api import Entry
from conch.observe.stats import CacheStats


class LocalCache:
    """Implements `cache.api.Near`. Every step takes the same time, however many entries there are."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.stats = CacheStats()
        self._lock = threading.Lock()
        #: The one used last stands last.
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        #: The sum of the entries' sizes; never more than `size`.
        self._used = 0

    def lookup(self, key: bytes, /) -> Entry | None:
        begun = time.monotonic_ns()
        stats = self.stats
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                stats.misses += 1
            else:
                stats.hits += 1
                self._entries.move_to_end(key)
            stats.lookup_ns += time.monotonic_ns() - begun
        return entry

    def insert(self, key: bytes, entry: Entry, /) -> bool:
        begun = time.monotonic_ns()
        if entry.size > self.size:
            return False
        stats = self.stats
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._used -= old.size
            while self._used + entry.size > self.size:
                _, oldest = self._entries.popitem(last=False)
                self._used -= oldest.size
                stats.evictions += 1
            self._entries[key] = entry
            self._used += entry.size
            stats.entries = len(self._entries)
            stats.utilization = self._used / self.size
            stats.insertion_ns += time.monotonic_ns() - begun
        return True

    def close(self) -> None:
        with self._lock:
            self._entries.clear()
            self._used = 0
