"""Where a model repository lies when it is not a folder: URLs of cloud storages, as Triton spells them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: As Triton's: a host counts as one when a port follows it. We let a scheme say it too.
_S3_HOST: Final = re.compile(r"(?:(https?)://)?([^/@]+):([0-9]+)(?:/|$)|(https?)://([^/@]+)(?:/|$)")
_AZURE_HOST: Final = re.compile(r"(https?)://([^/@]+)/([^/]+)(?:/|$)")
#: Up to the host.
_BEGIN: Final = re.compile(r"[^:/]*://(?:https?://)?")
#: Letters of what stands in a query and is no secret, such as a version or `https`.
_WORD: Final = 7
_AZURE_SUFFIX: Final = ".blob.core.windows.net"


class UrlError(ValueError):
    """Why an URL cannot be a repository; the text is for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """A repository behind an URL.

    `scheme` is `s3`, `gs`, `as` or any other that fsspec knows. `path` is what the storage calls the place: bucket or
    container first, without slashes at the ends; for other schemes the whole URL.
    """

    #: As it was given; may hold a password or a signature.
    text: str
    scheme: str
    path: str
    #: Of a private endpoint, such as `http://minio:9000`; empty for the provider's own.
    endpoint: str = ""
    #: The storage account of Azure; empty elsewhere.
    account: str = ""

    def __str__(self) -> str:
        """The URL without what nobody should see."""
        return shown(self.text)

    def __repr__(self) -> str:
        return f"RepositoryUrl({shown(self.text)!r})"

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    def secrets(self) -> list[str]:
        """Texts of the URL that no log may hold: password or token, and the query, as written and as it is meant."""
        user = _user(self.text)
        found = [user, user.partition(":")[2]] if shown(self.text) != self.text else []
        # Without words as short as these an error could not be read.
        found += [each for part in self.query.split("&") if len(each := part.partition("=")[2]) > _WORD]
        found += [unquote(each) for each in [*found, self.query]]
        return [each for each in dict.fromkeys([*found, self.query]) if each]

    @property
    def query(self) -> str:
        """Behind the question mark: a signature of Azure; empty where there is none."""
        return self.text.partition("?")[2]


def is_url(text: str) -> bool:
    """Whether this names a storage instead of a folder; `file://` is a folder."""
    return bool(_URL.match(text)) and not text.startswith("file://")


def parse_url(text: str) -> RepositoryUrl:
    """Raises UrlError."""
    found = _URL.match(text)
    if found is None:
        raise UrlError(f"'{shown(text)}' is not an URL")
    scheme, rest = found[1].lower(), text[found.end() :]
    if not text.isprintable():
        raise UrlError(f"'{shown(text)!r}' holds characters that no URL has")
    match scheme:
        case "s3":
            return _s3(text, rest)
        case "gs":
            return RepositoryUrl(text, "gs", _bucket_path(text, rest))
        case "as":
            return _azure(text, rest)
    if not rest.strip("/") and scheme != "memory":
        raise UrlError(f"'{shown(text)}' names no place after '{scheme}://'")
    return RepositoryUrl(text, scheme, text.rstrip("/"))


def shown(text: str) -> str:
    """`text` without password and query, which may hold a signature."""
    begin = _BEGIN.match(text)
    if begin is None:
        return text
    place, question, query = text[begin.end() :].partition("?")
    host, slash, path = place.partition("/")
    user, at, host = host.rpartition("@")
    # Where no user is asked for, the name is a token.
    user = "***" if ":" in user or (at and "http" in begin[0]) else user
    return f"{begin[0]}{user}{at}{host}{slash}{path}{question}{'***' if query else ''}"


def _user(text: str) -> str:
    begin = _BEGIN.match(text)
    return text[begin.end() if begin else 0 :].partition("/")[0].rpartition("@")[0]


def _s3(text: str, rest: str) -> RepositoryUrl:
    endpoint = ""
    rest = rest.lstrip("/")
    if found := _S3_HOST.match(rest):
        # Without a scheme it is plain HTTP, as in Triton.
        endpoint = f"{found[1] or 'http'}://{found[2]}:{found[3]}" if found[2] else f"{found[4]}://{found[5]}"
        rest = rest[found.end() :]
    return RepositoryUrl(text, "s3", _bucket_path(text, rest), endpoint)


def _azure(text: str, rest: str) -> RepositoryUrl:
    if found := _AZURE_HOST.match(rest):
        endpoint, account, rest = f"{found[1]}://{found[2]}/{found[3]}", found[3], rest[found.end() :]
    else:
        host, _, rest = rest.partition("/")
        account, endpoint = host.removesuffix(_AZURE_SUFFIX), ""
        if "." in account:
            # A private endpoint or another cloud, such as account.blob.core.chinacloudapi.cn.
            account, endpoint = host.partition(".")[0], f"https://{host}"
    rest = rest.partition("?")[0]
    if not account or not rest.strip("/"):
        raise UrlError(f"Invalid azure storage path: {shown(text)}; expected as://<account>/<container>/<path>")
    return RepositoryUrl(text, "as", _clean(rest), endpoint, account)


def _bucket_path(text: str, rest: str) -> str:
    path = _clean(rest)
    if not path:
        raise UrlError(f"No bucket name found in path: {shown(text)}")
    return path


def _clean(path: str) -> str:
    """Without slashes at the ends and doubled ones, as Triton does it."""
    return re.sub("/+", "/", path).strip("/")
