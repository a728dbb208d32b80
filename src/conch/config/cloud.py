"""Credentials and the local cache of cloud repositories: environment, Triton's credential file, flags."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from conch.config.repository_url import RepositoryUrl
from conch.types.error import InferError, internal, not_found

CREDENTIAL_FILE: Final = "TRITON_CLOUD_CREDENTIAL_PATH"
#: Scheme -> Triton's variable for the folder where models are copied to.
_MOUNTS: Final = {
    "s3": "TRITON_AWS_MOUNT_DIRECTORY",
    "gs": "TRITON_GCS_MOUNT_DIRECTORY",
    "as": "TRITON_AZURE_MOUNT_DIRECTORY",
}
#: Scheme -> what a credential may say -> the variable of the environment that says it.
_FIELDS: Final[dict[str, dict[str, str]]] = {
    "s3": {
        "key_id": "AWS_ACCESS_KEY_ID",
        "secret_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "region": "AWS_DEFAULT_REGION",
        "profile": "AWS_PROFILE",
    },
    "gs": {"path": "GOOGLE_APPLICATION_CREDENTIALS", "endpoint": "STORAGE_EMULATOR_HOST"},
    "as": {
        "account_str": "AZURE_STORAGE_ACCOUNT",
        "account_key": "AZURE_STORAGE_KEY",
        "auth_type": "AZURE_STORAGE_AUTH_TYPE",
        "client_id": "AZURE_STORAGE_CLIENT_ID",
        "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
        "sas_token": "AZURE_STORAGE_SAS_TOKEN",
    },
}
_SECRET: Final = frozenset({"secret_key", "session_token", "account_key", "connection_string", "sas_token"})
#: Of a connection string, or of a signature.
_SECRET_PARTS: Final = frozenset({"accountkey", "sharedaccesssignature", "sig"})
#: 50 GiB: some models of the usual sizes in a few versions.
DEFAULT_CACHE_BYTES: Final = 50 * 2**30


@dataclass(frozen=True, slots=True)
class Credential:
    """What to tell a storage who we are; fields as in Triton's credential file. Empty: ask the provider's own chain."""

    fields: Mapping[str, str] = field(default_factory=dict, repr=False)

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    def secrets(self) -> list[str]:
        """Texts that no log may hold: also the parts of those that are made of some, as written and as it is meant."""
        found = [value for name, value in self.fields.items() if name in _SECRET and value]
        for value in (self.get("connection_string"), self.get("sas_token")):
            parts = [part.partition("=") for part in re.split("[;&?]", value)]
            found += [worth for name, _, worth in parts if name.lower() in _SECRET_PARTS and worth]
        found += [unquote(each) for each in found]
        return list(dict.fromkeys(found))


#: Asked at each new connection: credentials may be renewed while the server runs. Raises InferError.
FindCredential = Callable[[RepositoryUrl], Credential]


def cloud_credential(url: RepositoryUrl, environ: Mapping[str, str] = os.environ) -> Credential:
    """The credential for this repository, from Triton's file where there is one, else from the environment.

    Raises InferError where the file cannot be read or holds nothing for it.
    """
    named = _FIELDS.get(url.scheme)
    path = environ.get(CREDENTIAL_FILE)
    if named is None:
        return Credential()
    if not path:
        return Credential({name: environ[variable] for name, variable in named.items() if environ.get(variable)})
    chosen = choose(read_credentials(Path(path)), url)
    if url.scheme == "gs" and environ.get("STORAGE_EMULATOR_HOST"):
        return Credential({**chosen.fields, "endpoint": environ["STORAGE_EMULATOR_HOST"]})
    return chosen


def read_credentials(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Triton's file: scheme -> prefix of the URL -> credential. Raises InferError; no text shows what is inside."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(path, error.strerror or "it cannot be read") from error
    except ValueError as error:
        raise _bad(path, f"it is not JSON ({type(error).__name__})") from None
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise _bad(path, "it is no object of objects")
    return found


def choose(credentials: Mapping[str, Mapping[str, Any]], url: RepositoryUrl) -> Credential:
    """The entry whose name is the longest that the URL begins with. Raises InferError when there is none."""
    entries = credentials.get(url.scheme, {})
    fitting = [name for name in entries if url.text.startswith(name)]
    if not fitting:
        raise not_found(
            f"Cannot match credential for path  {url}",
            f'add an entry of "{url.scheme}" to the file of {CREDENTIAL_FILE}; the entry "" fits everything',
        )
    entry = entries[max(fitting, key=len)]
    if url.scheme == "gs":
        return Credential({"path": entry} if isinstance(entry, str) and entry else {})
    known = _FIELDS[url.scheme]
    if not isinstance(entry, dict):
        return Credential()
    return Credential({name: value for name, value in entry.items() if name in known and isinstance(value, str)})


def mount_directory(scheme: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where Triton would copy models of this kind of storage, if the environment says so."""
    place = environ.get(_MOUNTS.get(scheme, ""), "")
    return Path(place) if place else None


def default_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """By the XDG rules; in the system's temporary folder, a folder for each user, where there is no home."""
    base = environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "conch" / "repository"
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return Path(home) / ".cache" / "conch" / "repository"
    # Without a folder in between, which somebody else could have made and could put another one in place of ours.
    return Path(tempfile.gettempdir()) / f"conch-repository-{os.getuid()}"


def cache_directory(chosen: str, scheme: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the local copies: of `--repository-cache`, else Triton's variable, else the user's cache."""
    return (
        Path(chosen).absolute() if chosen else (mount_directory(scheme, environ) or default_cache(environ)).absolute()
    )


def _bad(path: Path, why: str) -> InferError:
    return internal(f"failed to read the cloud credentials {path}: {why}", f"{CREDENTIAL_FILE} names this file")
