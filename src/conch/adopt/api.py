"""The door of the room: a model that is to be in a repository, whatever it was before."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from conch.pb.model_config_pb2 import ModelConfig


class Refusal(Exception):  # noqa: N818
    """What was asked for cannot be had; the text is for the person who asked. `hint` says how to go on."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})" if self.hint else str(self.args[0])


class AdoptError(Refusal):
    """What was given cannot be served."""


def said(error: OSError, path: object = "") -> str:
    """Which file it is about (`path` where the error does not know), and what is wrong with it."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        # Of a folder that was copied: one for each file.
        source, _, why = error.args[0][0]
        return f"{source}: {why}"
    return f"{error.filename or path}: {error.strerror}" if error.strerror else str(error)


#: Bytes of a description in an archive.
_MOST: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """A file that is still in a zip archive: archives may be larger than the memory."""

    archive: Path
    name: str

    def read(self) -> bytes:
        """What fits in the memory with ease. Raises AdoptError and OSError."""
        try:
            with zipfile.ZipFile(self.archive) as archive:
                size = archive.getinfo(self.name).file_size
                if size > _MOST:
                    raise AdoptError(f"{self.archive}: '{self.name}' in it has {size} bytes, at most {_MOST} are read")
                return archive.read(self.name)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
            raise self._broken(error) from None

    def unpack(self, place: Path) -> None:
        """Raises AdoptError and OSError."""
        try:
            with zipfile.ZipFile(self.archive) as archive, archive.open(self.name) as source, place.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> AdoptError:
        return AdoptError(f"{self.archive}: '{self.name}' in it cannot be read: {error}", "make the archive again")


Content: TypeAlias = Path | bytes | Packed


@dataclass(slots=True)
class Entry:
    """One model. `config` may leave to auto-completion what the files know; `files` are the contents of its folder:
    path inside it -> the file or folder that belongs there (also in an archive), or the content itself."""

    name: str
    config: ModelConfig
    files: Mapping[str, Content]
    #: What it was, for people: "ONNX model".
    what: str
    source: Path
    #: What has a place in the new model, and what has none and so is lost. Nothing is left out of both.
    mapped: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    #: The text of the config that the model came with; then it is not written anew.
    config_text: str | None = None
