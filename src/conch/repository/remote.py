"""A model repository in a cloud storage, or anywhere else that fsspec reaches; models are served from local copies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from blake3 import blake3

from conch.config.cloud import FindCredential
from conch.config.json import parse_json
from conch.config.pbtxt import parse_text
from conch.config.repository_url import RepositoryUrl
from conch.pb.model_config_pb2 import ModelConfig
from conch.repository import override
from conch.repository.api import StoredModel, Survey
from conch.repository.bucket import Bucket
from conch.repository.content_cache import ContentCache
from conch.repository.download import ChangedError, Downloads
from conch.repository.layout import CONFIG_FILE, Layout, RemoteFile, layout
from conch.repository.listing import Listing
from conch.repository.local import check_name, is_name
from conch.repository.versions import select
from conch.types.error import InferError, internal, invalid, not_found
from conch.types.model import identity

log = logging.getLogger("conch.repository")

#: How often files may change while they are brought, and the seconds before the second try, which double.
TRIES: Final = 5
FIRST_PAUSE: Final = 0.25


class RemoteStore:
    """A `ModelStore` of one URL. All calls from any thread; `names` does not wait on an event loop's.

    With `namespacing` the repository is a namespace, called by its URL.
    """

    def __init__(
        self,
        url: RepositoryUrl,
        credential: FindCredential,
        cache: ContentCache,
        downloads: Downloads,
        config_name: str = "",
        *,
        namespacing: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self._bucket = Bucket(url, credential)
        self._cache = cache
        self._downloads = downloads
        self._config_name = config_name
        self._namespace = str(url) if namespacing else ""
        self._listing = Listing(self._bucket, clock)

    @property
    def namespaces(self) -> Sequence[str]:
        return [self._namespace] if self._namespace else ()

    def check(self) -> None:
        """Whether the repository can be read. Raises InferError."""
        self._listing.ask()

    def names(self) -> list[str]:
        return sorted(identity(self._namespace, name) for name in self._listing.names())

    def duplicates(self) -> frozenset[str]:
        return frozenset()

    def places(self, name: str) -> list[str]:
        """Where models called so lie, without namespaces: here or nowhere."""
        if not is_name(name):
            return []
        try:
            self._bucket.files(name)
        except FileNotFoundError:
            return []
        except InferError as error:
            if name not in self._listing.last():
                # Whoever wants a model of another repository should not wait for this one.
                log.warning("%s", error.message)
                return []
        return [str(self.url)]

    def survey(self) -> Survey:
        try:
            models = {name: files for name, files in self._bucket.tree().items() if is_name(name)}
        except (InferError, FileNotFoundError) as error:
            self._listing.tell(error)
            return Survey({}, complete=False)
        self._listing.note(models)
        return Survey(
            {identity(self._namespace, name): _look(layout(files, self._config_name)) for name, files in models.items()}
        )

    def contents(self, name: str) -> str:
        return _look(self._layout(self._split(name)))

    def fetch(self, name: str) -> StoredModel:
        return self._fetch(name, None)

    def fetch_override(self, name: str, config: str, files: Mapping[str, bytes]) -> StoredModel:
        if not files:
            return self._fetch(name, config)
        plain = self._split(name)
        check_name(plain)
        directory, remove = override.build(plain, files)
        given = layout(
            [RemoteFile(override.inside(path), len(data), blake3(data).hexdigest()) for path, data in files.items()]
        )
        stored = self._stored(plain, directory, given, config, remove, overridden=True)
        return replace(stored, override=True, place=str(directory))

    def close(self) -> None:
        """What is being brought is given up. Models that run keep their files."""
        self._bucket.close()
        self._listing.close()

    def _fetch(self, name: str, config: str | None) -> StoredModel:
        """`config` is the override's JSON; None for the repository's own."""
        plain = self._split(name)
        pause = FIRST_PAUSE
        for attempt in range(TRIES):
            if attempt:
                self._bucket.pause(pause)
                pause *= 2
            try:
                found = self._layout(plain)
                stored = self._bring(plain, found, config)
            except (ChangedError, FileNotFoundError) as error:
                log.info("the files of model '%s' changed while they were read: %s", name, error)
                continue
            for warning in found.warnings:
                log.warning("%s", warning)
            return stored
        raise internal(
            f"failed to read model '{name}' from {self.url}: its files changed {TRIES} times while they were read",
            "load it when all its files have been written",
        )

    def _bring(self, name: str, found: Layout, config: str | None) -> StoredModel:
        """Raises ChangedError and FileNotFoundError when what was found is not there any more."""
        place = f"{self.url}/{name}"
        text = None
        own = found.config if config is None else None
        if own is not None:
            with self._cache.pinned(own.keys(place)):
                keys, _ = self._downloads.bring(self._bucket, self._cache, name, [own], quiet=True)
                text = self._text(keys[own.path], f"{place}/{own.path}")
        needed = found.needed(self._versions(name, found, config if config is not None else text, config is not None))
        with self._cache.pinned(key for file in needed for key in file.keys(place)):
            keys, brought = self._downloads.bring(self._bucket, self._cache, name, needed)
            if brought and self._layout(name).fingerprint != found.fingerprint:
                raise ChangedError("another state was listed afterwards")
            directory, remove = self._cache.view(name)
            try:
                for number in found.versions:
                    (directory / str(number)).mkdir(exist_ok=True)
                for path, key in keys.items():
                    self._link(key, directory, path)
                return self._stored(name, directory, found, text if config is None else config, remove,
                                    overridden=config is not None)  # fmt: skip
            except BaseException:
                remove()
                raise

    def _link(self, key: str, directory: Path, path: str) -> None:
        """Raises FileNotFoundError, see `ContentCache.link`, and InferError."""
        try:
            self._cache.link(key, directory / override.inside(path))
        except (FileExistsError, NotADirectoryError) as error:
            raise invalid(
                f"failed to read model '{directory.name}' from {self.url}: its files do not form a folder, '{path}' "
                "lies where another file is",
                "delete one of them",
            ) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._cache.refusal(error) from error

    def _stored(
        self, name: str, directory: Path, found: Layout, text: str | None, remove: Callable[[], None], *,
        overridden: bool,
    ) -> StoredModel:  # fmt: skip
        source = f"{self.url}/{name}/{found.config.path if found.config else CONFIG_FILE}"
        looks = found.fingerprint
        return StoredModel(
            name,
            directory,
            text,
            "the load request's config" if overridden else source,
            tuple(found.versions),
            replace(looks, config=text or "") if overridden else looks,
            overridden,
            release=remove,
            namespace=self._namespace,
            place=f"{self.url}/{name}",
        )

    def _layout(self, name: str) -> Layout:
        try:
            files = self._bucket.files(name).values() if is_name(name) else ()
        except FileNotFoundError:
            files = ()
        if not files:
            raise not_found(f"failed to poll model '{name}': model not found in any model repository.")
        return layout(files, self._config_name)

    def _versions(self, name: str, found: Layout, text: str | None, overridden: bool) -> Sequence[int]:
        """Those that the version policy picks: old versions of large models need not come. What is wrong with the
        config is said by whoever reads it next."""
        try:
            config = None if text is None else (parse_json(text) if overridden else parse_text(text, CONFIG_FILE))
            known = config or ModelConfig()
            chosen = select(known.version_policy, tuple(found.versions), name)[0]
        except InferError:
            return ()
        if known.backend or known.platform:
            return chosen
        # What kind of model it is, is told by the files of the version that comes first as text.
        return sorted({*chosen, min(found.versions, key=str)})

    def _text(self, key: str, source: str) -> str:
        try:
            return self._cache.read(key).decode()
        except UnicodeDecodeError as error:
            raise invalid(f"failed to read text proto from {source}: it is not UTF-8 text ({error.reason})") from error

    def _split(self, wanted: str) -> str:
        return wanted.removeprefix(identity(self._namespace, "")) if self._namespace else wanted


def _look(found: Layout) -> str:
    """Of sizes and tags, which change with the files and need no reading."""
    return repr(found.fingerprint)
