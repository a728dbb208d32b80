"""One repository in a storage: lists and reads, within bounded time, with errors in words that can be shown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, Final, TypeVar

from conch.config.cloud import Credential, FindCredential
from conch.config.repository_url import RepositoryUrl
from conch.repository.connect import connect
from conch.repository.layout import RemoteFile
from conch.types.error import InferError, internal, unavailable

log = logging.getLogger("conch.repository")

_T = TypeVar("_T")
#: Seconds for one question to the storage, its connection included.
ASK_SECONDS: Final = 60.0
#: How often a question is asked before it counts as failed, and the seconds before the second time, which double.
ATTEMPTS: Final = 5
FIRST_PAUSE: Final = 0.2
#: Parts of errors' names that mean "you may not": asking again changes nothing.
_REFUSED: Final = (
    "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentials", "PartialCredentials",
    "ProfileNotFound", "ClientAuthentication", "CredentialUnavailable", "DefaultCredentials", "RefreshError",
    "Unauthorized", "InvalidAuthentication", "AuthenticationFailed", "AuthorizationFailure", "ExpiredToken",
)  # fmt: skip
#: As such errors say it, where their names say nothing.
_REFUSED_TEXTS: Final = ("Invalid Credentials", "Anonymous caller", "not authorized", "Access Denied")


class Bucket:
    """All calls from any thread but an event loop's, and blocking; each raises InferError, and FileNotFoundError
    where there is nothing.

    `close` ends the calls that wait, with an error, and those that come.
    """

    def __init__(self, url: RepositoryUrl, credential: FindCredential) -> None:
        self.url = url
        self._credential = credential
        self._secrets: list[str] = []
        self._lock = threading.Lock()
        #: Held while a connection is made, which may take seconds; `close` does not wait for it.
        self._connecting = threading.Lock()
        self._filesystem: Any = None
        self._anonymous = False
        self._ending = threading.Event()
        self._asked: set[Future[Any]] = set()

    def folders(self) -> list[str]:
        """The names of the folders in the repository: its models."""
        try:
            entries = self._ask("ls", self.url.path, detail=True)
        except FileNotFoundError:
            if not self._exists():
                raise
            return []
        return [_name(entry) for entry in entries if entry["type"] == "directory"]

    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Relative path -> file, of all that lies below the folder, at any depth."""
        files: dict[str, RemoteFile] = {}
        for path, details in self._find(f"{self.url.path}/{folder}"):
            files[path] = remote_file(path, details)
        if not files:
            raise FileNotFoundError(folder)
        return files

    def tree(self) -> dict[str, list[RemoteFile]]:
        """All models of the repository with their files, asked for in one go."""
        models: dict[str, list[RemoteFile]] = {}
        for path, details in self._find(self.url.path):
            name, slash, rest = path.partition("/")
            if slash:
                models.setdefault(name, []).append(remote_file(rest, details))
        if not models:
            # Raises where there is not even a repository.
            self.folders()
        return models

    def read(self, path: str, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end` of the file; all of it when `end` is negative."""
        full = f"{self.url.path}/{path}"
        if end < 0:
            return bytes(self._ask("cat_file", full))

        def whole(data: bytes) -> bytes:
            if len(data) > end - start and start + len(data) >= end:
                # Web servers may give everything whatever was asked for.
                data = data[start:end]
            if len(data) != end - start:
                raise ConnectionError(f"got {len(data)} of {end - start} bytes")
            return data

        return bytes(self._ask("cat_file", full, start=start, end=end, check=whole))

    def pause(self, seconds: float) -> None:
        """Raises InferError when the server stops meanwhile."""
        if self._ending.wait(seconds):
            raise unavailable("Server exiting")

    def close(self) -> None:
        self._ending.set()
        with self._lock:
            asked, self._asked = self._asked, set()
            filesystem, self._filesystem = self._filesystem, None
        for future in asked:
            future.cancel()
        _release(filesystem)

    def _find(self, root: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """For each file below: its path from there on, and what is known of it."""
        try:
            found: Mapping[str, Mapping[str, Any]] = self._ask("find", root, detail=True)
        except FileNotFoundError:
            return
        # As the storage calls it: some leave out the scheme, some put a slash in front.
        mark = str(self._connected()._strip_protocol(root)).strip("/") + "/"
        for full, details in found.items():
            path = full.lstrip("/").removeprefix(mark)
            if full.lstrip("/").startswith(mark) and path and details["type"] == "file":
                # Listings of web servers are names alone.
                yield path, details if details.get("size") is not None else {**details, **self._ask("info", full)}

    def _exists(self) -> bool:
        """Whether there is a bucket: it may just be empty."""
        try:
            self._ask("ls", self.url.bucket, detail=False)
        except FileNotFoundError:
            return False
        return True

    def _ask(self, verb: str, *arguments: Any, check: Callable[[Any], Any] | None = None, **options: Any) -> Any:
        """A question, repeated when the wire is at fault; renewed credentials are tried once."""
        pause, denied = FIRST_PAUSE, None
        for attempt in range(1, ATTEMPTS + 1):
            if self._ending.is_set():
                raise unavailable("Server exiting")
            asked = None
            try:
                asked = self._connected()
                answer = self._once(asked, verb, *arguments, **options)
                return answer if check is None else check(answer)
            except (InferError, FileNotFoundError, CancelledError) as error:
                if isinstance(error, CancelledError):
                    raise unavailable("Server exiting") from error
                raise
            except Exception as error:  # noqa: BLE001  each library has its own, and their bases differ
                if _refused(error):
                    self._forget(asked, anonymous=_nameless(error))
                    if denied is None and attempt < ATTEMPTS:
                        denied = error
                        continue
                    told = denied if denied is not None and _nameless(error) else error
                    raise self._failure(told, "check the credentials and what they allow") from None
                log.debug("attempt %d of %d at %s: %s", attempt, ATTEMPTS, self.url, self._reason(error))
                if attempt == ATTEMPTS:
                    raise self._failure(error, "check the address and the network") from None
            self.pause(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _once(self, filesystem: Any, verb: str, *arguments: Any, **options: Any) -> Any:
        if not filesystem.async_impl:
            return getattr(filesystem, verb)(*arguments, **options)
        question = getattr(filesystem, f"_{verb}")(*arguments, **options)
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(question, ASK_SECONDS), filesystem.loop)
        with self._lock:
            self._asked.add(future)
        if self._ending.is_set():
            future.cancel()
        try:
            return future.result()
        except TimeoutError:
            raise TimeoutError(f"no answer within {ASK_SECONDS:g} s") from None
        finally:
            with self._lock:
                self._asked.discard(future)

    def _connected(self) -> Any:
        with self._connecting:
            filesystem = self._filesystem
            if filesystem is None:
                credential = self._credential(self.url)
                # Kept, so that an old one is not shown either.
                self._secrets += [each for each in credential.secrets() if each not in self._secrets]
                filesystem = self._connect(credential)
                with self._lock:
                    self._filesystem = filesystem
            return filesystem

    def _connect(self, credential: Credential) -> Any:
        try:
            return connect(self.url, credential, anonymous=self._anonymous)
        except InferError:
            raise
        except Exception as error:  # noqa: BLE001  each library has its own
            if _nameless(error) and not self._anonymous:
                self._anonymous = True
                return connect(self.url, credential, anonymous=True)
            raise self._failure(error, "check the credentials") from None

    def _forget(self, filesystem: Any, *, anonymous: bool) -> None:
        """Connect anew: the credentials may have been renewed; without any, public buckets can be read. Others that
        were refused with the same connection have done so already, and use the new one."""
        with self._lock:
            if self._filesystem is not filesystem:
                return
            self._filesystem = None
            self._anonymous = anonymous
        _release(filesystem)

    def _failure(self, error: BaseException, hint: str) -> InferError:
        return internal(f"failed to read model repository {self.url}: {self._reason(error)}", hint)

    def _reason(self, error: BaseException) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        text = text.replace(self.url.text, str(self.url))
        # Errors of libraries name requests, with the signature and without our URL. What holds another goes first.
        for secret in sorted([*self._secrets, *self.url.secrets()], key=len, reverse=True):
            text = text.replace(secret, "***")
        return text if len(text) <= 300 else f"{text[:300]}..."


def remote_file(path: str, details: Mapping[str, Any]) -> RemoteFile:
    """What any of fsspec's storages says of a file."""
    size = details.get("size")
    settings = details.get("content_settings")
    # Of Azure, whose mappings are no `Mapping`.
    raw = settings["content_md5"] if settings is not None else None
    md5 = bytes(raw).hex() if raw else ""
    if encoded := details.get("md5Hash"):
        with contextlib.suppress(ValueError):
            md5 = base64.b64decode(encoded).hex()
    for name in ("ETag", "etag", "generation", "blob_id"):
        if details.get(name):
            tag = str(details[name]).removeprefix("W/").strip('"')
            break
    else:
        # Times and identities of whatever kind.
        tag = repr(sorted((name, str(value)) for name, value in details.items()))
    return RemoteFile(path, -1 if size is None else int(size), tag, md5)


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from: libraries wrap one another's."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    return chain


def _refused(error: BaseException) -> bool:
    for each in _chain(error):
        status = getattr(each, "status_code", None) or getattr(each, "code", None) or getattr(each, "status", None)
        code = _code(each)
        if isinstance(each, PermissionError) or status in (401, 403, "401", "403"):
            return True
        if any(part in name for part in _REFUSED for name in (type(each).__name__, code)):
            return True
        if any(text in str(each) for text in _REFUSED_TEXTS):
            return True
    return False


def _nameless(error: BaseException) -> bool:
    """Nobody says who we are: only then may we ask as nobody."""
    kinds = {type(each).__name__ for each in _chain(error)}
    return bool(kinds & {"NoCredentialsError", "DefaultCredentialsError"})


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    found = response.get("Error", {}).get("Code", "") if isinstance(response, Mapping) else ""
    return f"{found} {getattr(error, 'error_code', '') or ''}"


def _release(filesystem: Any) -> None:
    """Close the connections; libraries do it when they are collected, and say so in warnings."""
    session = getattr(filesystem, "_s3", None) or getattr(filesystem, "_session", None)
    if session is not None and hasattr(filesystem, "close_session"):
        filesystem.close_session(filesystem.loop, session)
    client = getattr(filesystem, "service_client", None)
    if client is not None:
        asyncio.run_coroutine_threadsafe(client.close(), filesystem.loop)
