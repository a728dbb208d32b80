"""Repositories in real storages: what is loaded, what is brought, what is kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from conch.config.cloud import Credential
from conch.config.repository_url import parse_url
from conch.config.server import RepositoryOptions
from conch.repository.content_cache import ContentCache
from conch.repository.download import Downloads
from conch.repository.layout import RemoteFile
from conch.repository.local import LocalStore
from conch.repository.open import open_repositories
from conch.repository.remote import RemoteStore
from conch.types.error import InferError
from support.clouds import AZURE_KEY, S3, Azure, Gcs

pytest.importorskip("s3fs")

Put = Callable[[Mapping[str, bytes | str]], None]
ALL_VERSIONS = 'backend: "python"\nversion_policy { all {} }'


@dataclasses.dataclass
class Place:
    """A storage: an URL in it, how to write below that URL, how to be known to it."""

    url: str
    put: Put
    fields: Mapping[str, str]
    remove: Callable[[str], None] | None = None

    def below(self, name: str) -> Place:
        """A repository of its own."""

        def put(files: Mapping[str, bytes | str]) -> None:
            self.put({f"{name}/{path}": content for path, content in files.items()})

        remove = self.remove
        return Place(f"{self.url}/{name}", put, self.fields, remove and (lambda path: remove(f"{name}/{path}")))


@pytest.fixture(scope="module")
def s3() -> Iterator[Place]:
    server = S3()
    yield Place(server.url, server.put, {"key_id": "me", "secret_key": "mine"}, server.remove)
    server.close()


@pytest.fixture(scope="module")
def gs() -> Iterator[Place]:
    server = Gcs()
    yield Place("gs://models", server.put, {"endpoint": server.endpoint})
    server.close()


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    server = Azure(tmp_path_factory.mktemp("azurite"))
    yield Place(server.url, server.put, {"account_key": AZURE_KEY})
    server.close()


@pytest.fixture(scope="module")
def memory() -> Place:
    import fsspec

    filesystem = fsspec.filesystem("memory")

    def put(files: Mapping[str, bytes | str]) -> None:
        for path, content in files.items():
            filesystem.pipe_file(f"/top/{path}", content.encode() if isinstance(content, str) else content)

    return Place("memory://top", put, {}, lambda path: filesystem.rm_file(f"/top/{path}"))


@pytest.fixture(params=["s3", "gs", "azure", "memory"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found.below(request.node.name.replace("[", "-").replace("]", ""))


class Fetches:
    """A store over a place, and what it has brought."""

    def __init__(self, place: Place, cache: Path, limit: int = 10**9, config_name: str = "", **options: Any) -> None:
        self.downloads = Downloads()
        self.cache = ContentCache(cache, limit)
        self.brought: list[str] = []
        self.store = RemoteStore(
            parse_url(place.url), lambda _: Credential(place.fields), self.cache, self.downloads, config_name, **options
        )
        read = self.store._bucket.read

        def noted(path: str, start: int, end: int) -> bytes:
            self.brought.append(path)
            return read(path, start, end)

        self.store._bucket.read = noted  # type: ignore[method-assign]

    def __enter__(self) -> Fetches:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.downloads.close()
        self.cache.close()

    def new(self) -> list[str]:
        """What was brought since the last call, sorted."""
        brought, self.brought[:] = sorted(self.brought), []
        return brought


@pytest.mark.slow
def test_a_model_is_brought_once(place: Place, tmp_path: Path) -> None:
    """All that a load needs lies in a local folder; a second load brings nothing, a third what has changed."""
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/model.py": "one", "m/2/sub/model.py": "two", "README": "r"})
    with Fetches(place, tmp_path) as it:
        assert it.store.names() == ["m"]
        first = it.store.fetch("m")
        assert (first.versions, first.config_text) == ((1, 2), ALL_VERSIONS)
        assert (first.directory / "1" / "model.py").read_text() == "one"
        assert (first.directory / "2" / "sub" / "model.py").read_text() == "two"
        assert it.new() == ["m/1/model.py", "m/2/sub/model.py", "m/config.pbtxt"]
        again = it.store.fetch("m")
        assert (again.fingerprint, again.place, it.new()) == (first.fingerprint, first.place, [])
        place.put({"m/2/sub/model.py": "three"})
        third = it.store.fetch("m")
        assert it.new() == ["m/2/sub/model.py"]
        changed = [n for n in (1, 2) if third.fingerprint.versions[n] != first.fingerprint.versions[n]]
        assert changed == [2]
        # The old version goes on with its own files.
        assert (first.directory / "2" / "sub" / "model.py").read_text() == "two"
        assert (third.directory / "2" / "sub" / "model.py").read_text() == "three"
        for each in (first, again, third):
            each.release()
            assert not each.directory.exists()


def test_a_survey_brings_nothing(place: Place, tmp_path: Path) -> None:
    """Polls see what has come and changed by what the storage lists, in one question."""
    place.put({"m/config.pbtxt": "x", "m/1/w": "one", "n/1/w": "n", "README": "r"})
    with Fetches(place, tmp_path) as it:
        before = it.store.survey()
        contents = it.store.contents("m")
        place.put({"m/1/w": "two", "o/1/w": "o"})
        after = it.store.survey()
        assert it.new() == []
        assert (sorted(before.looks), sorted(after.looks)) == (["m", "n"], ["m", "n", "o"])
        assert [name for name in before.looks if before.looks[name] != after.looks[name]] == ["m"]
        assert it.store.contents("m") != contents
        assert (before.complete, it.store.names()) == (True, ["m", "n", "o"])


@pytest.mark.slow
def test_equal_bytes_are_brought_once(place: Place, tmp_path: Path) -> None:
    """Versions and models with the same file share it, where the storage says what is in it; written anew with the
    same bytes it is not brought again."""
    if place.url.startswith("memory"):
        pytest.skip("this storage says nothing of contents")
    files = {
        "m/config.pbtxt": ALL_VERSIONS,
        "m/1/w": "weights",
        "m/2/w": "weights",
        "n/config.pbtxt": "",
        "n/1/w": "weights",
    }
    place.put({**files, "n/config.pbtxt": 'backend: "x"'})
    with Fetches(place, tmp_path) as it:
        m, n = it.store.fetch("m"), it.store.fetch("n")
        assert len([path for path in it.new() if path.endswith("/w")]) == 1
        assert (m.directory / "1" / "w").samefile(n.directory / "1" / "w")
        place.put({"m/1/w": "weights"})
        assert it.store.fetch("m").fingerprint == m.fingerprint
        assert it.new() == []


@pytest.mark.slow
def test_only_wanted_versions_are_brought(place: Place, tmp_path: Path) -> None:
    """What the version policy leaves out stays where it is; other configs too."""
    place.put({f"m/{n}/model.onnx": str(n) for n in (1, 2, 3)})
    place.put({"m/config.pbtxt": 'backend: "onnxruntime"', "m/labels.txt": "a", "m/configs/c.pbtxt": ALL_VERSIONS})
    with Fetches(place, tmp_path) as it:
        stored = it.store.fetch("m")
        assert it.new() == ["m/3/model.onnx", "m/config.pbtxt", "m/labels.txt"]
        assert stored.versions == (1, 2, 3)
        other = it.store.fetch_override("m", '{"version_policy": {"specific": {"versions": [2]}}, "backend": "x"}', {})
        assert (it.new(), other.override) == (["m/2/model.onnx"], True)
    with Fetches(place, tmp_path, config_name="c") as it:
        assert it.store.fetch("m").config_text == ALL_VERSIONS
        assert it.new() == ["m/1/model.onnx", "m/configs/c.pbtxt"]


def test_a_model_that_says_nothing_is_looked_into(memory: Place, tmp_path: Path) -> None:
    """Without backend and platform, the first version's files decide what the model is, so they come too."""
    place = memory.below("untold")
    place.put({"m/1/model.onnx": "1", "m/2/model.onnx": "2", "m/3/model.onnx": "3"})
    with Fetches(place, tmp_path) as it:
        assert it.store.fetch("m").config_text is None
        assert it.new() == ["m/1/model.onnx", "m/3/model.onnx"]


@pytest.mark.slow
def test_a_large_file_is_brought_in_pieces(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pieces come side by side and make the same file; the log says how much came and how fast."""
    caplog.set_level("INFO", "conch.repository")
    monkeypatch.setattr("conch.repository.download.PIECE", 1000)
    content = bytes(range(256)) * 40 + b"end"
    place.put({"m/config.pbtxt": 'backend: "x"', "m/1/w": content})
    with Fetches(place, tmp_path) as it:
        assert (it.store.fetch("m").directory / "1" / "w").read_bytes() == content
        assert it.new().count("m/1/w") == 11
    told = [text for text in caplog.messages if text.startswith("downloaded 'm'")]
    assert len(told) == 1
    assert "1 of its files, 0.0 MB in" in told[0]


def test_an_empty_version_folder_is_a_version(s3: Place, azure: Place, tmp_path: Path) -> None:
    """Storages have no folders: an object that ends with a slash, or a hidden file, stands for one."""
    for place in (s3.below("empty"), azure.below("empty")):
        place.put({"e/config.pbtxt": 'platform: "ensemble"', "e/1/": b"", "e/2/.keep": b""})
        with Fetches(place, tmp_path) as it:
            stored = it.store.fetch("e")
            assert stored.versions == (1, 2)
            assert (stored.directory / "2").is_dir()


def test_what_is_not_there_is_told(place: Place, tmp_path: Path) -> None:
    """Triton's words for a model that is nowhere; odd names are nowhere too."""
    place.put({"m/1/x": "x"})
    with Fetches(place, tmp_path) as it:
        for name in ("none", "../m", ".hidden", ""):
            with pytest.raises(InferError, match=f"failed to poll model '{name}': model not found in any model repo"):
                it.store.fetch(name)
        assert (it.store.places("m"), it.store.places("none")) == ([place.url], [])


def test_a_config_that_is_no_text(memory: Place, tmp_path: Path) -> None:
    """Said with the URL of the file."""
    place = memory.below("bytes")
    place.put({"m/config.pbtxt": b"\xff", "m/1/x": "x"})
    with Fetches(place, tmp_path) as it, pytest.raises(InferError, match="text proto from memory://top/bytes/m/config"):
        it.store.fetch("m")


def test_given_files_need_no_storage(memory: Place, tmp_path: Path) -> None:
    """A load with files of its own is made of them alone."""
    with Fetches(memory.below("nothing"), tmp_path) as it:
        stored = it.store.fetch_override("new", '{"backend": "x"}', {"7/model.py": b"x"})
        assert (stored.versions, it.new()) == ((7,), [])
        other = it.store.fetch_override("new", '{"backend": "x"}', {"7/model.py": b"y"})
        assert other.fingerprint.versions != stored.fingerprint.versions
        for each in (stored, other):
            each.release()


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", "", "a\0b"])
def test_given_files_stay_in_a_folder_of_their_own(memory: Place, tmp_path: Path, name: str) -> None:
    """A name that is none makes no folder anywhere."""
    local = LocalStore([tmp_path], namespacing=True)
    with Fetches(memory.below("nothing"), tmp_path / "cache") as it:
        for store, asked in ((it.store, name), (local, name), (local, f"{tmp_path}::{name}")):
            with pytest.raises(InferError, match=r"[Mm]odel name"):
                store.fetch_override(asked, "{}", {"1/model.py": b"x"})


def test_a_change_while_files_come_is_seen(memory: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model whose files are replaced during the download is brought again: never half old, half new."""
    caplog.set_level("INFO", "conch.repository")
    place = memory.below("changing")
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/a": "old a", "m/1/b": "old b"})
    with Fetches(place, tmp_path) as it:
        read = it.store._bucket.read
        once = threading.Event()

        def replaced(path: str, start: int, end: int) -> bytes:
            data = read(path, start, end)
            if path == "m/1/a" and not once.is_set():
                once.set()
                place.put({"m/1/a": "new a", "m/1/b": "new b"})
            return data

        it.store._bucket.read = replaced  # type: ignore[method-assign]
        directory = it.store.fetch("m").directory
        assert [(directory / "1" / name).read_text() for name in "ab"] == ["new a", "new b"]
    assert "the files of model 'm' changed while they were read" in caplog.text


def test_files_that_never_rest_are_an_error(memory: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some tries it is said what to do."""
    monkeypatch.setattr("conch.repository.remote.FIRST_PAUSE", 0.001)
    place = memory.below("restless")
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/a": "a"})
    with Fetches(place, tmp_path) as it:
        read = it.store._bucket.read
        count = iter(range(1000))

        def replaced(path: str, start: int, end: int) -> bytes:
            data = read(path, start, end)
            place.put({"m/1/a": f"a{next(count)}"})
            return data

        it.store._bucket.read = replaced  # type: ignore[method-assign]
        with pytest.raises(InferError, match="its files changed 5 times while they were read"):
            it.store.fetch("m")


def test_an_etag_that_is_no_md5_is_believed_after_all(memory: Place, tmp_path: Path) -> None:
    """Storages that encrypt give ETags that look like MD5: the file is read twice, then such ETags are left alone."""
    place = memory.below("kms")
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/a": "aa", "m/1/b": "bb"})
    with Fetches(place, tmp_path) as it:
        files = it.store._bucket.files

        def tagged(folder: str) -> Any:
            found = files(folder)
            return {p: dataclasses.replace(f, tag=f"{n:032x}") for n, (p, f) in enumerate(sorted(found.items()))}

        it.store._bucket.files = tagged  # type: ignore[method-assign]
        assert (it.store.fetch("m").directory / "1" / "a").read_text() == "aa"
        assert it.new() == ["m/1/a", "m/1/b", "m/config.pbtxt", "m/config.pbtxt"]


def test_equal_tags_that_are_no_md5_are_no_equal_contents(memory: Place, tmp_path: Path) -> None:
    """Web servers make tags of sizes and times: two versions of one size, written at once, are still two."""
    place = memory.below("times")
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/w": "one", "m/2/w": "two"})
    place.put({"n/config.pbtxt": ALL_VERSIONS, "n/1/w": "six"})
    for _ in range(2):
        with Fetches(place, tmp_path) as it:
            files = it.store._bucket.files

            def tagged(folder: str, files: Any = files) -> Any:
                return {p: dataclasses.replace(f, tag=f"{f.size:032x}") for p, f in files(folder).items()}

            it.store._bucket.files = tagged  # type: ignore[method-assign]
            m, n = it.store.fetch("m").directory, it.store.fetch("n").directory
            assert [(m / version / "w").read_text() for version in "12"] == ["one", "two"]
            assert (n / "1" / "w").read_text() == "six"
    assert it.new() == []


def test_what_another_server_removes_meanwhile_is_brought_again(memory: Place, tmp_path: Path) -> None:
    """Of equal files one is brought, and is gone from the cache before the others are looked for: none is left out."""
    place = memory.below("removed")
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/w": "same", "m/2/w": "same", "m/3/w": "same"})
    with Fetches(place, tmp_path) as it:
        files, cache = it.store._bucket.files, it.store._cache
        finish, removed = cache.finish, []

        def sums(folder: str) -> dict[str, RemoteFile]:
            return {p: dataclasses.replace(f, md5=f"{f.size:032x}") for p, f in files(folder).items()}

        def finish_and_remove(partial: Path, key: str) -> None:
            finish(partial, key)
            if not removed and key.endswith("-4"):
                removed.append(key)
                cache._path(key).unlink()

        it.store._bucket.files = sums  # type: ignore[method-assign]
        it.store._downloads._key_of = lambda bucket, each, md5: each.keys[0]  # type: ignore[method-assign]
        cache.finish = finish_and_remove  # type: ignore[method-assign]
        m = it.store.fetch("m").directory
        assert removed
        assert [(m / version / "w").read_text() for version in "123"] == ["same"] * 3


def test_wrong_bytes_are_not_kept(memory: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the storage gives an MD5, bytes that do not have it are an error and never in the cache."""
    monkeypatch.setattr("conch.repository.remote.FIRST_PAUSE", 0.001)
    place = memory.below("wrong")
    place.put({"m/config.pbtxt": ALL_VERSIONS})
    with Fetches(place, tmp_path) as it:
        files = it.store._bucket.files
        it.store._bucket.files = lambda folder: {  # type: ignore[method-assign]
            p: dataclasses.replace(f, md5="0" * 32) for p, f in files(folder).items()
        }
        with pytest.raises(InferError, match="changed 5 times"):
            it.store.fetch("m")
    assert list((tmp_path / "objects").glob("*/*")) == []
    assert list((tmp_path / "partial").iterdir()) == []


def test_what_no_model_uses_leaves_a_full_cache(memory: Place, tmp_path: Path) -> None:
    """The cache keeps to its bytes by giving up what was not used for longest; files of loaded models stay."""
    place = memory.below("full")
    for name in "abc":
        place.put({f"{name}/config.pbtxt": 'backend: "x"', f"{name}/1/w": name * 1000})
    with Fetches(place, tmp_path, limit=2500) as it:
        a, b = it.store.fetch("a"), it.store.fetch("b")
        b.release()
        it.new()
        c = it.store.fetch("c")
        it.store.fetch("a").release()
        assert it.new() == ["c/1/w", "c/config.pbtxt"]
        it.store.fetch("b").release()
        assert "b/1/w" in it.new()
        for each in (a, c):
            each.release()
        held = sum(path.stat().st_size for path in (tmp_path / "objects").glob("*/*"))
        assert held <= 2500


def test_damaged_copies_are_brought_again(memory: Place, tmp_path: Path) -> None:
    """A file of the cache with another size than it should have, as after a power failure, does not count."""
    place = memory.below("damaged")
    place.put({"m/config.pbtxt": 'backend: "x"', "m/1/w": "weights"})
    with Fetches(place, tmp_path) as it:
        it.store.fetch("m").release()
        it.new()
        for path in (tmp_path / "objects").glob("*/*"):
            path.chmod(0o600)
            path.write_bytes(b"")
        assert (it.store.fetch("m").directory / "1" / "w").read_text() == "weights"
        assert it.new() == ["m/1/w", "m/config.pbtxt"]


def test_a_server_that_ends_ends_downloads(memory: Place, tmp_path: Path) -> None:
    """Whoever waits for files that will not come any more is told so."""
    place = memory.below("ending")
    place.put({"m/config.pbtxt": 'backend: "x"'} | {f"m/1/{n}": "x" for n in range(100)})
    with Fetches(place, tmp_path) as it:
        read = it.store._bucket.read

        def last(path: str, start: int, end: int) -> bytes:
            if path.startswith("m/1/"):
                it.downloads.close()
            return read(path, start, end)

        it.store._bucket.read = last  # type: ignore[method-assign]
        with pytest.raises(InferError, match="Server exiting"):
            it.store.fetch("m")


def test_views_of_dead_servers_are_swept(memory: Place, tmp_path: Path) -> None:
    """What a killed server left behind goes; what a living one uses stays; both share the files."""
    place = memory.below("dead")
    place.put({"m/config.pbtxt": 'backend: "x"', "m/1/w": "weights"})
    with Fetches(place, tmp_path) as living:
        used = living.store.fetch("m").directory
        dead = tmp_path / "views" / "dead"
        (dead / "x").mkdir(parents=True)
        (tmp_path / "views" / "dead.lock").touch()
        with Fetches(place, tmp_path) as it:
            it.store.fetch("m")
            assert it.new() == []
            assert not dead.exists()
            assert (used / "1" / "w").exists()
    assert list((tmp_path / "views").iterdir()) == []


def test_a_repository_that_cannot_be_asked_keeps_its_names(memory: Place, tmp_path: Path) -> None:
    """A cut wire must not look like deleted models."""
    place = memory.below("cut")
    place.put({"m/1/x": "x"})
    now = [0.0]
    with Fetches(place, tmp_path, clock=lambda: now[0]) as it:
        assert it.store.names() == ["m"]

        def broken() -> list[str]:
            from conch.types.error import internal

            raise internal("the wire is cut")

        it.store._bucket.folders = broken  # type: ignore[method-assign]
        now[0] = 10.0
        assert it.store.names() == ["m"]


def test_names_never_wait_on_the_event_loop(memory: Place, tmp_path: Path) -> None:
    """There the last listing is given at once, and the next one is fetched meanwhile."""
    import asyncio

    place = memory.below("loop")
    place.put({"m/1/x": "x"})
    with Fetches(place, tmp_path) as it:
        asked = threading.Event()
        folders = it.store._bucket.folders

        def noted() -> list[str]:
            asked.set()
            assert threading.current_thread() is not threading.main_thread()
            return folders()

        it.store._bucket.folders = noted  # type: ignore[method-assign]

        async def ask() -> list[str]:
            return it.store.names()

        # Its listing may be that quick.
        assert asyncio.run(ask()) in ([], ["m"])
        assert asked.wait(10)


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_folders_and_urls_together(memory: Place, tmp_path: Path) -> None:
    """Names of all repositories are one list; a name in two of them is refused in Triton's words."""
    place = memory.below("mixed")
    place.put({"far/1/x": "x", "both/1/x": "x"})
    root = tmp_path / "models"
    write(root / "near" / "1" / "x")
    write(root / "both" / "1" / "x")
    paths = (root, parse_url(place.url))
    whole = open_repositories(RepositoryOptions(paths=paths, cache_directory=str(tmp_path / "cache")))
    try:
        whole.check()
        store = whole.store
        assert store.names() == ["both", "far", "near"]
        assert store.duplicates() == {"both"}
        survey = store.survey()
        assert (sorted(survey.looks), survey.duplicates, survey.complete) == (["far", "near"], {"both"}, True)
        assert (store.fetch("near").directory, store.fetch("far").versions) == (root / "near", (1,))
        with pytest.raises(InferError, match="'both': not unique across all model repositories") as caught:
            store.fetch("both")
        assert caught.value.hint == f"it lies in {root} and in {place.url}; keep one of them"
        with pytest.raises(InferError, match="'none': model not found in any model repository"):
            store.fetch("none")
        assert store.fetch_override("new", "{}", {"1/x": b"x"}).versions == (1,)
    finally:
        whole.interrupt()
        whole.close()


def test_namespaces_of_folders_and_urls(memory: Place, tmp_path: Path) -> None:
    """With namespaces each repository is one, called by its path or URL, and equal names are no trouble."""
    place = memory.below("spaces")
    place.put({"m/1/x": "x"})
    root = tmp_path / "models"
    write(root / "m" / "1" / "x")
    paths = (root, parse_url(place.url))
    options = RepositoryOptions(paths=paths, cache_directory=str(tmp_path / "cache"), namespacing=True)
    whole = open_repositories(options)
    try:
        store = whole.store
        assert list(store.namespaces) == [str(root), place.url]
        assert store.names() == sorted([f"{root}::m", f"{place.url}::m"])
        assert store.duplicates() == frozenset()
        assert [store.fetch(name).identity for name in store.names()] == store.names()
        with pytest.raises(InferError, match="not found"):
            store.fetch("m")
        assert store.fetch_override(f"{place.url}::m", "{}", {"1/x": b"x"}).identity == f"{place.url}::m"
    finally:
        whole.interrupt()
        whole.close()


def test_folders_alone_stay_a_local_store(tmp_path: Path) -> None:
    """Who has no URLs gets what there always was."""
    assert isinstance(open_repositories(RepositoryOptions(paths=(tmp_path,))).store, LocalStore)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra, one sentence says what to install."""
    import sys

    from conch.repository.connect import connect

    for library, url in (("s3fs", "s3://b"), ("gcsfs", "gs://b"), ("adlfs", "as://a/c"), ("fsspec", "hf://a/b")):
        for name in [name for name in sys.modules if name.split(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(InferError, match=rf"{url.partition(':')[0]}:// needs the library {library}") as caught:
            connect(parse_url(url), Credential())
        assert caught.value.hint == "install it: pip install 'conch[cloud]'"


def test_an_unknown_scheme_is_refused() -> None:
    """What fsspec does not know is no repository."""
    from conch.repository.connect import connect

    with pytest.raises(InferError, match="'nowhere://' is no kind of model repository"):
        connect(parse_url("nowhere://x"), Credential())


@pytest.mark.slow
def test_a_web_server_is_a_repository(tmp_path: Path) -> None:
    """What fsspec reaches will do: folders listed by a web server that knows no pieces."""
    import functools
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    write(tmp_path / "web" / "m" / "config.pbtxt", 'backend: "x"')
    write(tmp_path / "web" / "m" / "1" / "w", "weights")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "web"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = Place(f"http://127.0.0.1:{server.server_port}", dict, {})  # type: ignore[arg-type]
        with Fetches(place, tmp_path / "cache") as it:
            assert (it.store.names(), list(it.store.survey().looks)) == (["m"], ["m"])
            assert (it.store.fetch("m").directory / "1" / "w").read_text() == "weights"
        server.shutdown()


@pytest.mark.slow
def test_files_that_form_no_folder_are_refused(memory: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storages may have a file where others have a folder, and names that lead elsewhere: nothing is written there."""
    place = memory.below("no_folder")
    place.put({"m/config.pbtxt": ALL_VERSIONS, "m/1/model.py": "x"})
    with Fetches(place, tmp_path / "cache") as fetches:
        more: list[RemoteFile] = []
        asked = fetches.store._bucket.files
        monkeypatch.setattr(
            fetches.store._bucket, "files", lambda name: {**asked(name), **{each.path: each for each in more}}
        )
        model = asked("m")["1/model.py"]

        def but_more(self: Downloads, *arguments: Any, **options: Any) -> tuple[dict[str, str], bool]:
            *others, wanted = arguments
            keys, brought = bring(self, *others, [each for each in wanted if each not in more], **options)
            found = [each for each in more if each in wanted]
            return {**keys, **{each.path: keys["1/model.py"] for each in found}}, brought

        monkeypatch.setattr(Downloads, "bring", but_more)
        more[:] = [dataclasses.replace(model, path="1/model.py/x")]
        with pytest.raises(InferError, match=r"do not form a folder, '1/model\.py/x' lies where another file is"):
            fetches.store.fetch("m")
        outside = tmp_path / "outside"
        more[:] = [dataclasses.replace(model, path=f"1/{outside}")]
        fetches.store.fetch("m").release()
        assert not outside.exists()


bring = Downloads.bring
