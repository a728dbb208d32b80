"""`conch serve TARGET --watch`: which saved files have a model loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest

from conch.adopt.lay import lay
from conch.adopt.targets import read_target
from conch.cli import following
from conch.cli.following import Following

MODEL = "class TritonPythonModel: ...\n"


class Watched:
    """A target that is laid and followed; `saved` is what the thread does when files were saved."""

    def __init__(self, target: Path, repository: Path) -> None:
        entries = read_target(target) or []
        lay(entries, repository)
        self.repository = repository
        self.following = Following([target], "", repository, entries)

    def saved(self, *paths: Path) -> list[str]:
        """The places in the repository that have changed."""
        before = self._links()
        self.following.look(set(paths))
        after = self._links()
        return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))

    def _links(self) -> dict[str, int]:
        return {
            str(each.relative_to(self.repository)): each.lstat().st_ino
            for each in self.repository.rglob("*")
            if not each.is_dir()
        }


def save(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_only_files_that_changed_are_linked_anew(tmp_path: Path) -> None:
    """A file of the model is; saved the same moment or not, the others stay, and so does the model for a log."""
    folder = tmp_path / "model"
    folder.mkdir()
    path, table = save(folder / "m.py", MODEL), save(folder / "table.csv", "1")
    log = save(folder / "server.log", "")
    watched = Watched(path, tmp_path / "r")
    assert watched.saved(save(log, "a line")) == []
    assert watched.saved(save(folder / "notes.txt", "new")) == []
    assert watched.saved(path, table) == ["m/1/notes.txt"]
    assert watched.saved(save(table, "12")) == ["m/1/table.csv"]
    assert watched.saved(table) == []
    assert watched.saved(save(path, MODEL + "\n")) == ["m/1/model.py"]


def test_what_is_saved_beside_a_target_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a file may write a log beside it: that must not have it imported again."""
    path = save(tmp_path / "m.py", MODEL)
    watched = Watched(path, tmp_path / "r")

    def never(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(following, "read_target", never)
        assert watched.saved(save(tmp_path / "out.txt", "x")) == []
        assert not watched.following._targets[0].failed
    path.write_text("class (")
    watched.saved(path)
    path.write_text(MODEL + "# whole\n")
    assert watched.saved(tmp_path / "other.py") != [], "after a mistake any file may help"


@pytest.mark.parametrize("error", [ValueError("x"), AttributeError("y"), RuntimeError("z"), MemoryError()])
def test_nothing_ends_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Whatever reading raises is said, and the next save is looked at."""
    path = save(tmp_path / "m.py", MODEL)
    watched = Watched(path, tmp_path / "r")

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(following, "read_target", fails)
        assert watched.saved(path) == []
    assert f"conch serve: {type(error).__name__}: {error}\n(what was served before goes on)" in capsys.readouterr().err
    assert watched.saved(save(path, MODEL + "\n")) == ["m/1/model.py"]


def test_a_folder_is_read_again_when_something_comes_or_goes(tmp_path: Path) -> None:
    """A new version of a model is one; a log is none."""
    target = tmp_path / "m"
    (target / "1").mkdir(parents=True)
    (target / "1" / "saved_model.pb").write_text("g")
    watched = Watched(target, tmp_path / "r")
    assert watched.saved(save(target / "x.log", "x")) == []
    (target / "2").mkdir()
    (target / "2" / "saved_model.pb").write_text("g")
    watched.saved(target / "2")
    assert watched.following._targets[0].files >= {target / "2"}
