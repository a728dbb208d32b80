"""From the repositories of the command line to one store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conch.config.cloud import FindCredential, cache_directory, cloud_credential
from conch.config.repository_url import RepositoryUrl
from conch.config.server import RepositoryOptions
from conch.repository.api import ModelStore
from conch.repository.content_cache import ContentCache
from conch.repository.download import Downloads
from conch.repository.joined import JoinedStore, Part
from conch.repository.local import LocalStore
from conch.repository.remote import RemoteStore


class Repositories:
    """The server's store, and what has to be done with it at the start and at the end."""

    def __init__(self, store: ModelStore, remote: list[RemoteStore], end: Callable[[], None]) -> None:
        self.store = store
        self._remote = remote
        self._end = end

    def check(self) -> None:
        """Whether the storages can be read. May take seconds. Raises InferError."""
        for each in self._remote:
            each.check()

    def interrupt(self) -> None:
        """The server stops: nobody shall wait for a storage any more. From any thread."""
        for each in self._remote:
            each.close()

    def close(self) -> None:
        """No model runs any more."""
        self._end()


def open_repositories(options: RepositoryOptions, credential: FindCredential = cloud_credential) -> Repositories:
    folders = [path for path in options.paths if isinstance(path, Path)]
    urls = list(dict.fromkeys(path for path in options.paths if isinstance(path, RepositoryUrl)))
    # Where nothing is ever loaded again, nothing has to be read to see whether it has changed.
    by_content = options.control_mode != "none" or options.watch
    local = LocalStore(folders, options.config_name, namespacing=options.namespacing, by_content=by_content)
    if not urls:
        return Repositories(local, [], _nothing)
    downloads = Downloads()
    caches: dict[Path, ContentCache] = {}
    remote: list[RemoteStore] = []
    for url in urls:
        place = cache_directory(options.cache_directory, url.scheme)
        cache = caches.setdefault(place, ContentCache(place, options.cache_bytes))
        remote.append(
            RemoteStore(url, credential, cache, downloads, options.config_name, namespacing=options.namespacing)
        )

    def end() -> None:
        downloads.close()
        for cache in caches.values():
            cache.close()

    parts: list[Part] = [*([local] if folders else []), *remote]
    return Repositories(parts[0] if len(parts) == 1 else JoinedStore(parts), remote, end)


def _nothing() -> None:
    """Folders need no end."""
