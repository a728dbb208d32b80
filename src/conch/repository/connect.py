"""From an URL and a credential to a file system of fsspec."""

from __future__ import annotations

from typing import Any, Final

from conch.config.cloud import Credential
from conch.config.repository_url import RepositoryUrl
from conch.types.error import InferError, internal, invalid

#: Seconds; a storage that does not answer is given up, and asked again by our own retries.
CONNECT_SECONDS: Final = 5
SILENT_SECONDS: Final = 30

#: What each scheme needs beside fsspec.
_LIBRARIES: Final = {"s3": "s3fs", "gs": "gcsfs", "as": "adlfs"}


def connect(url: RepositoryUrl, credential: Credential, *, anonymous: bool = False) -> Any:
    """A file system of fsspec without caches of its own. Raises InferError."""
    try:
        match url.scheme:
            case "s3":
                return _s3(url, credential, anonymous)
            case "gs":
                return _gcs(credential, anonymous)
            case "as":
                return _azure(url, credential)
        return _other(url)
    except ImportError as error:
        library = _LIBRARIES.get(url.scheme, "fsspec")
        raise internal(
            f"{url.scheme}:// needs the library {error.name or library}, which is not installed",
            "install it: pip install 'conch[cloud]'",
        ) from error


def _s3(url: RepositoryUrl, credential: Credential, anonymous: bool) -> Any:
    from s3fs import S3FileSystem  # noqa: PLC0415  only who uses it has to have it

    client: dict[str, Any] = {}
    if url.endpoint:
        client["endpoint_url"] = url.endpoint
    if credential.get("region"):
        client["region_name"] = credential.get("region")
    elif url.endpoint:
        # A private endpoint has no regions, and signatures need one.
        client["region_name"] = "us-east-1"
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": SILENT_SECONDS,
        "retries": {"max_attempts": 0},
        "max_pool_connections": 32,
    }
    if url.endpoint:
        config["s3"] = {"addressing_style": "path"}
    given: dict[str, Any] = {}
    if anonymous:
        given["anon"] = True
    elif credential.get("key_id") and credential.get("secret_key"):
        given = {
            "key": credential.get("key_id"),
            "secret": credential.get("secret_key"),
            "token": credential.get("session_token") or None,
        }
    elif credential.get("profile"):
        given["profile"] = credential.get("profile")
    filesystem = S3FileSystem(
        client_kwargs=client, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True, **given
    )
    # Ours know when the server stops, and how long a load may take.
    filesystem.retries = 1
    return filesystem


def _gcs(credential: Credential, anonymous: bool) -> Any:
    # The plain file system: gcsfs's usual one asks for a bucket's type by gRPC, for which the emulators have no ear.
    from gcsfs.core import GCSFileSystem  # noqa: PLC0415

    class Once(GCSFileSystem):  # type: ignore[misc]
        """Without retries, which take half a minute, do not end when the server does, and log stack traces."""

        _request = GCSFileSystem._request.__wrapped__

    endpoint = credential.get("endpoint")
    if endpoint and "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    # With an endpoint of its own, nobody but a given file says who we are.
    token = "anon" if anonymous else credential.get("path") or ("anon" if endpoint else None)
    return Once(
        token=token,
        endpoint_url=endpoint or None,
        requests_timeout=SILENT_SECONDS,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _azure(url: RepositoryUrl, credential: Credential) -> Any:
    from adlfs import AzureBlobFileSystem  # noqa: PLC0415
    from azure.storage.blob.aio import BlobServiceClient  # noqa: PLC0415

    account = credential.get("account_str") or url.account
    limits: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": SILENT_SECONDS,
    }
    filesystem = AzureBlobFileSystem(
        account_name=account, anon=True, use_listings_cache=False, skip_instance_cache=True
    )
    place = url.endpoint or f"https://{account}.blob.core.windows.net"
    kind = credential.get("auth_type")
    who: Any = None
    if kind in {"managed_identity", "default"}:
        from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential  # noqa: PLC0415

        name = credential.get("client_id")
        if kind == "default":
            who = DefaultAzureCredential()
        else:
            who = ManagedIdentityCredential(client_id=name) if name else ManagedIdentityCredential()
    elif kind not in {"", "key"}:
        raise invalid(
            f"unknown Azure auth_type '{kind}'", "AZURE_STORAGE_AUTH_TYPE is key, managed_identity or default"
        )
    elif credential.get("account_key"):
        who = {"account_name": account, "account_key": credential.get("account_key")}
    elif credential.get("connection_string"):
        filesystem.service_client = BlobServiceClient.from_connection_string(
            credential.get("connection_string"), **limits
        )
        return filesystem
    else:
        who = url.query or credential.get("sas_token") or None
    # adlfs's own client knows https alone, and waits 15 s before it tries again.
    filesystem.service_client = BlobServiceClient(place, credential=who, **limits)
    return filesystem


def _other(url: RepositoryUrl) -> Any:
    import fsspec  # noqa: PLC0415

    try:
        kind = fsspec.get_filesystem_class(url.scheme)
    except ValueError as error:
        raise _unknown(url) from error
    except ImportError as error:
        raise internal(
            f"{url.scheme}:// needs a library that is not installed: {error}", "install it beside conch[cloud]"
        ) from error
    options = kind._get_kwargs_from_urls(url.text)
    return kind(use_listings_cache=False, skip_instance_cache=True, **options)


def _unknown(url: RepositoryUrl) -> InferError:
    return invalid(
        f"'{url.scheme}://' is no kind of model repository",
        "there are folders, s3://, gs://, as:// and what fsspec knows, such as hf:// and https://",
    )
