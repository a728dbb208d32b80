"""Reading what a model says that it needs, and comparing it with what there is."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from conch.backend.python.installer import failure
from conch.backend.python.requirements import Requirements, find, installed, missing, offending, read_text
from conch.config.environments import environment_options
from conch.types.error import InferError


def written(folder: Path, **files: str) -> Path:
    """Files by name, with `__` for a dot; the first one's path."""
    folder.mkdir(exist_ok=True)
    paths = [folder / name.replace("__", ".") for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    return paths[0]


def test_the_usual_file(tmp_path: Path) -> None:
    """Comments, empty lines, continuations and markers are understood."""
    text = "# top\n\nnumpy >= 2  # array\npackaging[x] == 24.0 ; \\\n  python_version > '3'\n"
    found = read_text(written(tmp_path, requirements__txt=text))
    assert [str(each) for each in found.wanted] == ["numpy>=2", 'packaging[x]==24.0; python_version > "3"']
    assert found.plain
    assert found.names("numpy")


def test_included_files(tmp_path: Path) -> None:
    """-r brings another file in, -c names it wherever it is read; both decide which environment it is."""
    text = "-r more.txt\n-c limits.txt\nb\n"
    file = written(tmp_path, requirements__txt=text, more__txt="a==1\n", limits__txt="c<3\n")
    found = read_text(file)
    assert found.lines == ("a==1", f"-c {tmp_path}/limits.txt", "b")
    assert not found.plain
    before = found.digest()
    for name in ("more.txt", "limits.txt"):
        (tmp_path / name).write_text("z==9\n")
        assert read_text(file).digest() != before
        before = read_text(file).digest()


def test_paths_are_found_from_anywhere(tmp_path: Path) -> None:
    """Wheels and folders of wheels are named from the requirements file; a wheel's content decides too."""
    file = written(tmp_path, requirements__txt="./own-1.whl\n-f wheels\n-f https://x/y\n--pre\n")
    (tmp_path / "own-1.whl").write_bytes(b"1")
    found = read_text(file)
    assert found.lines == (f"{tmp_path}/own-1.whl", f"--find-links {tmp_path}/wheels", "-f https://x/y", "--pre")
    (tmp_path / "own-1.whl").write_bytes(b"2")
    assert read_text(file).digest() != found.digest()


def test_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    """The same requirements share an environment; another Python has one of its own."""
    one = read_text(written(tmp_path / "x", requirements__txt="a==1\nb\n"))
    other = read_text(written(tmp_path / "y", requirements__txt="b\n# why\na==1\n"))
    assert one.digest("3.11") == other.digest("3.11")
    assert one.digest("3.11") != one.digest("3.12")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a\n!!\n", "line 2: '!!' is no requirement: "),
        ("-e .\n", "line 1: editable installs are not for servers ('-e .')"),
        ("-r nowhere.txt\n", "line 1: 'nowhere.txt' is not there"),
        ("-r requirements.txt\n", "includes itself"),
        ("./none.whl\n", "none.whl' cannot be read: No such file or directory"),
        (".\n", "is a folder"),
    ],
)
def test_refusals(tmp_path: Path, text: str, error: str) -> None:
    """What cannot be installed is named with its file and line."""
    file = written(tmp_path, requirements__txt=text)
    with pytest.raises(InferError) as caught:
        read_text(file)
    assert error in caught.value.message
    assert caught.value.message.startswith(f"'{file}'")


def test_which_file_counts(tmp_path: Path) -> None:
    """The version's folder before the model's; requirements.txt before pyproject.toml; a pyproject without
    dependencies is about something else."""
    version = tmp_path / "1"
    written(version, pyproject__toml="[tool.ruff]\nline-length = 9\n")
    assert find((version, tmp_path)) is None
    written(tmp_path, pyproject__toml='[project]\nname = "m"\nrequires-python = ">=3.9"\ndependencies = ["a>1"]\n')
    found = find((version, tmp_path))
    assert found is not None
    assert (found.lines, found.python) == (("a>1",), ">=3.9")
    written(tmp_path, requirements__txt="b\n")
    found = find((version, tmp_path))
    assert found is not None
    assert found.lines == ("b",)


@pytest.mark.parametrize("text", ["[project\n", '[project]\ndependencies = "a"\n', '[project]\ndependencies = ["!"]\n'])
def test_broken_projects(tmp_path: Path, text: str) -> None:
    """A pyproject.toml that cannot be understood is refused by its name."""
    with pytest.raises(InferError, match=r"pyproject\.toml'"):
        find((written(tmp_path, pyproject__toml=text).parent,))


INSTALLED = {
    "a": SimpleNamespace(version="1.5", requires=["b>=2", "c; extra == 'more'", "d; python_version < '3'"]),
    "b": SimpleNamespace(version="2.0", requires=None),
    "e": SimpleNamespace(version="1.0rc1", requires=["a", "e"]),
    "f": SimpleNamespace(version="1", requires=["b<2"]),
}


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        ("a", None), ("a>1,<2", None), ("a==2", "a==2"), ("z", "z"), ("z; python_version < '3'", None),
        ("a[more]", "c"), ("e>=1.0rc0", None), ("f", "b<2"),
    ],
)  # fmt: skip
def test_what_is_missing(wanted: str, lacking: str | None) -> None:
    """Versions, markers and extras are heeded, and what a package needs itself."""
    found: Any = missing([Requirement(wanted)], INSTALLED.get)  # type: ignore[arg-type,return-value]
    assert (None if found is None else str(found).partition(";")[0]) == lacking


def test_this_python_has_numpy() -> None:
    """What the server itself has is found."""
    assert missing([Requirement("numpy"), Requirement("packaging")], installed) is None


@pytest.mark.parametrize(
    ("line", "blamed"),
    [
        ("error: Because nosuch was not found in the package registry and you require nosuch==3", ["nosuch==3"]),
        ("ERROR: No matching distribution found for Other>=1", ["other>=1"]),
        ("ERROR: Failed to build other-tool", []),
        ("Collecting nosuch", []),
    ],
)
def test_whom_an_installer_blames(line: str, blamed: list[str]) -> None:
    """The requirement whose name stands in what it complains of."""
    wanted = [Requirement("nosuch==3"), Requirement("other>=1"), Requirement("tool")]
    assert [str(each) for each in offending(wanted[:2], ["Resolved 3 packages", line])] == blamed


SECRET = "https://me:an@secret@index.example/simple"


@pytest.mark.parametrize("text", [f"-e git+{SECRET}\n", f"!! @ {SECRET}\n", f"-r {SECRET}\n"])
def test_passwords_are_not_told(tmp_path: Path, text: str) -> None:
    """Neither in the error nor in what it came of."""
    with pytest.raises(InferError) as caught:
        read_text(written(tmp_path, requirements__txt=text))
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert "***@index.example" in caught.value.message


def test_passwords_are_not_told_of_whom_an_installer_blames() -> None:
    """Where a package is named by a URL."""
    needs = Requirements(Path("r.txt"), (), (Requirement(f"nosuch @ {SECRET}"),))
    error = failure("model 'm'", "uv", 1, ["no nosuch"], needs, environment_options({}))
    assert "secret" not in str(error)
    assert "***@index.example" in str(error)


@pytest.mark.parametrize("line", ["https://x.example/a-1-py3-none-any.whl", "git+https://x.example/a.git@v1#egg=a"])
def test_lines_that_are_urls(tmp_path: Path, line: str) -> None:
    """They are the installer's to read, and so the model gets an environment of its own."""
    found = read_text(written(tmp_path, requirements__txt=f"{line}  # why\nb\n"))
    assert found.lines == (line, "b")
    assert not found.plain


def test_metadata_of_old() -> None:
    """What an installed package asks for in words that nobody reads any more is passed over."""
    old = {
        "a": SimpleNamespace(version="1", requires=["b (>dev)", "c"]),
        "c": SimpleNamespace(version="1", requires=[]),
    }
    assert missing([Requirement("a")], old.get) is None  # type: ignore[arg-type]
