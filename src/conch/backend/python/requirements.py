"""What a model says that it needs: requirements.txt or pyproject.toml beside its model.py, read and compared."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from conch.types.error import InferError, invalid

#: requirements files may include others, but hardly so deep.
_DEPTH: Final = 10
_ARCHIVES: Final = (".whl", ".tar.gz", ".zip", ".tar.bz2")
_INCLUDE: Final = re.compile(r"(-r|--requirement|-c|--constraint)[\s=]*(.+)")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PASSWORD: Final = re.compile(r"(?<=://)[^/\s]+(?=@)")
_PLACE: Final = re.compile(r"(-f|--find-links)[\s=]+(.+)")


@dataclass(frozen=True, slots=True)
class Requirements:
    """`lines` mean the same wherever they are read; `wanted` are those of them that name a package."""

    source: Path
    lines: tuple[str, ...]
    wanted: tuple[Requirement, ...]
    #: What `lines` say is not all: contents of files that they name.
    contents: tuple[str, ...] = ()
    #: Whether `wanted` is everything, so that it can be compared with what is installed.
    plain: bool = True
    python: str = ""

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    def names(self, package: str) -> bool:
        return any(canonicalize_name(each.name) == package for each in self.wanted)

    def digest(self, *circumstances: str) -> str:
        """Equal for what gives the same environment."""
        parts = [*sorted(self.lines), "", *self.contents, "", self.python, *circumstances]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def find(folders: Iterable[Path]) -> Requirements | None:
    """Those of the first folder that has some; of one folder's files requirements.txt goes first. Raises InferError."""
    for folder in folders:
        file = folder / "requirements.txt"
        if file.is_file():
            return read_text(file)
        project = folder / "pyproject.toml"
        if project.is_file() and (found := read_project(project)) is not None:
            return found
    return None


def read_project(file: Path) -> Requirements | None:
    """`[project] dependencies`; None where there are none (the file then is about other tools)."""
    try:
        project = tomllib.loads(_read(file)).get("project", {})
    except tomllib.TOMLDecodeError as error:
        raise invalid(f"'{file}' is no TOML: {error}") from error
    dependencies = project.get("dependencies") if isinstance(project, dict) else None
    if dependencies is None:
        return None
    if not isinstance(dependencies, list) or not all(isinstance(each, str) for each in dependencies):
        raise invalid(f"'{file}': project.dependencies must be a list of texts, such as ['numpy>=2', 'packaging']")
    wanted = tuple(_requirement(each, f"'{file}', project.dependencies") for each in dependencies)
    plain = not any(each.url for each in wanted)
    return Requirements(
        file, tuple(map(str, wanted)), wanted, plain=plain, python=str(project.get("requires-python", ""))
    )


def read_text(file: Path) -> Requirements:
    """A requirements file with all that it includes. Raises InferError."""
    found = Requirements(file, (), (), (), plain=True)
    return _read_into(found, file, ())


def _read_into(found: Requirements, file: Path, above: tuple[Path, ...]) -> Requirements:
    if file in above or len(above) > _DEPTH:
        raise invalid(f"'{file}' includes itself, by way of '{above[-1]}'")
    lines, wanted, contents, plain = list(found.lines), list(found.wanted), list(found.contents), found.plain
    for number, line in _logical(_read(file)):
        where = f"'{file}', line {number}"
        include = _INCLUDE.fullmatch(line)
        if include is not None:
            other = (file.parent / include[2].strip()).absolute()
            if not other.is_file():
                raise invalid(f"{where}: '{hidden(include[2].strip())}' is not there")
            if include[1] in {"-r", "--requirement"}:
                inner = _read_into(Requirements(file, (), ()), other, (*above, file))
                lines += inner.lines
                wanted += inner.wanted
                contents += inner.contents
                plain = plain and inner.plain
            else:
                lines.append(f"-c {other}")
                contents.append(_read(other))
                plain = False
        elif line.startswith(("-e", "--editable")):
            raise invalid(
                f"{where}: editable installs are not for servers ('{hidden(line)}')",
                "name a wheel, or a package and a version",
            )
        elif line.startswith("-"):
            lines.append(_option(line, file.parent))
            plain = False
        elif _URL.match(line) and not line.startswith("file:"):
            # A wheel, an archive or a repository somewhere: only the installer can tell which package it is.
            lines.append(line)
            plain = False
        elif _is_path(line):
            path = (file.parent / line.removeprefix("file://")).absolute()
            lines.append(str(path))
            contents.append(_stamp(path, where))
            plain = False
        else:
            requirement = _requirement(line.partition(" --")[0].strip(), where)
            lines.append(line)
            wanted.append(requirement)
            plain = plain and not requirement.url and " --" not in line
    return Requirements(found.source, tuple(lines), tuple(wanted), tuple(contents), plain)


def missing(wanted: Iterable[Requirement], find: Callable[[str], metadata.Distribution | None]) -> Requirement | None:
    """The first that is not installed, or not in that version, with all that it needs itself; None if there is none."""
    waiting: list[tuple[Requirement, str]] = [(each, "") for each in wanted]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop(0)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        found = find(requirement.name)
        if found is None or not requirement.specifier.contains(found.version, prereleases=True):
            return requirement
        for part in ("", *sorted(requirement.extras)):
            if (key := (canonicalize_name(requirement.name), part)) not in seen:
                seen.add(key)
                waiting += [(each, part) for each in _needs(found)]
    return None


def _needs(found: metadata.Distribution) -> Iterator[Requirement]:
    """What an installed package asks for, as far as it says so in words of today."""
    for each in found.requires or ():
        with contextlib.suppress(InvalidRequirement):
            yield Requirement(each)


def hidden(text: object) -> str:
    """`text` without the passwords of its URLs."""
    return _PASSWORD.sub("***", str(text))


def installed(name: str) -> metadata.Distribution | None:
    """A package of this Python."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def offending(wanted: Iterable[Requirement], lines: Sequence[str]) -> list[Requirement]:
    """Which requirements an installer's last lines complain of."""
    text = "\n".join(line for line in lines if not line.lstrip().startswith(("Collecting", "Downloading", "Using")))
    return [each for each in wanted if re.search(rf"(?<![\w.-]){re.escape(each.name)}(?![\w-])", text, re.IGNORECASE)]


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end with a backslash joined, with the number of their first."""
    whole, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun or number
        if line.rstrip().endswith("\\") and not line.lstrip().startswith("#"):
            whole += line.rstrip()[:-1] + " "
            continue
        whole = re.sub(r"(^|\s)#.*$", "", whole + line).strip()
        if whole:
            yield begun, whole
        whole, begun = "", 0
    if whole.strip():
        yield begun, whole.strip()


def _requirement(text: str, where: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        reason = hidden(str(error).partition("\n")[0])
    # Without the error, whose text has the passwords.
    raise invalid(f"{where}: '{hidden(text)}' is no requirement: {reason}", "write a line such as scipy>=1.11")


def _option(line: str, folder: Path) -> str:
    """Folders that an option names are found from anywhere."""
    place = _PLACE.fullmatch(line)
    if place is None or "://" in place[2]:
        return line
    return f"--find-links {(folder / place[2].strip()).absolute()}"


def _is_path(line: str) -> bool:
    if line.startswith((".", "/", "file:")):
        return True
    return line.lower().endswith(_ARCHIVES) and "://" not in line and "@" not in line


def _stamp(path: Path, where: str) -> str:
    if path.is_dir():
        raise invalid(f"{where}: '{path}' is a folder", "name a wheel or a source archive, build it with `pip wheel`")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise invalid(f"{where}: '{path}' cannot be read: {error.strerror}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(f"'{file}' is not UTF-8 text") from error
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> InferError:
    return invalid(f"'{file}' cannot be read: {error.strerror}")
