"""Models that are functions of the program: what each is called, what it takes, and what runs it."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conch.backend.program import BACKEND, Program
from conch.config.pbtxt import format_text
from conch.pb.model_config_pb2 import ModelConfig
from conch.repository.local import CONFIG_FILE, check_name


@dataclass(frozen=True, slots=True)
class Bound:
    """`config` is the model's, whole but for its backend; its name is the model's."""

    config: ModelConfig
    program: Program


class Programs:
    """A repository of such models, for as long as it is open: the server finds them as it finds all others."""

    def __init__(self) -> None:
        #: The folder goes with this object, or with the process: servers that are never started hold one too.
        self.repository = Path(tempfile.mkdtemp(prefix="conch-program-"))
        self._remove = weakref.finalize(self, _remove, self.repository, os.getpid())
        #: What `backend.program.ProgramBackend` runs.
        self.programs: dict[str, Program] = {}

    def add(self, bound: Bound) -> str:
        """The model's name. Raises ValueError for one that is taken, InferError for one that cannot be, RuntimeError
        after `close`."""
        if not self._remove.alive:
            raise RuntimeError("the server was stopped, no function can be added to it")
        name = bound.config.name
        check_name(name)
        if name in self.programs:
            raise ValueError(f"there are two functions for model '{name}', give one of them another name")
        config = ModelConfig()
        config.CopyFrom(bound.config)
        config.backend = BACKEND
        (self.repository / name / "1").mkdir(parents=True)
        (self.repository / name / CONFIG_FILE).write_text(format_text(config), encoding="utf-8")
        self.programs[name] = bound.program
        return name

    def remove(self, name: str) -> None:
        """Its name is free again."""
        del self.programs[name]
        shutil.rmtree(self.repository / name, ignore_errors=True)

    def close(self) -> None:
        self._remove()


def _remove(folder: Path, process: int) -> None:
    """Not in a process that was forked from the one that made it, which still needs it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def bind(functions: Iterable[Callable[..., Any] | Bound]) -> list[Bound]:
    """Raises DeclarationError for functions whose annotations do not say what is needed."""
    from conch.library.declared import bound_function  # noqa: PLC0415  only who has functions needs it

    return [each if isinstance(each, Bound) else bound_function(each) for each in functions]
