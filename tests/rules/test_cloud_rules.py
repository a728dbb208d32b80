"""Cloud repositories, the pure parts: URLs, credentials, layouts, what leaves the cache."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.cloud import Credential, cache_directory, choose, cloud_credential, read_credentials
from conch.config.repository_url import RepositoryUrl, UrlError, is_url, parse_url, shown
from conch.repository.bucket import Bucket, remote_file
from conch.repository.eviction import CachedObject, evict
from conch.repository.layout import RemoteFile, layout
from conch.types.error import InferError

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=8).filter(lambda name: name != ".")
PATHS = st.lists(NAMES, max_size=3).map("/".join)


@pytest.mark.parametrize(
    ("text", "scheme", "path", "endpoint", "account"),
    [
        ("s3://b", "s3", "b", "", ""),
        ("s3://b//p/q/", "s3", "b/p/q", "", ""),
        ("s3://localhost:9000/b/p", "s3", "b/p", "http://localhost:9000", ""),
        ("s3://http://h:80/b", "s3", "b", "http://h:80", ""),
        ("s3://https://minio.corp:443/b/p", "s3", "b/p", "https://minio.corp:443", ""),
        ("s3://https://minio.corp/b/p", "s3", "b/p", "https://minio.corp", ""),
        ("gs://b/p", "gs", "b/p", "", ""),
        ("as://acc/con/p", "as", "con/p", "", "acc"),
        ("as://acc.blob.core.windows.net/con/p/", "as", "con/p", "", "acc"),
        ("as://acc.blob.core.chinacloudapi.cn/con", "as", "con", "https://acc.blob.core.chinacloudapi.cn", "acc"),
        ("as://http://127.0.0.1:10000/acc/con/p", "as", "con/p", "http://127.0.0.1:10000/acc", "acc"),
        ("hf://user/repo/models", "hf", "hf://user/repo/models", "", ""),
        ("https://host/models/", "https", "https://host/models", "", ""),
        ("memory://", "memory", "memory:", "", ""),
    ],
)
def test_urls_are_read_as_triton_reads_them(text: str, scheme: str, path: str, endpoint: str, account: str) -> None:
    """Bucket, endpoint and account stand where Triton's documentation has them; anything else is fsspec's."""
    url = parse_url(text)
    assert (url.scheme, url.path, url.endpoint, url.account) == (scheme, path, endpoint, account)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("s3://", "No bucket name found in path: s3://"),
        ("s3://host:9000/", "No bucket name found"),
        ("gs:///", "No bucket name found"),
        ("as://acc", "Invalid azure storage path: as://acc; expected as://<account>/<container>/<path>"),
        ("hf://", "names no place after 'hf://'"),
        ("s3://b/\n", "characters that no URL has"),
        ("/models", "is not an URL"),
    ],
)
def test_bad_urls_are_refused(text: str, says: str) -> None:
    """What names no place is refused with what was expected."""
    with pytest.raises(UrlError) as caught:
        parse_url(text)
    assert says in str(caught.value)


@given(NAMES, PATHS, st.sampled_from(["", "host:1/", "http://host:1/", "https://10.0.0.1:9000/"]))
def test_a_bucket_is_found_behind_any_endpoint(bucket: str, path: str, host: str) -> None:
    """Where an endpoint is said, bucket and path are the same as without it."""
    assert parse_url(f"s3://{host}{bucket}/{path}").path == parse_url(f"s3://{bucket}/{path}").path


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text breaks the reader, and what it shows is what it was given."""
    for candidate in (text, f"s3://{text}", f"gs://{text}", f"as://{text}", f"x://{text}"):
        if not is_url(candidate):
            continue
        try:
            parse_url(candidate)
        except UrlError:
            continue


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("https://me:secret@host/p", "https://***@host/p"),
        ("https://host/p?sig=secret&x=1", "https://host/p?***"),
        ("https://secret@host/p", "https://***@host/p"),
        ("sftp://me@host/p", "sftp://me@host/p"),
        ("s3://http://me:secret@host:9000/b", "s3://http://***@host:9000/b"),
        ("s3://b/p", "s3://b/p"),
    ],
)
def test_secrets_of_urls_are_not_shown(text: str, visible: str) -> None:
    """Passwords and signatures are left out wherever an URL is shown."""
    assert shown(text) == visible
    assert "secret" not in repr(RepositoryUrl(text, "x", ""))


@given(st.lists(st.text("ab/", max_size=4), max_size=6, unique=True), st.text("ab/", max_size=6))
def test_the_longest_fitting_credential_is_chosen(prefixes: list[str], rest: str) -> None:
    """Of all entries that the URL begins with, the longest counts; without any, that is an error."""
    url = RepositoryUrl(f"s3://{rest}", "s3", rest)
    names = ["s3://" + prefix for prefix in prefixes]
    entries = {name: {"key_id": name, "secret_key": "x"} for name in names}
    fitting = [name for name in names if url.text.startswith(name)]
    if not fitting:
        with pytest.raises(InferError, match="Cannot match credential for path"):
            choose({"s3": entries}, url)
    else:
        assert choose({"s3": entries}, url).get("key_id") == max(fitting, key=len)


def test_credentials_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    """Triton's file counts alone where it is named; its fields are Triton's, and their secrets are known as such."""
    file = tmp_path / "credentials.json"
    content = {
        "gs": {"": "", "gs://b": "/sa.json"},
        "s3": {"": {"key_id": "k", "secret_key": "s", "region": "r", "session_token": "t", "profile": "p", "odd": "x"}},
        "as": {"": {"account_str": "a", "account_key": "y", "auth_type": "key", "client_id": "c"}},
    }
    file.write_text(json.dumps(content))
    environ = {"TRITON_CLOUD_CREDENTIAL_PATH": str(file), "AWS_ACCESS_KEY_ID": "other"}
    found = cloud_credential(parse_url("s3://b"), environ)
    assert dict(found.fields) == {
        "key_id": "k", "secret_key": "s", "region": "r", "session_token": "t", "profile": "p",
    }  # fmt: skip
    assert sorted(found.secrets()) == ["s", "t"]
    assert "k" not in repr(found).removeprefix("Credential")
    assert cloud_credential(parse_url("gs://b/p"), environ).get("path") == "/sa.json"
    assert cloud_credential(parse_url("gs://c"), environ) == Credential({})
    assert cloud_credential(parse_url("as://a/c"), environ).get("account_key") == "y"
    assert cloud_credential(parse_url("s3://b"), {"AWS_ACCESS_KEY_ID": "k", "HOME": "/"}) == Credential({"key_id": "k"})
    assert cloud_credential(parse_url("hf://b/c"), environ) == Credential()


@pytest.mark.parametrize("content", ["", "[]", '{"s3": 1}', "{", '{"s3": "hush"}'])
def test_bad_credential_files_are_told_without_what_is_in_them(tmp_path: Path, content: str) -> None:
    """The file is named, its content is not shown."""
    file = tmp_path / "credentials.json"
    file.write_text(content)
    with pytest.raises(InferError, match="failed to read the cloud credentials") as caught:
        read_credentials(file)
    assert "hush" not in str(caught.value)
    with pytest.raises(InferError, match="No such file"):
        read_credentials(tmp_path / "none")


def test_the_cache_lies_where_it_is_wanted() -> None:
    """The flag, then Triton's variable of that storage, then the user's cache."""
    environ = {"TRITON_AWS_MOUNT_DIRECTORY": "/aws", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}
    assert cache_directory("/chosen", "s3", environ) == Path("/chosen")
    assert cache_directory("", "s3", environ) == Path("/aws")
    assert cache_directory("", "gs", environ) == Path("/xdg/conch/repository")
    assert cache_directory("", "gs", {"HOME": "/home/me"}) == Path("/home/me/.cache/conch/repository")
    # One level below the folder that all may write to: nobody else can own a folder on the way.
    alone = cache_directory("", "gs", {})
    assert (alone.parent, alone.name) == (Path(tempfile.gettempdir()), f"conch-repository-{os.getuid()}")


OBJECTS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50), st.booleans()), max_size=12).map(
    lambda all_: [CachedObject(str(n), size, at, used) for n, (size, at, used) in enumerate(all_)]
)


@given(OBJECTS, st.integers(0, 400), st.integers(0, 100))
def test_eviction_takes_no_more_than_it_must(objects: list[CachedObject], limit: int, needed: int) -> None:
    """What is in use stays; the rest goes in the order of its last use, and only until there is room."""
    gone = evict(objects, limit, needed)
    known = {each.key: each for each in objects}
    assert not any(known[key].in_use for key in gone)
    left = sum(each.size for each in objects if each.key not in gone) + needed
    assert left <= limit or all(each.in_use or each.size == 0 for each in objects if each.key not in gone)
    assert not gone or left + known[gone[-1]].size > limit
    oldest = sorted((e for e in objects if not e.in_use and e.size), key=lambda each: (each.used_at, each.key))
    assert gone == [each.key for each in oldest[: len(gone)]]


def files(*paths: str, size: int = 1) -> list[RemoteFile]:
    return [RemoteFile(path, size, f"tag of {path}") for path in paths]


def test_a_layout_tells_what_files_are_for() -> None:
    """Config, versions and the rest; hidden files count for nothing but the folder they are in."""
    found = layout(
        [
            *files("config.pbtxt", "labels.txt", "1/model.onnx", "12/a/b", "2/.keep", "warmup/x", "configs/fast.pbtxt"),
            *files(".git/x", "03/y", "1/__pycache__/z", "1/.hidden"),
            # Double slashes in keys: these are no paths from the root.
            *files("/home/u/.bashrc", "/home/u/x", "1//home/u/x"),
            *files("4", "5/", size=0),
        ]
    )
    assert found.config is not None
    assert found.config.path == "config.pbtxt"
    assert {n: [f.path for f in v] for n, v in found.versions.items()} == {
        1: ["1/model.onnx"], 2: [], 4: [], 5: [], 12: ["12/a/b"],
    }  # fmt: skip
    assert [file.path for file in found.shared] == ["labels.txt", "03/y", "warmup/x"]
    assert len(found.warnings) == 1
    assert [file.path for file in found.needed([12])] == [
        "config.pbtxt", "labels.txt", "03/y", "warmup/x", "12/a/b",
    ]  # fmt: skip
    custom = layout(files("config.pbtxt", "configs/fast.pbtxt"), "fast").config
    assert custom is not None
    assert custom.path == "configs/fast.pbtxt"


@given(st.sampled_from(["config.pbtxt", "1/model", "2/model", "labels.txt"]), st.booleans())
def test_a_fingerprint_changes_where_a_file_changes(path: str, grows: bool) -> None:
    """A changed file changes the part of the fingerprint that it belongs to, and no other."""
    old = files("config.pbtxt", "1/model", "2/model", "labels.txt")
    new = [RemoteFile(f.path, f.size + grows, f.tag if grows else "new", f.md5) if f.path == path else f for f in old]
    before, after = layout(old).fingerprint, layout(new).fingerprint
    assert (before.config != after.config) == (path == "config.pbtxt")
    assert (before.shared != after.shared) == (path == "labels.txt")
    assert [n for n in (1, 2) if before.versions[n] != after.versions[n]] == [
        int(path[0]) for path in [path] if path[0].isdigit()
    ]


def test_equal_contents_share_a_place_in_the_cache() -> None:
    """By MD5 across repositories, by S3's ETag of parts within one; other ETags tell only one file's states apart."""
    md5 = "0" * 32

    def keys(path: str, size: int, tag: str, md5: str = "", *, place: str) -> tuple[str, ...]:
        return RemoteFile(path, size, tag, md5).keys(place)

    assert keys("a", 1, "x", md5, place="gs://b/m") == keys("c", 1, "y", md5, place="as://a/c/n")
    shared, own = keys("1/a", 1, md5, place="s3://b/m")
    assert (shared,) == keys("c", 1, "y", md5, place="as://a/c/n")
    others = keys("2/a", 1, md5, place="s3://b/m"), keys("1/a", 1, md5, place="s3://c/m")
    assert all(other[0] == shared and other[1] != own for other in others)
    assert keys("1/a", 1, f"{md5}-4", place="s3://b/m") == keys("2/a", 1, f"{md5}-4", place="s3://b/n")
    assert keys("1/a", 1, f"{md5}-4", place="s3://b/m") != keys("1/a", 1, f"{md5}-4", place="s3://c/m")
    for tag in (md5, f"{md5}-4"):
        assert not set(keys("1/a", 1, tag, place="s3://b/m")) & set(keys("1/a", 2, tag, place="s3://b/m"))
    assert keys("1/a", 1, "0x8D", place="as://b/m") != keys("2/a", 1, "0x8D", place="as://b/m")


def test_errors_of_storages_show_no_secrets() -> None:
    """Neither the URL's signature, with or without the URL, nor any credential there has been."""
    url = parse_url("as://acc/con/p?sv=1&sig=hush")
    credentials = iter([Credential({"account_key": each}) for each in ("k-one", "k-one", "k-two")])
    bucket = Bucket(url, lambda _: next(credentials))
    bucket._connect = lambda credential: object()  # type: ignore[method-assign]
    for _ in range(3):
        bucket._connected()
        bucket._filesystem = None
    assert bucket._secrets == ["k-one", "k-two"]
    bucket._secrets += Credential(
        {"sas_token": "?sv=1&sig=a%2Fbc", "connection_string": "X=y;AccountKey=no=="}
    ).secrets()
    assert bucket._reason(ValueError("GET /?sig=a/bc&sv=1, a%2Fbc, no==")) == "GET /?sig=***&sv=1, ***, ***"
    told = bucket._reason(ValueError(f"{url.text}: GET https://acc.x/con/p/m?sv=1&sig=hush with k-one, k-two"))
    assert told == "as://acc/con/p?***: GET https://acc.x/con/p/m?*** with ***, ***"


@pytest.mark.parametrize(
    ("text", "said", "shown_as"),
    [
        ("https://me:pass@host/r/", "https://me:pass@host/r: 404, host pass", "https://***@host/r: 404, host ***"),
        ("https://token@host/r", "no host token@host", "no host ***@host"),
        ("as://acc/con?sv=22&sig=ab%2Bcdef", "GET /con/m?sig=ab+cdef&sv=22", "GET /con/m?sig=***&sv=22"),
    ],
)
def test_errors_show_no_part_of_an_url_that_is_secret(text: str, said: str, shown_as: str) -> None:
    """Libraries name other URLs than ours, with the parts of its user and its signature in another order or decoded."""
    assert Bucket(parse_url(text), lambda _: Credential())._reason(ValueError(said)) == shown_as


class Remembered:
    """A file system that is denied, or fails, as `answers` says; None is an answer."""

    async_impl = False

    def __init__(self, answers: list[BaseException | None]) -> None:
        self.answers = answers

    def ls(self, *_: Any, **__: Any) -> list[Any]:
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        return []


def test_a_refusal_at_the_last_attempt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many other failures came before it."""
    monkeypatch.setattr("conch.repository.bucket.FIRST_PAUSE", 0.0)
    bucket = Bucket(parse_url("x://b"), lambda _: Credential())
    filesystem = Remembered([*[OSError("cut")] * 4, PermissionError("no entry"), None])
    monkeypatch.setattr(bucket, "_connect", lambda _: filesystem)
    with pytest.raises(InferError, match="failed to read model repository x://b: no entry") as caught:
        bucket.folders()
    assert caught.value.hint == "check the credentials and what they allow"
    assert bucket.folders() == []


def test_who_is_refused_late_keeps_the_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that were refused with the same credentials one connects anew, and the other goes on with that."""
    bucket = Bucket(parse_url("x://b"), lambda _: Credential())
    made: list[Remembered] = []
    both = threading.Barrier(2, timeout=10)

    class Refusing(Remembered):
        def ls(self, *_: Any, **__: Any) -> list[Any]:
            both.wait()
            raise PermissionError("expired")

    def connect(_: Credential) -> Remembered:
        made.append(Refusing([]) if not made else Remembered([None, None]))
        return made[-1]

    monkeypatch.setattr(bucket, "_connect", connect)
    threads = [threading.Thread(target=bucket.folders) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 2
    assert made[1].answers == []


def test_an_md5_that_is_none_is_left_out() -> None:
    """What a storage says in another form than it should does not end the listing."""
    assert remote_file("a", {"size": 1, "md5Hash": "AAA"}).md5 == ""
    assert remote_file("a", {"size": 1, "md5Hash": "AAE="}).md5 == "0001"
