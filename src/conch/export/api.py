"""The room's values: what is exported, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
#: Inputs by name -> outputs by name, in order.
Call = Callable[[Mapping[str, Array]], dict[str, Array]]


class ExportError(Exception):
    """What was asked for cannot be exported; the text is for the person who asked. `hint` says how to go on."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.args[0]} ({self.hint})" if self.hint else str(self.args[0])


@dataclass(frozen=True, slots=True)
class Written:
    """An exported model: its one file, and what config.pbtxt says of it."""

    filename: str
    content: bytes
    backend: str
    platform: str = ""
    #: Further files beside it: name -> content.
    more: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs may be apart: `absolute` plus `relative` times the size of the value."""

    relative: float
    absolute: float
