"""What the files of a model in a storage mean: its config, its versions, what belongs to all of them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from conch.repository.api import Fingerprint
from conch.repository.versions import version_numbers

CONFIG_FILE: Final = "config.pbtxt"
#: ETags of S3 and what imitates it: MD5 of the content, or of the parts' MD5s with their number.
_CONTENT_TAG: Final = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a storage lists it. `path` is relative to the model's folder, `size` -1 when it does not say."""

    path: str
    size: int
    #: Changes whenever the file does.
    tag: str
    #: Hexadecimal, of the content; empty when the storage does not say.
    md5: str = ""

    @property
    def look(self) -> str:
        """What a fingerprint says of the file; equal for equal contents where that can be known."""
        return f"{self.md5 or self.tag}/{self.size}"

    @property
    def probable_md5(self) -> str:
        """The MD5 that the ETag is, unless the storage encrypts with keys of its own."""
        return self.tag if not self.md5 and len(self.tag) == 32 and _CONTENT_TAG.fullmatch(self.tag) else ""

    def keys(self, place: str) -> tuple[str, ...]:
        """What the file may be called in the cache; `place` is the model's folder, the repository's name before it.

        Equal contents have equal first keys where that can be known. Under a second one lies a file that turned out not
        to have the MD5 that its ETag looks like: it is this file's alone.
        """
        if self.md5:
            return (f"{self.md5}-{max(self.size, 0)}",)
        where = f"{place}/{self.path}"
        if not self.probable_md5 and _CONTENT_TAG.fullmatch(self.tag):
            # Nobody can check the ETag of a file that was written in parts: it counts within its repository.
            where = place.rpartition("/")[0]
        # Other tags tell the states of one file apart, not one file from another.
        text = f"{where}\0{self.tag}\0{self.size}"
        own = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        return (f"{self.probable_md5}-{max(self.size, 0)}", own) if self.probable_md5 else (own,)


@dataclass(frozen=True, slots=True)
class Layout:
    """A model's files by what they are for."""

    config: RemoteFile | None
    versions: Mapping[int, tuple[RemoteFile, ...]]
    shared: tuple[RemoteFile, ...]
    #: Folders that look like versions and are none.
    warnings: tuple[str, ...]
    fingerprint: Fingerprint

    def needed(self, versions: Iterable[int]) -> list[RemoteFile]:
        """All that a load of these versions needs."""
        found = [*self.shared, *[file for number in versions for file in self.versions[number]]]
        return found if self.config is None or self.config in found else [self.config, *found]


def layout(files: Iterable[RemoteFile], config_name: str = "") -> Layout:
    """`config_name` is `--model-config-name`. Hidden files and Python's caches are left out.

    A folder is where files are, or where somebody put an empty object that says so: `1/`, or a `1` without content,
    which is how storages without folders keep empty ones.
    """
    seen = {file.path: file for file in files}
    folders: dict[str, list[RemoteFile]] = {}
    shared: list[RemoteFile] = []
    for path, file in sorted(seen.items()):
        head, slash, rest = path.partition("/")
        if _hidden(head):
            continue
        if slash:
            # What is hidden in a folder still shows that there is one.
            told = rest and not rest.endswith("/") and not any(map(_hidden, rest.split("/")))
            folders.setdefault(head, []).extend([file] if told else [])
        elif file.size == 0 and head.isdigit():
            folders.setdefault(head, [])
        else:
            shared.append(file)
    numbers, warnings = version_numbers(folders)
    custom = seen.get(f"configs/{config_name}.pbtxt") if config_name else None
    config = custom or seen.get(CONFIG_FILE)
    versions = {number: tuple(folders.pop(str(number))) for number in numbers}
    # Other configs do not make the model another one.
    folders.pop("configs", None)
    rest_of_it = [file for file in shared if file.path != CONFIG_FILE]
    rest_of_it += [file for name in sorted(folders) for file in folders[name]]
    fingerprint = Fingerprint(
        config.look if config else "",
        _stamp(rest_of_it),
        {number: _stamp(each, f"{number}/") for number, each in versions.items()},
    )
    return Layout(config, versions, tuple(rest_of_it), warnings, fingerprint)


def _hidden(name: str) -> bool:
    # Keys such as `m//x` have names without a letter; what follows would be taken for a path from the root.
    return not name or name.startswith(".") or name == "__pycache__"


def _stamp(files: Iterable[RemoteFile], root: str = "") -> str:
    """As a local folder's: changes with any name or content in it."""
    digest = hashlib.blake2b(root.encode(), digest_size=16)
    for file in files:
        digest.update(f"{file.path}\0{file.look}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
