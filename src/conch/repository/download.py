"""Brings files from a storage to the local cache: in parallel, in pieces, each tried again by itself."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conch.repository.bucket import Bucket
from conch.repository.content_cache import ContentCache
from conch.repository.layout import RemoteFile
from conch.types.error import InferError, unavailable

log = logging.getLogger("conch.repository")

#: Files are read in pieces of so many bytes: what is lost with a connection is small.
PIECE: Final = 8 * 2**20
#: Pieces that are on their way at the same time.
THREADS: Final = 16
_MB: Final = 1_000_000


class ChangedError(Exception):
    """A file is not what it was when it was listed."""


@dataclass(slots=True)
class _Coming:
    """A file that is being brought."""

    source: str
    file: RemoteFile
    #: See `RemoteFile.keys`.
    keys: tuple[str, ...]
    partial: Path
    left: int = 0
    #: The MD5 of what came when it was not what the ETag said; the same again is the truth.
    came: str = ""
    failed: bool = False


@dataclass(slots=True)
class _Progress:
    """What the log says of a download, at most once a second."""

    model: str
    source: str
    files: int
    size: int
    begun: float
    told: float
    got: int = 0
    done: int = 0

    def tell(self, now: float) -> None:
        if now - self.told >= 1.0:
            self.told = now
            log.info(
                "downloading '%s' from %s: %.1f of %.1f MB, %d of %d files, %.1f MB/s",
                self.model, self.source, self.got / _MB, self.size / _MB, self.done, self.files, self._speed(now),
            )  # fmt: skip

    def end(self, now: float) -> None:
        log.info(
            "downloaded '%s' from %s: %d of its files, %.1f MB in %.2f s, %.1f MB/s",
            self.model, self.source, self.files, self.got / _MB, now - self.begun, self._speed(now),
        )  # fmt: skip

    def _speed(self, now: float) -> float:
        return self.got / _MB / max(now - self.begun, 1e-3)


class Downloads:
    """Brings what the cache lacks. Calls from any thread; they share the threads that read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "conch-download")
        self._clock = clock
        #: Repositories whose ETags look like MD5 and are none, as with keys of KMS.
        self._other_tags: set[str] = set()

    def bring(
        self,
        bucket: Bucket,
        cache: ContentCache,
        model: str,
        files: Iterable[RemoteFile],
        *,
        quiet: bool = False,
    ) -> tuple[dict[str, str], bool]:
        """Afterwards all files are in the cache: path -> key there, and whether any had to be brought. `quiet`: the log
        is told of it only when it takes long.

        Raises InferError, and ChangedError when a file is not what it should be.
        """
        names = {file: file.keys(f"{bucket.url}/{model}") for file in files}
        here: dict[str, str] = {}
        brought = False
        # Files that were taken for equal may turn out not to be: those that nobody has brought come in a second turn.
        for _ in range(2):
            missing: dict[str, RemoteFile] = {}
            for file, keys in names.items():
                key = next((each for each in keys if cache.has(each, file.size)), "")
                if key:
                    here[file.path] = key
                else:
                    missing[keys[0 if self._trusts(bucket) else -1]] = file
            if not missing:
                break
            brought = True
            self._bring_missing(bucket, cache, model, [(file, names[file]) for file in missing.values()], here, quiet)
        for file in names:
            if file.path not in here:
                raise ChangedError(f"another server has removed {model}/{file.path} from the cache")
        return here, brought

    def _bring_missing(
        self,
        bucket: Bucket,
        cache: ContentCache,
        model: str,
        missing: Sequence[tuple[RemoteFile, tuple[str, ...]]],
        here: dict[str, str],
        quiet: bool,
    ) -> None:
        sizes = sum([max(file.size, 0) for file, _ in missing])
        cache.make_room(sizes)
        now = self._clock()
        progress = _Progress(model, f"{bucket.url}", len(missing), sizes, now, now)
        coming: list[_Coming] = []
        try:
            for file, keys in missing:
                coming.append(_Coming(f"{model}/{file.path}", file, keys, cache.begin()))
            here |= self._carry_out(bucket, cache, coming, progress)
        finally:
            for each in coming:
                each.partial.unlink(missing_ok=True)
        if not quiet:
            progress.end(self._clock())

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _trusts(self, bucket: Bucket) -> bool:
        """Whether what looks like an MD5 is believed to be one, as long as it proves to be."""
        return bucket.url.text not in self._other_tags

    def _carry_out(
        self, bucket: Bucket, cache: ContentCache, coming: Sequence[_Coming], progress: _Progress
    ) -> dict[str, str]:
        """Path -> key of all that came."""
        here: dict[str, str] = {}
        # Only this thread touches `coming`, and `failed` of it alone is read elsewhere.
        under_way: dict[Future[Any], _Coming] = {}
        checking: dict[Future[Any], _Coming] = {}
        try:
            for each in coming:
                self._ask_for(bucket, cache, each, under_way)
            while under_way or checking:
                wait([*under_way, *checking], timeout=1.0, return_when=FIRST_COMPLETED)
                for future in [each for each in (*under_way, *checking) if each.done()]:
                    if future in under_way:
                        each = under_way.pop(future)
                        progress.got += future.result()
                        each.left -= 1
                        if each.left == 0:
                            checking[self._pool.submit(_md5, each.partial, each.file, self._trusts(bucket))] = each
                        continue
                    each = checking.pop(future)
                    key = self._key_of(bucket, each, future.result())
                    if key:
                        cache.finish(each.partial, key)
                        here[each.file.path] = key
                        progress.done += 1
                    else:
                        self._ask_for(bucket, cache, each, under_way)
                progress.tell(self._clock())
        except (RuntimeError, CancelledError) as error:
            # The pool takes nothing any more, or has given up what it had.
            raise unavailable("Server exiting") from error
        finally:
            for each in coming:
                each.failed = True
            # What is cancelled never runs; what runs sees `failed`. A pool that is shut down cancels without telling
            # those who wait.
            left = [future for future in (*under_way, *checking) if not future.cancel()]
            while left := [future for future in left if not future.done()]:
                wait(left, timeout=1.0)
        return here

    def _ask_for(
        self, bucket: Bucket, cache: ContentCache, each: _Coming, under_way: dict[Future[Any], _Coming]
    ) -> None:
        size = each.file.size
        pieces = [(0, -1)] if size < 0 else [(at, min(at + PIECE, size)) for at in range(0, size, PIECE)] or [(0, 0)]
        each.left = len(pieces)
        for start, end in pieces:
            under_way[self._pool.submit(_piece, bucket, cache, each, start, end)] = each

    def _key_of(self, bucket: Bucket, each: _Coming, md5: str) -> str:
        """What the bytes that came are called; empty: they are not those that the storage says, bring them again.
        `md5` is empty where nothing is to be compared. Raises ChangedError."""
        file = each.file
        if 0 <= file.size != each.partial.stat().st_size:
            raise ChangedError(f"{each.source} has another size than it had when it was listed")
        if not md5:
            return each.keys[-1]
        if md5 == (file.md5 or file.probable_md5):
            return each.keys[0]
        if file.probable_md5 and md5 == each.came:
            # Twice the same is what there is.
            self._other_tags.add(bucket.url.text)
            return each.keys[-1]
        if each.came:
            raise ChangedError(f"{each.source} has another content than it had when it was listed")
        each.came = md5
        return ""


def _piece(bucket: Bucket, cache: ContentCache, each: _Coming, start: int, end: int) -> int:
    """Bring one piece and write it to its place; how many bytes it had."""
    if each.failed:
        return 0
    try:
        data = b"" if start == end else bucket.read(each.source, start, end)
    except FileNotFoundError as error:
        raise ChangedError(f"{each.source} has gone since it was listed") from error
    except InferError as error:
        reason = error.message.removeprefix(f"failed to read model repository {bucket.url}: ")
        raise InferError(error.code, f"failed to download {bucket.url}/{each.source}: {reason}", error.hint) from error
    try:
        with each.partial.open("r+b") as file:
            file.seek(start)
            file.write(data)
    except OSError as error:
        raise cache.refusal(error) from error
    return len(data)


def _md5(path: Path, file: RemoteFile, trusted: bool) -> str:
    """Of what came; empty when the storage does not say what it should be."""
    if not (file.md5 or (trusted and file.probable_md5)):
        return ""
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
