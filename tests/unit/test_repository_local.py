"""Repositories in folders: which models there are, what changes a fingerprint, what is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conch.repository.local import LocalStore, check_name
from conch.types.error import Code, InferError


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make(root: Path, name: str = "m") -> Path:
    write(root / name / "config.pbtxt", 'backend: "python"')
    write(root / name / "1" / "model.py")
    write(root / name / "2" / "model.py")
    return root / name


def refusal(store: LocalStore, name: str) -> str:
    with pytest.raises(InferError) as caught:
        store.fetch(name)
    return str(caught.value)


def test_models_are_the_folders_of_the_repository(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files and hidden folders are no models; odd names are; names that no message can carry are warned of once."""
    make(tmp_path, "b")
    make(tmp_path, "a b'\"\n")
    make(tmp_path, ".git")
    write(tmp_path / "README.md")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    store = LocalStore([tmp_path])
    for _ in range(2):
        assert store.names() == ["a b'\"\n", "b", "link"]
    assert len([m for m in caplog.messages if "not UTF-8" in m]) == 1


def test_repository_that_cannot_be_read_holds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing repository is told of and is empty."""
    store = LocalStore([tmp_path / "none"])
    assert store.names() == []
    assert "No such file or directory" in caplog.text


def test_model_is_read_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model is its folder, config text and versions; folders that are no versions are warned of."""
    directory = make(tmp_path)
    write(directory / "03" / "x")
    stored = LocalStore([tmp_path]).fetch("m")
    assert (stored.directory, stored.config_text, stored.versions) == (directory, 'backend: "python"', (1, 2))
    assert stored.config_source == str(directory / "config.pbtxt")
    assert "ignore version directory '03' which contains leading zeros in its directory name" in caplog.messages


def test_config_name_picks_a_config(tmp_path: Path) -> None:
    """With a config name, configs/<name>.pbtxt is used where there is one, else config.pbtxt."""
    directory = make(tmp_path)
    store = LocalStore([tmp_path], "fast")
    assert store.fetch("m").config_source == str(directory / "config.pbtxt")
    write(directory / "configs" / "fast.pbtxt", "max_batch_size: 8")
    assert store.fetch("m").config_text == "max_batch_size: 8"


def test_model_without_a_config_has_none(tmp_path: Path) -> None:
    """No config is not an error here."""
    make(tmp_path)
    (tmp_path / "m" / "config.pbtxt").unlink()
    assert LocalStore([tmp_path]).fetch("m").config_text is None


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Models that are nowhere, files, and configs that are no text have their own reasons."""
    make(tmp_path)
    write(tmp_path / "file")
    (tmp_path / "m" / "config.pbtxt").write_bytes(b"\xff\xfe")
    store = LocalStore([tmp_path])
    for name in ("ghost", "file", "..", "", "m/1", "a\0b"):
        assert (
            refusal(store, name)
            == f"Not found: failed to poll model '{name}': model not found in any model repository."
        )
    assert "it is not UTF-8 text" in refusal(store, "m")


def test_model_in_two_repositories_cannot_be_had(tmp_path: Path) -> None:
    """A name that two repositories hold is a duplicate; the same repository given twice is one."""
    make(tmp_path / "a")
    make(tmp_path / "b")
    make(tmp_path / "b", "other")
    store = LocalStore([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert store.names() == ["m", "other"]
    assert store.duplicates() == {"m"}
    assert refusal(store, "m") == "Invalid argument: failed to poll model 'm': not unique across all model repositories"
    assert store.fetch("other").versions == (1, 2)
    assert LocalStore([tmp_path / "a", tmp_path / "a"]).duplicates() == frozenset()


def test_fingerprint_stays_when_nothing_changes(tmp_path: Path) -> None:
    """Reading again, and what loading leaves behind (caches, hidden files), changes nothing."""
    directory = make(tmp_path)
    store = LocalStore([tmp_path])
    before = store.fetch("m").fingerprint
    write(directory / "1" / "__pycache__" / "model.pyc")
    write(directory / "1" / ".model.py.swp")
    assert store.fetch("m").fingerprint == before


def test_fingerprint_parts_change_with_their_files(tmp_path: Path) -> None:
    """A version's stamp follows what its folder holds, at any depth; the others stay, and times say nothing."""
    directory = make(tmp_path)
    store = LocalStore([tmp_path])

    def parts() -> tuple[str, str, str, str]:
        looks = store.fetch("m").fingerprint
        return looks.config, looks.shared, looks.versions[1], looks.versions[2]

    def changed(before: tuple[str, ...]) -> list[bool]:
        return [a != b for a, b in zip(before, parts(), strict=True)]

    before = parts()
    write(directory / "2" / "deep" / "weights", "1")
    assert changed(before) == [False, False, False, True]
    before = parts()
    os.utime(directory / "1" / "model.py", ns=(1, 1))
    assert changed(before) == [False, False, False, False]
    before = parts()
    write(directory / "1" / "model.py", "longer")
    os.utime(directory / "1" / "model.py", ns=(1, 1))
    assert changed(before) == [False, False, True, False]
    before = parts()
    (directory / "1" / "model.py").rename(directory / "1" / "other.py")
    assert changed(before) == [False, False, True, False]
    before = parts()
    write(directory / "labels.txt", "a")
    assert changed(before) == [False, True, False, False]
    before = parts()
    write(directory / "tokenizer" / "vocabulary", "a")
    assert changed(before) == [False, True, False, False]
    before = parts()
    write(directory / "config.pbtxt", "max_batch_size: 1")
    assert changed(before) == [True, False, False, False]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """A folder that links to itself can be read."""
    directory = make(tmp_path)
    (directory / "1" / "again").symlink_to(directory / "1")
    assert LocalStore([tmp_path]).fetch("m").versions == (1, 2)


def test_config_override_keeps_the_files(tmp_path: Path) -> None:
    """A config that comes with a load stands in for the repository's, the rest stays."""
    make(tmp_path)
    store = LocalStore([tmp_path])
    stored = store.fetch_override("m", "{}", {})
    plain = store.fetch("m")
    assert (stored.config_text, stored.override, stored.versions) == ("{}", True, (1, 2))
    assert stored.directory == plain.directory
    assert stored.fingerprint.versions == plain.fingerprint.versions
    assert stored.fingerprint.config != plain.fingerprint.config


def test_file_override_is_made_of_the_given_files_alone(tmp_path: Path) -> None:
    """With files, the model is these files in a private folder, which `release` removes; no repository is needed."""
    stored = LocalStore([tmp_path]).fetch_override("m", "{}", {"5/model.py": b"a", "5/./deep/../b": b"b"})
    assert stored.versions == (5,)
    assert (stored.directory / "5" / "model.py").read_bytes() == b"a"
    assert (stored.directory / "5" / "b").read_bytes() == b"b"
    assert stored.directory.name == "m"
    assert stored.directory.parent.stat().st_mode & 0o777 == 0o700
    stored.release()
    assert not stored.directory.parent.exists()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "..", ".", "", "1/../../x", "1/", "a\0b"])
def test_override_files_stay_inside(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file outside the model's folder can be named, and nothing is left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InferError, match="must stay within model directory") as caught:
        LocalStore([]).fetch_override("m", "{}", {"1/good": b"", path: b""})
    assert caught.value.code is Code.INVALID_ARG
    assert list(tmp_path.iterdir()) == []


def test_override_file_text() -> None:
    """The text names the parameter and its normal form."""
    with pytest.raises(InferError) as caught:
        LocalStore([]).fetch_override("m", "{}", {"1/../../x": b""})
    assert caught.value.message == (
        "Invalid file parameter 'file:1/../../x' with normalized path '../x' must stay within model directory."
    )


@pytest.mark.parametrize(
    "files", [{"1/a": b"", "1/./a": b""}, {"1": b"", "1/a": b""}, {"1/a": b"", "1": b""}, {"a" * 300: b""}]
)
def test_override_files_that_form_no_folder(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named twice, a file that is also a folder, a name too long: an error, and nothing is left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InferError):
        LocalStore([]).fetch_override("m", "{}", files)
    assert list(tmp_path.iterdir()) == []


def test_names_that_clients_may_not_use() -> None:
    """Empty names and names that leave the repository are refused in Triton's words."""
    for name, text in (
        ("", "Model name cannot be empty. Please enter a valid name to deploy."),
        (" \t", "Model name cannot be empty. Please enter a valid name to deploy."),
        ("..", "invalid model name '..', model name must not contain path traversal characters"),
        ("a/b", "invalid model name 'a/b', model name must not contain path traversal characters"),
    ):
        with pytest.raises(InferError) as caught:
            check_name(name)
        assert caught.value.message == text


def test_namespaces_are_repositories(tmp_path: Path) -> None:
    """With namespaces a model is known by its repository's path and its name, and no name is there twice."""
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        (root / "m" / "1").mkdir(parents=True)
        (root / "m" / "config.pbtxt").write_text(f'# {root.name}\nbackend: "identity"')
    store = LocalStore([two, one], namespacing=True)
    assert store.names() == [f"{one}::m", f"{two}::m"]
    assert store.duplicates() == frozenset()
    for root in (one, two):
        stored = store.fetch(f"{root}::m")
        assert (stored.name, stored.namespace, stored.identity) == ("m", str(root), f"{root}::m")
        assert root.name in (stored.config_text or "")
        made = store.fetch_override(f"{root}::m", "{}", {"1/model.py": b""})
        assert (made.namespace, made.override) == (str(root), True)
        made.release()
    for wanted in (f"{one}::x", f"{one}::../two/m", "nobody"):
        with pytest.raises(InferError, match="model not found in any model repository"):
            store.fetch(wanted)
