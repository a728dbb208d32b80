"""Unpacks an archive with a Python environment, and never writes anything outside the folder it is unpacked to."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from conch.types.error import InferError, internal

#: The one kind of link that may lead out: a virtual environment's interpreter is a link to the machine's.
_INTERPRETER: Final = re.compile(r"(?:[^/]+/)?bin/python[0-9.]*")
_ZSTANDARD: Final = b"\x28\xb5\x2f\xfd"
_ZIP: Final = b"PK\x03\x04"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive (plain, gzip, bzip2 or xz) into `folder`, which is made. Raises InferError."""
    folder.mkdir(parents=True)
    # Everything is checked by `sound`, which is stricter than tarfile's own filters and lets the interpreter's link be.
    extras: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            tar.extractall(folder, members=sound(tar), **extras)  # noqa: S202  see `sound`
    except Unsound as error:
        raise internal(
            f"the environment archive '{archive}' is refused: {error}",
            "a packed environment writes nothing outside its own folder: make it anew with conda-pack or venv-pack",
        ) from error
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise broken(archive, error) from error
    except Exception as error:  # zlib.error and lzma.LZMAError have no common base
        if type(error).__module__ in {"zlib", "lzma", "_lzma"}:
            raise broken(archive, error) from error
        raise


def broken(archive: Path, error: BaseException) -> InferError:
    try:
        with archive.open("rb") as file:
            start = file.read(4)
    except OSError:
        start = b""
    shown = f"the environment archive '{archive}' cannot be unpacked: "
    if start in {_ZSTANDARD, _ZIP}:
        kind = "zstd" if start == _ZSTANDARD else "zip"
        return internal(f"{shown}it is a {kind} file, expected .tar.gz", "pack it with conda-pack -o env.tar.gz")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    if reason.startswith("file could not be opened"):
        reason = "it is no tar archive"
    return internal(f"{shown}{reason}", "expected a whole tar archive (.tar.gz) that conda-pack or venv-pack has made")


class Unsound(Exception):  # noqa: N818  a refusal
    """A member of an archive would be written outside its folder, or is nothing that an environment has."""


def sound(members: Iterable[tarfile.TarInfo]) -> Iterator[tarfile.TarInfo]:
    """The members as they come, owned by nobody in particular, until one is not sound: then raises Unsound."""
    judge = Judge()
    for member in members:
        judge.admit(member)
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
        # No setuid, no writing by others, and we ourselves can read it and remove it.
        member.mode = (member.mode & 0o755) | (0o700 if member.isdir() else 0o600)
        yield member


class Judge:
    """Decides member by member, in the archive's order; touches no file.

    Nothing is written through a link: no name lies below a link's name, and no link's name is used twice. Nor is there
    a `..` behind a name, which would mean another place than it says where that name is a link's.
    """

    def __init__(self) -> None:
        self._links: set[str] = set()
        self._others: set[str] = set()

    def admit(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if _outside(member.name) or ".." in member.name.split("/"):
            raise Unsound(f"its member '{member.name}' leads out of it")
        if name == "." and not member.isdir():
            # tarfile would follow such a link to itself, for ever.
            raise Unsound(f"its member '{member.name}' is no folder, where its own folder is")
        for above in _above(name):
            if above in self._links:
                raise Unsound(f"its member '{member.name}' lies below the link '{above}'")
            self._others.add(above)
        if name in self._links or (name in self._others and not (member.isreg() or member.isdir())):
            raise Unsound(f"its member '{member.name}' is there twice, as a link")
        if member.issym():
            target = posixpath.join(posixpath.dirname(name), member.linkname)
            if (_outside(target) or _turns_back(member.linkname)) and not _INTERPRETER.fullmatch(name):
                raise Unsound(f"its link '{member.name}' leads out of it, to '{member.linkname}'")
            self._links.add(name)
        elif member.islnk():
            if ".." in member.linkname.split("/") or posixpath.normpath(member.linkname) not in self._others:
                raise Unsound(f"its link '{member.name}' is to '{member.linkname}', which is no file before it")
            self._others.add(name)
        elif member.isreg() or member.isdir():
            self._others.add(name)
        else:
            raise Unsound(f"its member '{member.name}' is neither file nor folder nor link")


def _outside(path: str) -> bool:
    normal = posixpath.normpath(path)
    return normal.startswith(("/", "../")) or normal == ".." or "\0" in path


def _turns_back(target: str) -> bool:
    """Whether a `..` comes behind a name; at the beginning it is as usual as it is clear."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    return any(part == ".." and before != ".." for before, part in pairwise(parts))


def _above(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        if name == "/":
            return
        yield name


def find_root(folder: Path, has: Callable[[Path], bool]) -> Path | None:
    """Where in an unpacked archive the environment lies: at its top, or in its only folder."""
    if has(folder):
        return folder
    inner = [each for each in folder.iterdir() if each.is_dir()]
    return inner[0] if len(inner) == 1 and has(inner[0]) else None
