"""What a poll of the repositories leads to: from what was seen before and is seen now to loads and unloads. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from conch.repository.api import Survey

#: Seconds: the longest rest of a model whose files change whenever it is loaded.
_LONGEST_REST: Final = 60.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do now: `compare` these models' contents and tell `compared`, unload `gone`, look again at `again_at`."""

    compare: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    again_at: float | None = None
    #: Of `compare`: those whose files have changed again and again while they were being loaded.
    restless: tuple[str, ...] = ()


@dataclass(slots=True)
class _Followed:
    #: How the model looks, None where there is none (or two), and since when.
    look: str | None
    since: float
    #: The look and the contents that were acted on last; None while nothing is known.
    handled: str | None = None
    contents: str | None = None
    #: A load or an unload is in progress.
    busy: bool = False
    #: The load has ended since the last look.
    fresh: bool = False
    #: Loads in a row during which the files changed: each one doubles the rest before the next.
    disturbed: int = 0


class Following:
    """A model is acted on when it has looked the same for `settle` seconds: nobody is writing to it any more.

    A model that failed to load counts as handled: it is tried again when its contents change. Times are seconds of any
    clock that does not run backwards.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._models: dict[str, _Followed] = {}

    def start(self, survey: Survey, now: float) -> None:
        """Everything that `survey` shows is about to be loaded, whatever state it is in."""
        for name, look in survey.looks.items():
            self._models[name] = _Followed(look, now, handled=look)

    def look(self, survey: Survey, now: float) -> Turn:
        """What has come, gone or changed, and stands still."""
        self._note(survey, now)
        compare, gone, restless = [], [], []
        again: list[float] = []
        for name, model in list(self._models.items()):
            unseen = not survey.complete and name not in survey.looks and name not in survey.duplicates
            if model.busy or unseen:
                continue
            if model.look == model.handled:
                model.fresh, model.disturbed = False, 0
                if model.look is None:
                    del self._models[name]
                continue
            if model.fresh and model.look is not None:
                model.disturbed += 1
            model.fresh = False
            due = model.since + min(self._settle * 2.0 ** max(0, model.disturbed - 1), _LONGEST_REST)
            if now < due:
                again.append(due)
            elif model.look is not None:
                compare.append(name)
                if model.disturbed > 1:
                    restless.append(name)
            elif model.handled is not None:
                model.busy, model.handled, model.contents = True, None, None
                gone.append(name)
        return Turn(tuple(compare), tuple(gone), min(again, default=None), tuple(restless))

    def compared(self, name: str, contents: str) -> bool:
        """The contents of a model that was to be compared: whether to load it. If so, `ended` must follow."""
        model = self._models[name]
        same = model.contents == contents
        model.handled, model.contents = model.look, contents
        model.busy = not same
        return not same

    def ended(self, name: str) -> None:
        """A load or unload is over, well or not."""
        model = self._models[name]
        model.busy, model.fresh = False, True

    def unknown(self) -> list[str]:
        """Models that were loaded at the start, whose contents nobody has told yet."""
        return [name for name, model in self._models.items() if model.handled is not None and model.contents is None]

    def learn(self, name: str, look: str, contents: str) -> None:
        """What a model's files hold while they look like this."""
        model = self._models[name]
        if model.handled == look and model.contents is None:
            model.contents = contents

    def _note(self, survey: Survey, now: float) -> None:
        for name, look in survey.looks.items():
            model = self._models.get(name)
            if model is None:
                self._models[name] = _Followed(look, now)
            elif model.look != look:
                model.look, model.since = look, now
        for name, model in self._models.items():
            missing = name in survey.duplicates or (survey.complete and name not in survey.looks)
            if missing and model.look is not None:
                model.look, model.since = None, now
