"""Storages that fail: refused, gone, unknown, cut, silent. A load then ends, in time, with an error that says why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conch.config.cloud import Credential
from conch.config.repository_url import parse_url
from conch.repository.content_cache import ContentCache
from conch.repository.download import Downloads
from conch.repository.remote import RemoteStore
from conch.types.error import InferError, unavailable
from support.clouds import AZURE_ACCOUNT, AZURE_KEY, S3, Azure, Wire, wire_to
from support.until import until

pytest.importorskip("s3fs")
#: Azurite may have to be installed first.
pytestmark = pytest.mark.timeout(300)

CONFIG = 'backend: "python"'
WEIGHTS = bytes(range(256)) * 8192
ME = {"key_id": "me", "secret_key": "do-not-show"}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    server.put({"r/m/config.pbtxt": CONFIG, "r/m/1/model.py": "x", "r/m/1/weights": WEIGHTS})
    yield server
    server.close()


@pytest.fixture
def wire(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    monkeypatch.setattr("conch.repository.bucket.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("conch.repository.remote.FIRST_PAUSE", 0.01)
    with wire_to(s3.port) as made:
        yield made


class Opened:
    def __init__(self, url: str, fields: dict[str, str], cache: Path) -> None:
        self.downloads = Downloads()
        self.cache = ContentCache(cache, 10**9)
        self.fields = fields
        self.store = RemoteStore(parse_url(url), lambda _: Credential(self.fields), self.cache, self.downloads)

    def __enter__(self) -> RemoteStore:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.downloads.close()
        self.cache.close()


def through(wire: Wire, cache: Path) -> Opened:
    return Opened(f"s3://127.0.0.1:{wire.port}/models/r", ME, cache)


def failure(store: RemoteStore, name: str = "m") -> InferError:
    with pytest.raises(InferError) as caught:
        store.fetch(name)
    assert "do-not-show" not in str(caught.value) + caught.value.hint
    return caught.value


def test_a_cut_download_goes_on(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that were cut are asked for again, those that came are not: little more than the file comes over."""
    monkeypatch.setattr("conch.repository.download.PIECE", 65536)
    with through(wire, tmp_path) as store:
        store.fetch("m").release()
        whole = wire.carried
    wire.carried, wire.cut_after, wire.cuts = 0, 30_000, 6
    with through(wire, tmp_path / "other") as store:
        assert (store.fetch("m").directory / "1" / "weights").read_bytes() == WEIGHTS
    assert wire.cuts < 6
    assert wire.carried < 1.5 * whole


def test_a_wire_that_is_always_cut_is_an_error(wire: Wire, tmp_path: Path) -> None:
    """After some tries the error names the file's URL and the reason, and nothing half is kept."""
    with through(wire, tmp_path) as store:
        wire.cut_after, wire.cuts = 100_000, 1000
        error = failure(store)
        assert f"failed to download s3://127.0.0.1:{wire.port}/models/r/m/1/weights: " in error.message
        assert error.hint == "check the address and the network"
        assert list((tmp_path / "partial").iterdir()) == []
        wire.cuts = 0
        assert (store.fetch("m").directory / "1" / "weights").read_bytes() == WEIGHTS


def test_a_storage_that_is_away_comes_back(wire: Wire, tmp_path: Path) -> None:
    """While it is away loads fail and names stay; when it is back loads work, without a restart."""
    with through(wire, tmp_path) as store:
        assert store.names() == ["m"]
        stored = store.fetch("m")
        wire.broken = True
        assert "failed to read model repository" in failure(store).message
        store._listing.forget_time()
        assert store.names() == ["m"]
        survey = store.survey()
        assert (survey.looks, survey.complete) == ({}, False)
        assert (stored.directory / "1" / "weights").read_bytes() == WEIGHTS
        wire.broken = False
        assert store.fetch("m").fingerprint == stored.fingerprint


def test_a_vanished_bucket_is_named(s3: S3, tmp_path: Path) -> None:
    """A bucket that is not there is no empty repository: the check says so, models that were seen stay seen."""
    s3.client.create_bucket(Bucket="brief")
    s3.client.put_object(Bucket="brief", Key="m/1/model.py", Body=b"x")
    with Opened(f"s3://127.0.0.1:{s3.port}/brief", ME, tmp_path) as store:
        assert store.names() == ["m"]
        s3.client.delete_object(Bucket="brief", Key="m/1/model.py")
        store._listing.forget_time()
        assert store.names() == []
        s3.client.put_object(Bucket="brief", Key="m/1/model.py", Body=b"x")
        store._listing.forget_time()
        assert store.names() == ["m"]
        s3.client.delete_object(Bucket="brief", Key="m/1/model.py")
        s3.client.delete_bucket(Bucket="brief")
        store._listing.forget_time()
        assert store.names() == ["m"]
        with pytest.raises(InferError, match="there is no bucket 'brief'"):
            store.check()
        assert "model not found" in failure(store).message


def test_an_unknown_host_is_an_error_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is in the message, and nobody waits for minutes."""
    monkeypatch.setattr("conch.repository.bucket.FIRST_PAUSE", 0.01)
    with Opened("s3://nowhere.invalid:9000/models", ME, tmp_path) as store:
        begun = time.monotonic()
        with pytest.raises(InferError, match=r"failed to read model repository s3://nowhere.invalid:9000/models: "):
            store.check()
        # Resolvers that cannot reach their server take seconds for each try.
        assert time.monotonic() - begun < 100


def test_wrong_keys_are_refused_at_once(tmp_path: Path) -> None:
    """A key that the storage refuses is not tried again and again, and not shown."""
    server = Azure(tmp_path)
    try:
        server.put({"r/m/config.pbtxt": CONFIG, "r/m/1/model.py": "x"})
        opened = Opened(f"{server.url}/r", {"account_key": "ZG8tbm90LXNob3c="}, tmp_path / "cache")
        with opened as store:
            with pytest.raises(InferError) as caught:
                store.check()
            assert "failed to read model repository as://http://127.0.0.1" in caught.value.message
            assert "ZG8tbm90LXNob3c=" not in caught.value.message
            assert caught.value.hint == "check the credentials and what they allow"
            # Renewed credentials are taken without a restart.
            opened.fields = {"account_key": AZURE_KEY, "account_str": AZURE_ACCOUNT}
            assert store.fetch("m").versions == (1,)
    finally:
        server.close()


class Denies(BaseHTTPRequestHandler):
    """An S3 that knows nobody."""

    count = 0

    def do_GET(self) -> None:
        type(self).count += 1
        body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong.</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def test_s3_that_denies_is_asked_twice(tmp_path: Path) -> None:
    """Once with what we know and once with what may have been renewed; then the reason is told."""
    Denies.count = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Denies) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = Opened(f"s3://127.0.0.1:{server.server_port}/models", ME, tmp_path)
        with opened as store, pytest.raises(InferError, match="signature is wrong"):
            store.check()
        server.shutdown()
    assert Denies.count == 2


def test_a_silent_storage_holds_nobody_up(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that takes connections and says nothing is given up after the time-out."""
    monkeypatch.setattr("conch.repository.bucket.ASK_SECONDS", 0.2)
    with through(wire, tmp_path) as store:
        wire.stuck = True
        assert "no answer within 0.2 s" in failure(store).message


def test_stopping_ends_what_waits(wire: Wire, tmp_path: Path) -> None:
    """The server's stop does not wait for a storage: whoever waits is told that the server exits."""
    wire.stuck = True
    errors: list[BaseException] = []
    with through(wire, tmp_path) as store:

        def load() -> None:
            try:
                store.fetch("m")
            except InferError as error:
                errors.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        until(lambda: bool(store._bucket._asked))
        store.close()
        thread.join(60)
        assert not thread.is_alive()
    assert [str(error) for error in errors] == [str(unavailable("Server exiting"))]


def test_a_full_disk_is_told(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written is named, with the flag that chooses another."""
    (tmp_path / "cache").write_text("a file")
    with Opened(f"{s3.url}/r", ME, tmp_path / "cache") as store:
        error = failure(store)
    assert error.message.startswith(f"failed to write to the repository cache {tmp_path / 'cache'}: ")
    assert error.hint == "choose a folder with enough space by --repository-cache=DIR"


def test_public_buckets_need_no_credentials(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody says who we are, we ask as nobody."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with Opened(f"{s3.url}/r", {}, tmp_path) as store:
        assert failure(store).message.endswith("/r/m/config.pbtxt: Forbidden")
        for key in ("config.pbtxt", "1/model.py", "1/weights"):
            s3.client.put_object_acl(Bucket="models", Key=f"r/m/{key}", ACL="public-read")
        assert store.fetch("m").versions == (1,)
