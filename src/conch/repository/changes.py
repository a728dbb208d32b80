"""What a changed file means: which model it belongs to, whether it counts, and when it is time to load. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Final

#: A model is loaded when nothing has changed for so long, so that files which are saved together are loaded together;
#: and taken from service when its folder is gone for so long. Seconds.
QUIET, GONE = 0.05, 0.5
#: What is written all the time is loaded all the same, so often.
LONGEST = 10.0
#: A change so soon after a load may be the load's own doing: the new version's `initialize`, the old one's `finalize`.
ECHO = 0.3
#: But these are written by people.
_SOURCES: Final = (".py", ".pbtxt")
#: A model that changes its own files whenever it is loaded is loaded again so often at once, then ever less often, down
#: to once in so many seconds.
ECHOES, RAREST = 5, 60.0
#: What editors, Python and copying programs leave behind for a moment.
_PASSING: Final = re.compile(
    r"\..*|__pycache__|.*~|.*\.py[co]|.*\.sw[a-z]|4913|#.*#|.*\.(?:tmp|temp|part|partial|crdownload)(?:\.\w+)?"
    r"|.*___jb_(?:tmp|old|bak)___|.*\.tmp\.\d+\.\d+|flycheck_.*"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder of a model; `rest` is its path inside the model's folder, empty for that itself."""

    root: str
    model: str
    rest: tuple[str, ...]


def place(path: str, roots: Sequence[str]) -> Place | None:
    """None for what belongs to no model or does not count. Of repositories inside one another the inner one has it."""
    for root in sorted(roots, key=len, reverse=True):
        try:
            parts = PurePath(path).relative_to(root).parts
        except ValueError:
            continue
        if not parts or any(_PASSING.fullmatch(part) for part in parts[:1] + _inner(parts)):
            return None
        return Place(root, parts[0], parts[1:])
    return None


def _inner(parts: tuple[str, ...]) -> tuple[str, ...]:
    # A version may have a number that is Vim's name for a trial file.
    return parts[1:] if len(parts) != 2 or parts[1] != "4913" else ()


class Action(Enum):
    LOAD = "load"
    UNLOAD = "unload"


def decide(*, present: bool, versions: bool, wanted: bool, explicit: bool) -> Action | None:
    """What to do about a model that has changed.

    `present`: its folder is there; `versions`: with a version in it; `wanted`: it was asked for and not unloaded.
    With `explicit` control what nobody asked for is left alone.
    """
    if not present:
        return Action.UNLOAD if wanted else None
    if wanted:
        return Action.LOAD
    return Action.LOAD if versions and not explicit else None


@dataclass(slots=True)
class _Model:
    #: When the first and the last change came that no load has seen; None without any.
    first: float | None = None
    last: float = 0.0
    loading: bool = False
    #: When its last load ended.
    ended: float = float("-inf")
    #: Whether all those changes came while it was loaded, or right after; and how many loads in a row such had.
    echo: bool = False
    echoes: int = 0

    @property
    def pause(self) -> float:
        """How long to wait after the last change."""
        return QUIET if self.echoes < ECHOES else min(RAREST, 2.0 ** (self.echoes - ECHOES))


class Changes:
    """Collects changes and says which models are due. Times are monotonic seconds; models are any names."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def changed(self, name: str, file: str, now: float) -> None:
        """A file of a model has changed at that time."""
        model = self._models.setdefault(name, _Model())
        echo = not file.endswith(_SOURCES) and (model.loading or now < model.ended + ECHO)
        if model.first is None:
            model.first, model.echo = now, echo
        if not echo:
            model.echo, model.echoes = False, 0
        model.last = max(model.last, now)

    def due(self, now: float, gone: Iterable[str] = ()) -> list[str]:
        """The models whose changes are to be acted on now; those of `gone` have no folder and wait longer."""
        missing = set(gone)
        return [
            name
            for name, model in self._models.items()
            if model.first is not None
            and not model.loading
            and (
                now - model.last >= (GONE if name in missing else model.pause)
                or (now - model.first >= LONGEST and model.echoes < ECHOES)
            )
        ]

    def waiting(self) -> list[str]:
        """The models with changes that no load has seen."""
        return [name for name, model in self._models.items() if model.first is not None and not model.loading]

    def began(self, name: str) -> float:
        """Its changes are being acted on; since when they are there. Until `ended` it is not due again."""
        model = self._models[name]
        assert model.first is not None, "only what is due begins"
        first, model.first = model.first, None
        model.loading = True
        model.echoes = model.echoes + 1 if model.echo else 0
        return first

    def writes_itself(self, name: str) -> bool:
        """True once for a model that seems to change its own files when it is loaded: after so many loads in a row."""
        return self._models[name].echoes == ECHOES

    def ended(self, name: str, now: float) -> None:
        model = self._models[name]
        model.loading, model.ended = False, now

    def dismissed(self, name: str) -> None:
        """Nothing is to be done about its changes."""
        self._models[name].first = None
